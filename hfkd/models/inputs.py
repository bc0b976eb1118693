"""What a model wants to see: normalisation and image size."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from timm.models import get_model_input_config
from torch import nn
from transformers import AutoImageProcessor, CLIPImageProcessor, TimmWrapperForImageClassification
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.models.peers import Peers


@dataclass(frozen=True)
class InputSpec:
    """Per-channel `mean` and `std` of pixels in [0, 1]; `size` is (height, width), or None when any size is fine."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None


def input_spec(model: nn.Module) -> InputSpec | None:
    """The `InputSpec` of a timm model, bare or in transformers' wrapper, or of a Hub model; None when it does not say.

    A timm model fixes its size only when it is built for one (`fixed_input_size`: ViT, Swin). The numbers of a saved
    wrapper are those in its config; a Hub model that is not timm's has them in its image processor.
    """
    config: Any = getattr(model, "config", None)
    timm_model: Any = getattr(model, "timm_model", model)
    if getattr(timm_model, "pretrained_cfg", None):
        return _timm_spec(timm_model, getattr(config, "pretrained_cfg", None) or {})
    if getattr(config, "name_or_path", ""):
        return _processor_spec(config.name_or_path)
    return None


def record_statistics(
    model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int] | None = None
) -> bool:
    """Write into a timm model, bare or wrapped, the normalisation (and height and width) it is being trained with.

    Saved with its config, so that whoever loads it, as a teacher say, feeds it what it knows; AutoImageProcessor reads
    it there. False for other models, which keep this in an image processor of their own.
    """
    statistics: dict[str, Any] = {"mean": list(mean), "std": list(std)}
    if size is not None:
        statistics |= {"input_size": [len(mean), *size], "crop_pct": 1.0}
    if isinstance(model, TimmWrapperForImageClassification):
        model.config.pretrained_cfg = {**(model.config.pretrained_cfg or {}), **statistics}
    elif isinstance(model, Peers):
        for peer in model.peers:
            record_statistics(peer, mean, std, size)
    elif "pretrained_cfg" in vars(model):
        vars(model)["pretrained_cfg"].update(statistics)
    else:
        return False
    return True


def image_processor(mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]) -> BaseImageProcessor:
    """An image processor that does what hfkd's data does to a picture: fit to `size`, crop the centre, normalise."""
    return CLIPImageProcessor(
        size={"shortest_edge": min(size)},
        crop_size={"height": size[0], "width": size[1]},
        image_mean=mean,
        image_std=std,
    )


def _timm_spec(timm_model: Any, saved: dict[str, Any]) -> InputSpec:
    cfg = {**timm_model.pretrained_cfg, **saved}
    built = get_model_input_config(timm_model)
    _, height, width = built["input_size"]
    return InputSpec(_floats(cfg["mean"]), _floats(cfg["std"]), (height, width) if built["fixed_input_size"] else None)


def _processor_spec(name_or_path: str) -> InputSpec | None:
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except OSError:  # saved or published without one, or offline
        return None
    if not processor.do_normalize:
        channels = len(processor.image_mean or (0, 0, 0))
        return InputSpec((0.0,) * channels, (1.0,) * channels, _processor_size(processor))
    return InputSpec(_floats(processor.image_mean), _floats(processor.image_std), _processor_size(processor))


def _processor_size(processor: Any) -> tuple[int, int] | None:
    """The size of the tensor the processor hands to the model: after the crop, where there is one."""
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    if size is None:
        return None
    size = dict(size)
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else None


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
