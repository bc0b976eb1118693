"""From feature keys to modules: the stages of each family of networks.

Stage 0 is the stem, or the embeddings of a transformer. Stage k is the k-th downsampling level or block group of a
convolutional network, or the output of block k of a transformer, before a final norm.

- hfkd's CIFAR networks: the feats of the literature (mdistiller, RepDistiller), and before the last activation its
preact_feats. Those of a wide ResNet are the outputs of the next batch norm; MobileNetV2's rows are linear, so that both
are the same.
- timm: the entries of `feature_info`, preceded by the stem if it is not among them; for ResNets with basic blocks or
bottlenecks also before the last activation.
- torchvision's detectors: the maps of their feature pyramid from the finest on, 1 to 5 for p2 to p6 of a ResNet.
- torchvision's ResNets: `relu`, `layer1`, ...; not before activations, because one ReLU module is used for a whole
block.
- transformers: the only list of blocks of one class that is as long as the config's `num_hidden_layers` or `depths`;
and the attention in block k, from 1 on.
- Others: modules by their paths only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FeaturePyramidNetwork
from transformers import PreTrainedModel

from hfkd.models.calling import bare
from hfkd.models.cifar import CifarNet
from hfkd.utils.feature_keys import stages_of

# Networks of timm whose maps are [B, H, W, C], which they do not say: of all stages, or of the stem alone.
CHANNELS_LAST = ("VOLO",)
STEM_CHANNELS_LAST = ("PyramidVisionTransformerV2",)


@dataclass(frozen=True)
class Tap:
    """Where a feature is captured: at the output of the module at `path`, or at its `input`.

    parts: the module has several inputs, which are concatenated to one map. channels: the number of channels of a map,
    if known. channels_last: maps are [B, H, W, C], and permuted to [B, C, H, W]. attention: the inputs of its attention
    function. last: the last of the list of maps that is its first output.
    """

    path: str
    input: bool = False
    channels: int | None = None
    parts: bool = False
    channels_last: bool = False
    attention: bool = False
    last: bool = False

    @classmethod
    def at(cls, path: str, channels: int | None = None) -> "Tap":
        """The tap of a path that may end in ":in" or ":parts"."""
        path, _, end = path.partition(":")
        return cls(path, bool(end), channels, end == "parts")

    def __str__(self) -> str:
        return f"{self.path}:in" if self.input else self.path


@dataclass(frozen=True)
class Stages:
    """A network's stages by number, and those before their last activation and their attention, if there are any.

    The attention of stage k is that of block k, between stages k - 1 and k; stage 0 has none.
    """

    outputs: dict[int, Tap]
    before_activation: dict[int, Tap] = field(default_factory=dict)
    attention: dict[int, Tap] = field(default_factory=dict)

    @classmethod
    def listed(cls, outputs: Sequence[Tap], before_activation: Sequence[Tap] = ()) -> "Stages":
        """Stages that are numbered from 0."""
        return cls(dict(enumerate(outputs)), dict(enumerate(before_activation)))

    def of(self, kind: str) -> dict[int, Tap]:
        return {"pre:": self.before_activation, "attention:": self.attention}.get(kind, self.outputs)

    def below(self, prefix: str) -> "Stages":
        """The stages of this network as the module `prefix` of another one."""
        kinds = (self.outputs, self.before_activation, self.attention)
        return Stages(*({k: replace(tap, path=f"{prefix}.{tap.path}") for k, tap in taps.items()} for taps in kinds))


def expanded(network: nn.Module, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each key, the single keys that it stands for: {"1:": ("1", "2", "3"), "pooled": ("pooled",)}.

    Raises ValueError for a stage that the network does not have, with the available ones.
    """
    return {key: _expanded(network, key) for key in keys}


def _expanded(network: nn.Module, key: str) -> tuple[str, ...]:
    stage = stages_of(key)
    if stage is None:
        return (key,)
    kind, index, onwards = stage
    there = list(_stages(network, key).of(kind))
    start = there[index] if -len(there) <= index < 0 else index
    if start not in there:
        names = ", ".join(repr(f"{kind}{k}" if kind else k) for k in there)
        raise ValueError(f"layer {key!r}: {type(bare(network)).__name__} has the stages {names}")
    return tuple(f"{kind}{k}" for k in there if k >= start) if onwards else (key,)


def tap_of(network: nn.Module, key: str) -> Tap:
    """Where the feature of a single key (as from `expanded`) is captured in the bare network.

    Raises ValueError for a layer that does not exist, with the available ones.
    """
    stage = stages_of(key)
    if stage is not None:
        taps = _stages(network, key).of(stage[0])
        return taps[stage[1]] if stage[1] >= 0 else list(taps.values())[stage[1]]
    if key == "pooled":
        return Tap(_head(network), input=True)
    return _by_path(network, key)


def _by_path(network: nn.Module, key: str) -> Tap:
    """A module by its path in the bare network, or in the network that transformers wraps around timm's."""
    inner, tap = bare(network), Tap.at(key)
    names = {name for name, _ in inner.named_modules()}
    for path in (tap.path, f"timm_model.{tap.path}"):
        if path in names:
            return Tap(path, tap.input)
    known = _known(inner)
    choices = list(known.outputs) if known else []
    raise ValueError(
        f"layer {key!r}: {type(inner).__name__} has no such module: name one of {sorted(_near(names, tap.path))}"
        + (f", or one of the stages {', '.join(map(str, choices))}" if choices else "")
    )


def _near(names: set[str], path: str) -> list[str]:
    """The modules at the deepest level of `path` that exists."""
    while path:
        path = path.rpartition(".")[0]
        if not path or path in names:
            prefix = f"{path}." if path else ""
            return [name for name in names if name.startswith(prefix) and "." not in name[len(prefix) :] and name]
    return []


def _stages(network: nn.Module, key: str) -> Stages:
    """The stages of a network, of the kind in `key`. Raises ValueError if they are not known."""
    inner = bare(network)
    found, (kind, *_) = _known(inner), stages_of(key) or ("",)
    if found is None or not found.of(kind):
        before = {"pre:": " before their last activation", "attention:": " that attend"}.get(kind, "")
        listed = list(map(str, found.outputs.values())) if found else sorted(name for name, _ in inner.named_children())
        raise ValueError(
            f"layer {key!r}: the stages of a {type(inner).__name__}{before} are not known: name a module by its path, "
            f"such as {listed} or their submodules, with ':in' at the end for its input"
        )
    return found


def _known(network: Any) -> Stages | None:
    """The stages of a bare network, if its family is known."""
    timm_model = getattr(network, "timm_model", None)  # transformers' wrapper
    if timm_model is not None:
        inner = _known(timm_model)
        return inner and inner.below("timm_model")
    if isinstance(network, CifarNet):
        info = network.feature_info
        kinds = ("output", "before_activation")
        return Stages.listed(*([Tap.at(row[kind], row["num_chs"]) for row in info] for kind in kinds))
    if isinstance(network, PreTrainedModel):
        return _transformers(network)
    if isinstance(network, GeneralizedRCNN):
        return _pyramid(network)
    if isinstance(getattr(network, "feature_info", None), list) and network.feature_info:
        return _timm(network)
    if type(network).__module__ == "torchvision.models.resnet":
        return Stages.listed([Tap(path) for path in ("relu", "layer1", "layer2", "layer3", "layer4")])
    return None


def _pyramid(network: Any) -> Stages | None:
    """The maps of a feature pyramid; the coarsest is computed from the others by an extra block."""
    fpn = getattr(network.backbone, "fpn", None)
    if not isinstance(fpn, FeaturePyramidNetwork):
        return None
    taps = [Tap(f"backbone.fpn.layer_blocks.{k}") for k in range(len(fpn.layer_blocks))]
    if fpn.extra_blocks is not None:
        taps.append(Tap("backbone.fpn.extra_blocks", last=True))
    return Stages(dict(enumerate(taps, 1)))


def _timm(network: Any) -> Stages | None:
    """The stages of a timm network.

    timm lists the last module of each downsampling level, or each block; some lists begin with the stem. A list of
    block groups numbered from 0 does not (EfficientNet, ConvNeXt, ViT): stage 0 is then the input of the first.
    """
    kind = type(network).__name__
    last = str(getattr(network, "output_fmt", "")).endswith("NHWC") or kind in CHANNELS_LAST  # an enumeration in timm
    entries = [Tap(row["module"], channels=row["num_chs"], channels_last=last) for row in network.feature_info]
    if not {tap.path for tap in entries} <= {name for name, _ in network.named_modules()}:
        return None  # HRNet, MViTv2 and others list names that only timm's own extraction knows
    first = entries[0].path
    kinds = [re.sub(r"\d", "", tap.path) for tap in entries]
    if len(kinds) > 1 and kinds[0] == kinds[1] and kind not in ("VGG", "DLA"):
        if not first.endswith(".0"):
            return None
        entries.insert(0, Tap(first, input=True, channels_last=last or kind in STEM_CHANNELS_LAST))
    return Stages.listed(entries, _timm_resnet(network) if kind == "ResNet" else ())


def _timm_resnet(network: Any) -> tuple[Tap, ...]:
    """The inputs of the last activation of each stage."""
    taps = [Tap("act1", input=True)]
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        blocks = getattr(network, layer)
        last = {"BasicBlock": "act2", "Bottleneck": "act3"}.get(type(blocks[-1]).__name__)
        if last is None:
            return ()
        taps.append(Tap(f"{layer}.{len(blocks) - 1}.{last}", input=True))
    return tuple(taps)


def _transformers(network: PreTrainedModel) -> Stages | None:
    """The blocks: the only list of modules of one class that is as long as a depth in the config."""
    config = network.config.get_text_config()
    counts = {getattr(config, "num_hidden_layers", None), len(getattr(config, "depths", None) or ())} - {None, 0}
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts and len({type(block) for block in module}) == 1
    ]
    if network.config.is_encoder_decoder or len(lists) != 1:
        return None
    name, blocks = lists[0]
    outputs = [Tap(f"{name}.0", input=True), *(Tap(f"{name}.{i}") for i in range(len(blocks)))]
    return replace(
        Stages.listed(outputs), attention={i + 1: Tap(f"{name}.{i}", attention=True) for i in range(len(blocks))}
    )


def _head(network: nn.Module) -> str:
    """The path of the last linear layer, from pooled features to logits, which is verified in a forward pass."""
    linear = [name for name, module in bare(network).named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"layer 'pooled': {type(bare(network)).__name__} has no linear layer, whose input it would be: name a "
            "module by its path"
        )
    return _named_head(bare(network)) or linear[-1]


def _named_head(network: Any) -> str | None:
    """The path of the head that a language model or a timm network returns itself."""
    inner = getattr(network, "timm_model", None)
    if inner is not None:
        name = _named_head(inner)
        return name and f"timm_model.{name}"
    getter = "get_output_embeddings" if isinstance(network, PreTrainedModel) else "get_classifier"
    head = getattr(network, getter)() if hasattr(network, getter) else None
    return next((name for name, module in network.named_modules() if module is head), None)
