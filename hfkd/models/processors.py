"""Image processors: what they make of a picture, and the same said in the config of a timm model.

H height, W width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, TimmWrapperForImageClassification, TimmWrapperImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from hfkd.models.inputs import InputSpec
from hfkd.models.peers import Peers

ALIKE = 0.1  # mean difference, of the pictures' contrast: rounding gives up to 0.07 at 32 pixels, another crop 0.15
USUAL_SHARE = 0.875
PICTURES = ((40, 60), (90, 64), (64, 64))  # heights and widths of test pictures


@dataclass(frozen=True)
class Preparation:
    """What evaluation does to a picture: its shortest edge becomes `edge`, the centre is cut out, it is normalised.

    size: (H, W) of the crop. interpolation: bilinear or bicubic.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    edge: int
    interpolation: str = "bicubic"

    @property
    def in_timm(self) -> dict[str, Any]:
        """The entries of a timm model's `pretrained_cfg` that say the same."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "input_size": [len(self.mean), *self.size],
            "crop_pct": crop_share(min(self.size), self.edge),
            "crop_mode": "center",
            "interpolation": self.interpolation,
        }

    @property
    def processor(self) -> BaseImageProcessor:
        """An image processor that does the same."""
        return image_processor(self.mean, self.std, self.size, self.edge, self.interpolation)


def image_processor(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int],
    edge: int | None = None,
    interpolation: str = "bicubic",
) -> BaseImageProcessor:
    """An image processor that resizes a picture's shortest edge to `edge`, crops its centre to `size`, and normalises.

    Without `edge` the crop takes all of the shorter side.
    """
    return CLIPImageProcessor(
        size={"shortest_edge": edge or min(size)},
        crop_size={"height": size[0], "width": size[1]},
        image_mean=mean,
        image_std=std,
        resample=getattr(PILImageResampling, interpolation.upper()),
    )


def crop_share(size: int, edge: int) -> float:
    """timm's `crop_pct`: the number that it resizes the shortest edge to `edge` for, floor(size / crop_pct)."""
    share = size / edge
    return share if math.floor(size / share) == edge else math.nextafter(share, 0.0)


def timm_wrappers(model: nn.Module) -> list[TimmWrapperForImageClassification]:
    """The timm models in transformers' wrapper, whose config says how images are prepared; those of `Peers` too."""
    return [
        one
        for one in (model.peers if isinstance(model, Peers) else [model])
        if isinstance(one, TimmWrapperForImageClassification)
    ]


def timm_inputs(processor: BaseImageProcessor, spec: InputSpec, size: tuple[int, int] | None) -> dict[str, Any] | None:
    """The entries of a timm model's `pretrained_cfg` that prepare images as `processor` does.

    spec: its statistics and size. size: that of the tensors in training, for a processor that does not resize. Proved
    by preparing pictures both ways; None where timm has no words for it (channels turned round, padding, offsets).
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
    """Whether a processor brings pictures to a size of its own."""
    return bool(processor.to_dict().get("do_resize", True))


def alike(one: BaseImageProcessor, other: BaseImageProcessor, size: tuple[int, int] | None = None) -> bool:
    """Whether two processors make the same of pictures of several shapes, or of the one shape `size`."""
    return difference(one, other, size) < ALIKE


def difference(one: BaseImageProcessor, other: BaseImageProcessor, size: tuple[int, int] | None = None) -> float:
    """How far apart they are on the worst picture, of its contrast; infinite where they make other shapes."""
    worst = 0.0
    for shape in (size,) if size is not None else PICTURES:
        mine, its = (p([_picture(*shape)], return_tensors="pt")["pixel_values"] for p in (one, other))
        if mine.shape != its.shape:
            return math.inf
        worst = max(worst, ((mine - its).abs().mean() / mine.std()).item())
    return worst


def _picture(height: int, width: int) -> Image.Image:
    """Smooth, without symmetry, and another in each channel."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    planes = [0.5 + 0.5 * torch.sin(6 * (a * x + b * y)) for a, b in ((1.0, 0.6), (-0.7, 1.0), (0.3, -1.2))]
    return Image.fromarray((255 * torch.stack(planes, -1)).round().byte().numpy())
