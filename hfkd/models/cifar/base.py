"""The base class of the CIFAR networks: timm's model interface over `stage(0..K)`, `tail` and a pooled linear head.

Parameter names are those of RepDistiller (Tian et al. 2020) and mdistiller (Zhao et al. 2022), so that their published
checkpoints load strictly. Shapes: B images, C classes, D channels, H and W pixels.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hfkd.utils.numbers import CIFAR_MEAN, CIFAR_STD


class CifarNet(nn.Module):
    """A convolutional network for small images, any size from 32x32 up, with timm's interface.

    A subclass builds its layers, lists in `feature_info` one map per stage, which the literature calls feats, and calls
    `build_head` at the end of its `__init__`. `stage` implements the usual layout: a stem, then layer1, layer2, ...
    """

    classifier_name = "fc"
    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    global_pool: SelectAdaptivePool2d
    num_features: int  # D, channels of `forward_features`
    head_hidden_size: int  # input width of the classifier, D without a projector; named as in timm
    num_classes: int
    feature_info: list[dict[str, Any]]

    def stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            return self.relu(self.bn1(self.conv1(x)))
        return getattr(self, f"layer{index}")(x)

    def tail(self, x: Tensor) -> Tensor:
        """The layers between the last stage and the pooling."""
        return x

    def init_convolutions(self) -> None:
        """N(0, 2 / (k*k*out)) for the weights, grouped convolutions too, and zero for the biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def init_classifier(self, linear: nn.Linear) -> None:
        """Initialise the classifier; by default, as PyTorch does."""

    def build_head(
        self,
        num_features: int,
        num_classes: int = 100,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        projector: int = 0,
    ) -> None:
        """Create pooling and classifier, with a linear layer of `projector` outputs between them unless it is 0."""
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = drop_rate
        self.projector: nn.Module = nn.Identity()
        if projector:
            self.projector, self.head_hidden_size = nn.Linear(num_features, projector), projector
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for `num_classes` classes; 0 leaves only the pooling."""
        weight = next(self.parameters())
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, classifier = create_classifier(
            self.head_hidden_size, num_classes, pool_type, device=weight.device, dtype=weight.dtype
        )
        if isinstance(classifier, nn.Linear):
            self.init_classifier(classifier)
        self.set_submodule(self.classifier_name, classifier)

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.classifier_name)

    def forward_features(self, x: Tensor) -> Tensor:
        for index in range(len(self.feature_info)):
            x = self.stage(index, x)
        return self.tail(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(final features, feats in the order of `feature_info`), or with `intermediates_only` the feats only.

        `indices` is as in timm: None for all, an int for the last n, or a list. `norm` has no effect, as in timm's
        other convolutional networks. With `stop_early` the final features are those of the last stage that was needed.
        Raises ValueError for an `output_fmt` other than "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(
                f"output_fmt={output_fmt!r} is not supported, because a convolutional network has maps: pass 'NCHW'"
            )
        count = len(self.feature_info)
        take, last = feature_take_indices(count, indices)
        maps = []
        for index in range(last + 1 if stop_early else count):
            x = self.stage(index, x)
            if index in take:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if stop_early and last + 1 < count else self.tail(x)), maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.projector(self.global_pool(x))  # [B, D], or [B, projector]
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)  # [B, C]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def feature_info(
    widths: Sequence[int],
    reductions: Sequence[int],
    modules: Sequence[str],
    outputs: Sequence[str],
    before_activation: Sequence[str],
) -> list[dict[str, Any]]:
    """timm's description of the maps: channels, reduction (input size / map size), and the last module before the ReLU.

    Also the module paths at which `hfkd.models.stages` reads them (":in": the module's input; ":parts": the
    concatenation of its inputs): `outputs` are the feats of the literature, and `before_activation` its preact_feats,
    except that those use feats for the stem.
    """
    names = ("num_chs", "reduction", "module", "output", "before_activation")
    rows = zip(widths, reductions, modules, outputs, before_activation, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def cifar_cfgs(*names: str, classifier: str = "fc", first_conv: str = "conv1") -> dict[str, Any]:
    """timm's `default_cfgs` for networks that have no weights in timm."""
    cfg = {
        "input_size": (3, 32, 32),
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "crop_pct": 1.0,
        "num_classes": 100,
        "classifier": classifier,
        "first_conv": first_conv,
    }
    return generate_default_cfgs(dict.fromkeys(names, cfg))


def register(model_cls: type[CifarNet], networks: Mapping[str, Mapping[str, Any]]) -> None:
    """Register networks with timm, by name with their arguments of `model_cls`; its module has their `default_cfgs`.

    timm has no weights for these names: `pretrained=True` raises unless `pretrained_cfg_overlay` gives their location.
    `features_only=True` takes its maps from `forward_intermediates`.
    """
    for name, own in networks.items():
        entry = register_model(_entry(model_cls, name, own))
        setattr(sys.modules[entry.__module__], name, entry)  # timm has put it into the module's __all__


def _entry(model_cls: type[CifarNet], name: str, own: Mapping[str, Any]) -> Callable[..., CifarNet]:
    last_four = {"feature_cls": "getter", "out_indices": 4}

    def make(pretrained: bool = False, **kwargs: Any) -> CifarNet:
        return build_model_with_cfg(model_cls, name, pretrained, feature_cfg=last_four, **own, **kwargs)

    make.__name__, make.__module__ = name, model_cls.__module__
    return make
