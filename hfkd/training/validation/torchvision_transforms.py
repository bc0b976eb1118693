"""What the torchvision transforms of a dataset say: how its images are resized, cropped and normalised.

B images, C channels, H height, W width.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.collate import RGB
from hfkd.models import InputSpec, Preparation
from hfkd.models.processors import METHODS, alike
from hfkd.utils.random_state import kept_random_state

COMPOSED = (v1.Compose, v2.Compose, nn.Sequential)
RESIZE, CROP, NORMALIZE = (v1.Resize, v2.Resize), (v1.CenterCrop, v2.CenterCrop), (v1.Normalize, v2.Normalize)
TO_TENSOR = (v1.ToTensor, v1.PILToTensor, v2.PILToTensor, v2.ToImage, v1.ConvertImageDtype, v2.ToDtype)
IN_PLACE = (v1.Lambda, v2.Lambda, v2.RGB, v2.Identity, v2.ToPureTensor, v1.ToPILImage, v2.ToPILImage)  # same H and W
SAYING = (*RESIZE, *CROP, *NORMALIZE, *TO_TENSOR)
KNOWN = (*SAYING, *IN_PLACE)


def normalize_of(dataset: Any) -> InputSpec | None:
    """The statistics of the `Normalize` in a dataset's transforms, if there is exactly one."""
    found = {
        InputSpec(tuple(map(float, one.mean)), tuple(map(float, one.std)), None)
        for holder in _holders(dataset)
        for one in _steps(holder)
        if isinstance(one, NORMALIZE)
    }
    return found.pop() if len(found) == 1 else None


class Written(NamedTuple):
    """How the transforms of a dataset say that they prepare pictures, which is verified by preparing some.

    transform: in the form of an image processor. shape: height and width of the pictures that it is for; None: any.
    """

    preparation: Preparation
    transform: Callable[..., Any]
    shape: tuple[int, int] | None

    def as_by(self, processor: BaseImageProcessor) -> bool | None:
        """Whether an image processor makes the same of pictures; None if the transforms do not take these."""
        try:
            with kept_random_state():
                return alike(processor, self.transform, self.shape)
        except Exception:  # a user's function may raise any error for a picture that is not its own
            return None


def written_preparation(
    dataset: Any, read: Callable[[Any], Tensor | None], reads_bytes: Callable[[Any], bool]
) -> Written | None:
    """What a dataset's transforms say, or for one without, whose pictures become floats from 0 to 1, that.

    read: the first images of a dataset [B, C, H, W], if they can be read; reads_bytes: whether they become floats and
    no more. None if there is more than one series of transforms, if it has another than those that resize, crop the
    centre and normalise, or if the images are not of its size, or not in colour.
    """
    series = {id(one): one for one in _holders(dataset) if any(isinstance(step, SAYING) for step in _steps(one))}
    if not series and reads_bytes(dataset):
        series = {0: v1.ToTensor()}
    images = read(dataset) if len(series) == 1 else None
    if images is None or images.shape[1] != RGB:
        return None
    (transform,) = series.values()
    steps = list(_steps(transform))
    said = _said(steps, (images.shape[-2], images.shape[-1]))
    if said is None:
        return None
    any_shape = isinstance(said.edge, tuple) or any(isinstance(step, CROP) for step in steps)
    return Written(said, _as_processor(transform), None if any_shape else said.size)


def _said(steps: Sequence[Any], size: tuple[int, int]) -> Preparation | None:
    """The preparation by the settings of the transforms; size: H and W of the images that they make."""
    resize, crop, norm = ([one for one in steps if isinstance(one, kind)] for kind in (RESIZE, CROP, NORMALIZE))
    if not all(isinstance(one, KNOWN) for one in steps) or max(len(resize), len(crop), len(norm)) > 1:
        return None
    if not any(isinstance(one, TO_TENSOR) for one in steps):  # an image processor may come after them
        return None
    if crop and (not resize or tuple(crop[0].size) != size or steps.index(crop[0]) < steps.index(resize[0])):
        return None
    edge: int | tuple[int, int] = min(size)  # images of the size as which they are stored
    method = "bicubic"
    if resize:
        sides, method = resize[0].size, getattr(resize[0].interpolation, "value", resize[0].interpolation)
        sides = [sides] if isinstance(sides, int) else list(sides)
        edge = sides[0] if len(sides) == 1 else (sides[0], sides[1])
        if resize[0].max_size is not None or method not in METHODS or (not crop and edge != size and edge != min(size)):
            return None
    mean, std = ([*map(float, norm[0].mean)], [*map(float, norm[0].std)]) if norm else ([0.0], [1.0])
    mean, std = (values * RGB if len(values) == 1 else values for values in (mean, std))
    return Preparation(tuple(mean), tuple(std), size, edge, str(method))


def _as_processor(transform: Callable[[Any], Any]) -> Callable[..., dict[str, Tensor]]:
    """A function like an image processor, of transforms that take pictures, or their bytes [C, H, W]."""

    def prepare(pictures: Sequence[Any], **options: Any) -> dict[str, Tensor]:
        try:
            made = [transform(picture) for picture in pictures]
        except Exception:  # of tensors, then
            made = [transform(pil_to_tensor(picture)) for picture in pictures]
        return {"pixel_values": torch.stack(made)}

    return prepare


def _holders(dataset: Any) -> list[Any]:
    """What may be transforms: the `set_transform` of a `datasets.Dataset` or, for a function, its outer variables, and
    the attributes of any other dataset, its class's included."""
    if isinstance(dataset, Dataset):
        return _referred(dataset.format["format_kwargs"].get("transform"))
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return list({**vars(type(dataset)), **getattr(dataset, "__dict__", {})}.values())


def _referred(transform: Any) -> list[Any]:
    """The transform itself, or, for a function, the outer variables that it uses."""
    if not inspect.isfunction(transform):
        return [transform]
    variables = inspect.getclosurevars(transform)
    return [*variables.nonlocals.values(), *variables.globals.values()]


def _steps(transform: Any) -> Iterator[Any]:
    """The transforms of a series, or a single one."""
    if isinstance(transform, COMPOSED):
        for part in transform.transforms if not isinstance(transform, nn.Sequential) else transform:
            yield from _steps(part)
    else:
        yield transform
