"""Image processors: comparison by their outputs, and conversion to the config of a timm model.

H height, W width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, TimmWrapperForImageClassification, TimmWrapperImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from hfkd.models.inputs import InputSpec
from hfkd.models.peers import networks_of

ALIKE = (
    0.1  # mean difference relative to the standard deviation: rounding gives up to 0.07 at 32 pixels, another crop 0.15
)
USUAL_SHARE = 0.875
METHODS = ("bilinear", "bicubic")
Processes = Callable[..., Any]  # an image processor, or a function with the arguments and outputs of one
PICTURES = ((40, 60), (90, 64), (64, 64))  # heights and widths of the test images


@dataclass(frozen=True)
class Preparation:
    """The image preparation of evaluation: resize the shortest edge to `edge`, crop the centre, normalise.

    size: (H, W) of the crop. edge: or both sides, (H, W). interpolation: bilinear or bicubic.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    edge: int | tuple[int, int]
    interpolation: str = "bicubic"

    @property
    def in_timm(self) -> dict[str, Any]:
        """The equivalent entries of a timm model's `pretrained_cfg`."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "input_size": [len(self.mean), *self.size],
            "crop_pct": crop_share(min(self.size), min(self.edge) if isinstance(self.edge, tuple) else self.edge),
            "crop_mode": "squash" if isinstance(self.edge, tuple) else "center",
            "interpolation": self.interpolation,
        }

    @property
    def processor(self) -> BaseImageProcessor:
        """The equivalent image processor."""
        return image_processor(self.mean, self.std, self.size, self.edge, self.interpolation)


def image_processor(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int],
    edge: int | tuple[int, int] | None = None,
    interpolation: str = "bicubic",
) -> BaseImageProcessor:
    """An image processor that resizes the shortest edge to `edge`, crops the centre to `size`, and normalises.

    edge: or both sides, (H, W), whatever their ratio was. Without it, the shortest edge is resized to the smaller side
    of the crop.
    """
    sides = {"height": edge[0], "width": edge[1]} if isinstance(edge, tuple) else {"shortest_edge": edge or min(size)}
    return CLIPImageProcessor(
        size=sides,
        crop_size={"height": size[0], "width": size[1]},
        image_mean=mean,
        image_std=std,
        resample=getattr(PILImageResampling, interpolation.upper()),
    )


def crop_share(size: int, edge: int) -> float:
    """timm's `crop_pct` with which it resizes the shortest edge to `edge` = floor(size / crop_pct)."""
    share = size / edge
    return share if math.floor(size / share) == edge else math.nextafter(share, 0.0)


def in_preparation(processor: TimmWrapperImageProcessor) -> Preparation | None:
    """The preparation by a timm model's image processor; None if it pads images instead of cropping them."""
    said = processor.data_config
    mean, std = (tuple(map(float, said[name])) for name in ("mean", "std"))
    _, height, width = said["input_size"]
    sides = tuple(math.floor(side / said["crop_pct"]) for side in (height, width))
    edge = sides if said["crop_mode"] == "squash" else min(sides)
    made = Preparation(mean, std, (height, width), edge, said["interpolation"])
    return made if said["interpolation"] in METHODS and alike(processor, made.processor) else None


def timm_wrappers(model: nn.Module) -> list[TimmWrapperForImageClassification]:
    """The timm models in transformers' wrapper, whose config contains the image preparation; also those in `Peers`."""
    return [one for one in networks_of(model) if isinstance(one, TimmWrapperForImageClassification)]


def timm_inputs(processor: BaseImageProcessor, spec: InputSpec, size: tuple[int, int] | None) -> dict[str, Any] | None:
    """The entries of a timm model's `pretrained_cfg` that prepare images like `processor`.

    spec: the processor's statistics and size. size: that of the training images, for a processor that does not resize.
    The entries are verified by preparing test images both ways; None if timm has no equivalent (reversed channels,
    padding, offsets).
    """
    own = None if resizes(processor) else size
    tried = [(difference(processor, TimmWrapperImageProcessor(e), own), e) for e in _candidates(processor, spec, size)]
    best, entries = min(tried, key=lambda one: one[0], default=(math.inf, None))
    return entries if best < ALIKE else None


def _candidates(
    processor: BaseImageProcessor, spec: InputSpec, size: tuple[int, int] | None
) -> Iterator[dict[str, Any]]:
    if isinstance(processor, TimmWrapperImageProcessor):
        yield {k: list(v) if isinstance(v, tuple) else v for k, v in processor.data_config.items()}
        return
    says = processor.to_dict()
    made = spec.size if resizes(processor) else size
    if made is None:
        return
    resample = says.get("resample")
    base: dict[str, Any] = {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "input_size": [len(spec.mean), *made],
        "interpolation": "bilinear" if resample is None else PILImageResampling(resample).name.lower(),
    }
    resized = dict(says.get("size") or {}) if resizes(processor) else {}
    edge = resized.get("shortest_edge") or resized.get("height") or min(made)
    for share in dict.fromkeys((crop_share(min(made), edge), says.get("crop_pct"), USUAL_SHARE)):
        for mode in ("center", "squash") if share else ():
            yield base | {"crop_pct": share, "crop_mode": mode}


def resizes(processor: BaseImageProcessor) -> bool:
    """Whether a processor resizes images."""
    return bool(processor.to_dict().get("do_resize", True))


def alike(one: Processes, other: Processes, size: tuple[int, int] | None = None) -> bool:
    """Whether two processors have the same outputs for images of several shapes, or of the shape `size`."""
    return difference(one, other, size) < ALIKE


def difference(one: Processes, other: Processes, size: tuple[int, int] | None = None) -> float:
    """The largest difference of their outputs, relative to the standard deviation; infinite for different shapes."""
    worst = 0.0
    for shape in (size,) if size is not None else PICTURES:
        mine, its = (p([_picture(*shape)], return_tensors="pt")["pixel_values"] for p in (one, other))
        if mine.shape != its.shape:
            return math.inf
        worst = max(worst, ((mine - its).abs().mean() / mine.std()).item())
    return worst


def _picture(height: int, width: int) -> Image.Image:
    """A smooth test image without symmetry, different in each channel."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    planes = [0.5 + 0.5 * torch.sin(6 * (a * x + b * y)) for a, b in ((1.0, 0.6), (-0.7, 1.0), (0.3, -1.2))]
    return Image.fromarray((255 * torch.stack(planes, -1)).round().byte().numpy())
