"""The image normalisation and size that a model expects."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from timm.models import get_model_input_config
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    TimmWrapperImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.models.peers import Peers


@dataclass(frozen=True)
class InputSpec:
    """Per-channel `mean` and `std` of pixels in [0, 1]; `size` is (height, width), or None if any size is accepted."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None


def image_channels(model: nn.Module) -> int | None:
    """The number of image channels of a network, from its config or its first convolution."""
    said = getattr(getattr(model, "config", None), "num_channels", None)
    if isinstance(said, int):
        return said
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def in_channels(images: Tensor, channels: int | None) -> Tensor:
    """Images [B, D, H, W] with `channels` channels: one channel is repeated to three, three are averaged to one."""
    if channels == 3 and images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    return images.mean(1, keepdim=True) if channels == 1 and images.shape[1] == 3 else images


def same_statistics(one: InputSpec, other: InputSpec, tolerance: float = 0.0) -> bool:
    """Whether both have the same normalisation, up to `tolerance` in each number; sizes are not compared."""
    if (len(one.mean), len(one.std)) != (len(other.mean), len(other.std)):
        return False
    pairs = zip(one.mean + one.std, other.mean + other.std, strict=True)
    return all(abs(mine - its) <= tolerance for mine, its in pairs)


def input_spec(model: nn.Module) -> InputSpec | None:
    """The `InputSpec` of a timm model, bare or in transformers' wrapper, or of a Hub model; None if it is not known.

    A timm model has a fixed size only if it is built for one (`fixed_input_size`: ViT, Swin). For a saved wrapper the
    values are those in its config; for a Hub model from outside timm, those of its image processor.
    """
    config: Any = getattr(model, "config", None)
    timm_model: Any = getattr(model, "timm_model", model)
    if getattr(timm_model, "pretrained_cfg", None):
        return _timm_spec(timm_model, getattr(config, "pretrained_cfg", None) or {})
    if isinstance(model, Peers):
        return input_spec(model.peers[model.scored])
    if getattr(config, "name_or_path", ""):
        return _stored_processor_spec(config.name_or_path)
    return None


def _timm_spec(timm_model: Any, saved: dict[str, Any]) -> InputSpec:
    cfg = {**timm_model.pretrained_cfg, **saved}
    built = get_model_input_config(timm_model)
    _, height, width = built["input_size"]
    mean, std = _floats(cfg["mean"]), _floats(cfg["std"])
    if image_channels(timm_model) == 1 and len(mean) == 3:  # timm's statistics are those of colour images
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return InputSpec(mean, std, (height, width) if built["fixed_input_size"] else None)


def processor_spec(processor: BaseImageProcessor) -> InputSpec | None:
    """The `InputSpec` of an image processor; None if it is not defined by mean, std and size.

    (factor · byte - mean) / std, for a rescale factor other than 1/255, is expressed for pixels in [0, 1].
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        made = processor.data_config
        _, height, width = made["input_size"]
        return InputSpec(_floats(made["mean"]), _floats(made["std"]), (height, width))
    says = processor.to_dict()
    level = round(255 * (says.get("rescale_factor") or 1 / 255) if says.get("do_rescale") else 255.0, 9)
    mean, std = says.get("image_mean"), says.get("image_std")
    if not says.get("do_normalize"):
        mean, std = [0.0] * len(mean or (0, 0, 0)), [1.0] * len(mean or (0, 0, 0))
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return None
    mean, std = (tuple(value / level for value in _floats(values)) for values in (mean, std))
    return InputSpec(mean, std, _processor_size(says))


def _stored_processor_spec(name_or_path: str) -> InputSpec | None:
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except OSError:  # there is no processor, or no connection
        return None
    return processor_spec(processor)


def _processor_size(says: dict[str, Any]) -> tuple[int, int] | None:
    """The size of a processor's output: after the crop, if there is one."""
    size = says.get("crop_size") if says.get("do_center_crop") else says.get("size")
    if size is None:
        return None
    size = dict(size)
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else None


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
