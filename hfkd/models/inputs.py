"""The image normalisation and size that a model expects."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from timm.models import get_model_input_config
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    TimmWrapperImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from hfkd.models.calling import Call
from hfkd.models.peers import Peers

PROCESSOR_FILES = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
IMAGE_DIMS = 4  # [B, C, H, W]
COLOURS = 4  # most channels of a picture: red, green, blue and infrared or opacity
SAME = 1e-3  # of a measured mean, std or gain, which rounding changes by less


@dataclass(frozen=True)
class InputSpec:
    """Per-channel `mean` and `std` of pixels in [0, 1]; `size` is (height, width), or None if any size is accepted.

    bgr: the channels are in the order blue, green, red (MobileViT), those of `mean` and `std` too.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    bgr: bool = False

    def __repr__(self) -> str:  # part of cache keys, which are older than `bgr`
        order = ", bgr=True" if self.bgr else ""
        return f"InputSpec(mean={self.mean!r}, std={self.std!r}, size={self.size!r}{order})"

    @property
    def in_words(self) -> str:
        """The normalisation, for messages."""
        return f"mean {self.mean}, std {self.std}" + (", channels in the order BGR" if self.bgr else "")

    def reversed(self) -> "InputSpec":
        """The same for images whose channels are in the reverse order."""
        return replace(self, mean=self.mean[::-1], std=self.std[::-1], bgr=not self.bgr)


def image_channels(model: nn.Module) -> int | None:
    """The number of image channels of a network, from its config or its first convolution."""
    said = getattr(getattr(model, "config", None), "num_channels", None)
    if isinstance(said, int):
        return said
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    read = None if first is None else first.in_channels
    own = getattr(getattr(model, "timm_model", model), "in_chans", None)
    # A convolution may read several pixels at once (TResNet). One that was put in by hand is not in timm's number.
    return own if isinstance(own, int) and (read is None or read > COLOURS) else read


def in_channels(images: Tensor, channels: int | None) -> Tensor:
    """Images [B, D, H, W] with `channels` channels: one channel is repeated to three, three are averaged to one.

    Other shapes (patches, videos) are unchanged.
    """
    if images.ndim != IMAGE_DIMS:
        return images
    if channels == 3 and images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    return images.mean(1, keepdim=True) if channels == 1 and images.shape[1] == 3 else images


def same_statistics(one: InputSpec, other: InputSpec, tolerance: float = 0.0) -> bool:
    """Whether both have the same normalisation, up to `tolerance` in each number; sizes are not compared."""
    if (len(one.mean), len(one.std), one.bgr) != (len(other.mean), len(other.std), other.bgr):
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
    if getattr(config, "name_or_path", "") and Call.of(model).takes_images:
        return _stored_processor_spec(config.name_or_path)
    return None


def resized_spec(model: nn.Module, size: int | None) -> InputSpec | None:
    """The `input_spec` of a model, for images enlarged or reduced to this size; None: as its config says."""
    if size is None:
        return None
    own = input_spec(model)
    if own is None:
        raise ValueError(
            f"teacher_image_size={size}: the config of the teacher, a {type(model).__name__}, has no mean and std for "
            "its images: save an image processor with it, or resize the data (image_size)"
        )
    return replace(own, size=(size, size))


def _timm_spec(timm_model: Any, saved: dict[str, Any]) -> InputSpec:
    cfg = {**timm_model.pretrained_cfg, **saved}
    built = get_model_input_config(timm_model)
    _, height, width = built["input_size"]
    mean, std = _floats(cfg["mean"]), _floats(cfg["std"])
    if image_channels(timm_model) == 1 and len(mean) == 3:  # timm's statistics are those of colour images
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return InputSpec(mean, std, (height, width) if built["fixed_input_size"] else None)


def processor_spec(processor: BaseImageProcessor) -> InputSpec | None:
    """The `InputSpec` of an image processor; None if it is not defined by mean, std, size and order of channels.

    What the processor makes of pictures of one colour has precedence over its settings: EfficientNet's normalises
    twice, MobileViT's reverses the channels.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        made = processor.data_config
        _, height, width = made["input_size"]
        return InputSpec(_floats(made["mean"]), _floats(made["std"]), (height, width))
    says = processor.to_dict()
    read = _said_spec(says)
    try:
        made = _of_colours(processor, grey=read is not None and len(read.mean) == 1)
    except Exception:  # a processor may fail in any way, for example where it needs a text too
        return read
    if made is None:
        return read
    size = _processor_size(says)
    if size is not None and says.get("do_resize"):  # Perceiver's crops to one size, and resizes to another
        size = made.shape[2], made.shape[3]
    return _measured_spec(made[:, :, made.shape[2] // 2, made.shape[3] // 2].double(), read, size)


def _said_spec(says: dict[str, Any]) -> InputSpec | None:
    """The `InputSpec` according to a processor's settings.

    (factor · byte - mean) / std, for a rescale factor other than 1/255, is expressed for pixels in [0, 1].
    """
    level = round(255 * (says.get("rescale_factor") or 1 / 255) if says.get("do_rescale") else 255.0, 9)
    mean, std = says.get("image_mean"), says.get("image_std")
    if not says.get("do_normalize"):
        mean, std = [0.0] * len(mean or (0, 0, 0)), [1.0] * len(mean or (0, 0, 0))
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return None
    mean, std = (tuple(value / level for value in _floats(values)) for values in (mean, std))
    return InputSpec(mean, std, _processor_size(says))


def _of_colours(processor: BaseImageProcessor, grey: bool) -> Tensor | None:
    """What a processor makes of pictures in black and in each primary colour, or white: [1 + C, C, H, W].

    None for other outputs, such as patches.
    """
    mode, colours = ("L", (0, 255)) if grey else ("RGB", ("black", "#f00", "#0f0", "#00f"))
    pictures = [Image.new(mode, (64, 64), colour) for colour in colours]
    made = processor(pictures, return_tensors="pt")["pixel_values"]
    if not isinstance(made, Tensor) or made.ndim != IMAGE_DIMS or made.shape[:2] != (len(colours), len(colours) - 1):
        return None
    return made


def _measured_spec(made: Tensor, read: InputSpec | None, size: tuple[int, int] | None) -> InputSpec | None:
    """The `InputSpec` that makes the pixels [1 + C, C] of black and of each colour; `read` is preferred for its digits.

    None if a channel does not depend on one colour alone.
    """
    black, gains = made[0], made[1:] - made[0]
    bgr = bool(gains[0, 0] == 0)
    own = (gains.flip(0) if bgr else gains).diagonal()
    others = gains.abs().sum() - own.abs().sum()
    if bool((own <= 0).any()) or others > SAME * own.sum():
        return None
    mean, std = (-black / own).tolist(), (1 / own).tolist()
    found = InputSpec(tuple(round(m, 6) for m in mean), tuple(round(s, 6) for s in std), size, bgr)
    as_read = None if read is None else replace(read, size=size, bgr=bgr)
    return as_read if as_read is not None and same_statistics(as_read, found, SAME) else found


def _stored_processor_spec(name_or_path: str) -> InputSpec | None:
    """The `InputSpec` of the image processor stored with a model; None without one. Warns of one that is unreadable."""
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        stored = any(os.path.isfile(os.path.join(name_or_path, name)) for name in PROCESSOR_FILES)
        if stored or isinstance(error, ValueError):
            warnings.warn(
                f"The image processor of {name_or_path} cannot be read ({error}), so that the normalisation that the "
                "model expects is not known, and a teacher gets the images unchanged: correct its file, or say it by "
                "FrozenTeacher(teacher, wanted=InputSpec(mean, std, size)).",
                stacklevel=3,
            )
        return None  # also without a connection
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
