"""Faster R-CNN with a feature pyramid by name, on backbones of torchvision or timm.

C classes, including the background.
"""

import difflib
import inspect
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torchvision
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from hfkd.models.checkpoints import load_checkpoint, read_state_dict
from hfkd.utils.messages import some

RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RATIOS = (0.5, 1.0, 2.0)
FROZEN = ("frozen_batch_norm", "frozen_stages")
WHOLE = "fasterrcnn_"  # prefix of the names of torchvision's detectors


class TimmPyramid(nn.Module):
    """The stages of a timm network and a feature pyramid over them: [B, 3, H, W] -> maps by name, finest first."""

    def __init__(self, name: str, levels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=tuple(levels))
        info: Any = self.body.feature_info
        channels = info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(k), one) for k, one in enumerate(self.body(images))))


def faster_rcnn(
    backbone: str,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    levels: Sequence[int] = (1, 2, 3, 4),
    fpn_channels: int = 256,
    head_size: int = 1024,
    anchor_size: int = 32,
    proposals: int = 512,
    frozen_batch_norm: bool = True,
    frozen_stages: int = 0,
) -> FasterRCNN:
    """torchvision's FasterRCNN with new weights and the defaults of the literature.

    backbone: one of torchvision's ResNets, or a timm network with features ("mobilenetv2_100",
    "tf_efficientnet_lite0"). levels: the stages under the pyramid; stage 1 has a quarter of the image's size.
    anchor_size: the side of the anchors on the finest map, doubled at each coarser one. proposals: the number sampled
    from each image in training. frozen_batch_norm: whether the backbone's batch norm is frozen, as usual with
    pretrained backbones. frozen_stages: the number of its stages that are not trained, with the stem (detectron2: 1).
    Images are normalised by timm's statistics of the backbone, for torchvision's backbones by those of ImageNet. Raises
    ValueError for an unknown name.
    """
    made = _backbone(backbone, levels, fpn_channels)
    _freeze_body(made, frozen_batch_norm, frozen_stages)
    names = [str(k) for k in range(len(levels))]
    sizes = tuple((anchor_size << k,) for k in range(len(levels) + 1))
    return FasterRCNN(
        made,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(fpn_channels * 7 * 7, head_size),
        box_predictor=FastRCNNPredictor(head_size, num_classes),
        box_batch_size_per_image=proposals,
        **_statistics(backbone),
    )


def detector(
    name: str,
    num_classes: int,
    checkpoint: str | os.PathLike[str] | None = None,
    backbone_checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> FasterRCNN:
    """A Faster R-CNN by name: `faster_rcnn` on a backbone, or torchvision's own ("fasterrcnn_resnet50_fpn").

    checkpoint: a file with weights for the whole detector; "torchvision": torchvision's published weights, trained on
    COCO (91 classes), which are downloaded. backbone_checkpoint: a file with a classifier's weights for the backbone
    only; "pretrained": the published weights of timm or torchvision. `settings` are those of `faster_rcnn`;
    torchvision's own detectors take only the image sizes, `proposals` and what is frozen. Raises ValueError for an
    unknown name, for settings that the detector does not take, and for files that do not fit.
    """
    if name.startswith(WHOLE):
        made = _torchvision_detector(name, num_classes, checkpoint == "torchvision", settings)
    else:
        made = faster_rcnn(name, num_classes, **settings)
        if checkpoint == "torchvision":
            raise ValueError(
                f"checkpoint='torchvision', but torchvision publishes no detector with the backbone {name}: use one "
                f"of {_published()}, or pass a file"
            )
    if backbone_checkpoint is not None:
        load_backbone(made.backbone.body, name, backbone_checkpoint)
    if checkpoint is not None and checkpoint != "torchvision":
        load_checkpoint(made, checkpoint)
    if name.startswith(WHOLE):  # once it has the statistics that are to stay
        _freeze_body(made.backbone, settings.get("frozen_batch_norm", False), settings.get("frozen_stages", 0))
    return made.eval()


def load_backbone(body: nn.Module, name: str, path: str | os.PathLike[str]) -> None:
    """Load a classifier's weights into `body`, the stages of that classifier, without the weights of its head.

    path: a file, or "pretrained" for the published weights of timm or torchvision. Raises ValueError if a weight is
    missing or has another shape.
    """
    found = _published_backbone(name) if path == "pretrained" else read_state_dict(path)
    own = body.state_dict()
    wrong = [k for k, v in own.items() if k not in found or found[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(
            f"{path} lacks weights of the backbone {name}, or has them in another shape: {some(wrong)}. Pass weights "
            "of this architecture"
        )
    body.load_state_dict(own | {k: found[k] for k in own if k in found})


def _published_backbone(name: str) -> dict[str, Tensor]:
    if name.startswith(WHOLE):
        raise ValueError(
            f"backbone_checkpoint='pretrained' names no weights for {name}: give a classifier's file, or "
            "checkpoint='torchvision' for the whole detector"
        )
    if name in RESNET:
        return dict(torchvision.models.get_model(name, weights="DEFAULT").state_dict())
    return dict(timm.create_model(name, pretrained=True).state_dict())


def _torchvision_detector(name: str, num_classes: int, published: bool, settings: dict[str, Any]) -> Any:
    if name not in _published():
        raise ValueError(f"unknown detector {name!r}: use one of torchvision's {_published()}")
    taken = {"min_size": "min_size", "max_size": "max_size", "proposals": "box_batch_size_per_image"}
    more = {its: settings[own] for own, its in taken.items() if own in settings}
    defaults = {k: p.default for k, p in inspect.signature(faster_rcnn).parameters.items()}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k not in (*taken, *FROZEN)}
    other = next((k for k, v in given.items() if v != defaults.get(k)), None)
    if other is not None:
        raise ValueError(
            f"{other}={settings[other]!r} is for a detector that is built on a backbone, and {name} has its own: leave "
            "it out, or give the name of a backbone"
        )
    weights = "DEFAULT" if published else None
    return torchvision.models.get_model(
        name, weights=weights, weights_backbone=None, num_classes=None if published else num_classes, **more
    )


def _published() -> list[str]:
    return [name for name in torchvision.models.list_models(torchvision.models.detection) if name.startswith(WHOLE)]


def _backbone(name: str, levels: Sequence[int], out_channels: int) -> Any:
    if name in RESNET:
        body: Any = torchvision.models.get_model(name, weights=None)
        widths = [body.inplanes >> (4 - k) for k in levels]
        return BackboneWithFPN(body, {f"layer{k}": str(i) for i, k in enumerate(levels)}, widths, out_channels)
    if timm.is_model(name):
        return TimmPyramid(name, levels, out_channels)
    close = difflib.get_close_matches(name, {*RESNET, *timm.list_models()}, n=5, cutoff=0.5)
    raise ValueError(
        f"unknown backbone {name!r}: use one of torchvision's {list(RESNET)}, one of its detectors "
        f"({_published()[0]}), or one of timm's" + (f" ({', '.join(close)}?)" if close else "")
    )


def _freeze_body(backbone: Any, batch_norm: bool, stages: int) -> None:
    """By the settings `FROZEN`. torchvision freezes its detectors' batch norms only where it loads weights."""
    if batch_norm:
        backbone.body = freeze_batch_norm_2d(backbone.body)
    if stages:
        _freeze(backbone.body, stages)


def _freeze(body: Any, stages: int) -> None:
    """Freeze the parameters of the stem and the first `stages` stages."""
    info = getattr(body, "feature_info", None)
    last = f"layer{stages}" if info is None else {row["reduction"]: row["module"] for row in info}.get(2 << stages)
    names = [name for name, _ in body.named_parameters()]
    inside = [place for place, name in enumerate(names) if last is not None and name.startswith(f"{last}.")]
    if not inside:
        raise ValueError(f"frozen_stages={stages}, but the backbone does not have so many stages: set a smaller number")
    for parameter in list(body.parameters())[: inside[-1] + 1]:
        parameter.requires_grad = False


def _statistics(name: str) -> dict[str, list[float]]:
    """The image statistics of a backbone; empty for torchvision's, where its detectors have the right defaults."""
    config = None if name in RESNET else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if config is None else {"image_mean": list(config.mean), "image_std": list(config.std)}
