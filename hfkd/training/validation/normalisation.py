"""Finds out how the images of a dataset are normalised: from transforms and processors, or from the pixels.

B images, C channels, H height, W width.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.collate import ImageCollator, views_as_rows
from hfkd.data.epochs import common_transform
from hfkd.data.first_rows import map_style, sets_by_name
from hfkd.models import InputSpec, input_spec, processor_spec, same_statistics
from hfkd.teachers import FrozenTeacher, Teacher
from hfkd.training.validation.torchvision_transforms import normalize_of
from hfkd.utils.numbers import CIFAR_MEAN, CIFAR_STD
from hfkd.utils.random_state import kept_random_state

COMMON = (
    InputSpec((0.0,) * 3, (1.0,) * 3, None),  # ToTensor alone
    InputSpec(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, None),
    InputSpec(IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD, None),
    InputSpec(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, None),
    InputSpec(CIFAR_MEAN, CIFAR_STD, None),
)
PROBED = 4  # images
TOLERANCE = 0.02  # in units of the 256 levels; by chance one value in 25 is this near to a level
NEGLIGIBLE = 1e-3  # a difference of means or stds without an effect
BGR_UNKNOWN = (
    "The image processor of the student's config reverses the channels to BGR, and nobody says whether that of the "
    "training images did: they are taken as RGB. Pass the image processor of your images as processing_class=."
)
DISTINCT, SHARE = 16, 0.9  # minimum number of values of a channel, and share of them near a level


@dataclass(frozen=True)
class Received:
    """How images are normalised. spec: None if it is not known.

    certain: known from the transform or processor, or verified on the pixels, and not just taken from the student's
    config. size: height and width of the first images, if these were read.
    """

    spec: InputSpec | None
    certain: bool
    size: tuple[int, int] | None = None


@dataclass
class ImageInputs:
    """Sources for the normalisation of a dataset's images. `believed`: from configs, the student's first.

    told: passed as FrozenTeacher(received=), which takes precedence.
    """

    collate: Callable[[list[Any]], Any]
    processing_class: Any
    believed: Sequence[InputSpec | None]
    told: InputSpec | None = None

    @classmethod
    def between(
        cls, student: nn.Module, teacher: Any, collate: Callable[[list[Any]], Any], processing_class: Any
    ) -> "ImageInputs":
        """For a student and its teacher, a list of teachers, or None."""
        several = teacher if isinstance(teacher, (list, tuple)) else [] if teacher is None else [teacher]
        teachers = [member for one in several for member in (one.members if isinstance(one, Teacher) else (one,))]
        live = [one for one in teachers if isinstance(one, FrozenTeacher)]
        wanted = [one.wanted if isinstance(one, FrozenTeacher) else input_spec(one) for one in teachers]
        told = next((one.received for one in live if one.received is not None), None)
        return cls(collate, processing_class, [input_spec(student), *wanted], told)

    def of(self, dataset: Any) -> Received:
        """How the images of `dataset` are normalised, from the first source that applies.

        These are the caller; hfkd's own transform; the image processor that makes the tensors in the collator; the
        pixels: images are bytes, so with the right statistics x · std + mean is a multiple of 1/255 (tried: `Normalize`
        of the dataset's transform, the image processor, `believed`, and common statistics); the only `Normalize` of a
        torchvision transform; the image processor; and, as uncertain, the student's config. Pixels do not tell the
        order of channels, which is RGB unless the caller or the processor says otherwise. The random state is left
        unchanged.
        """
        transform = common_transform(dataset)
        if transform is not None and transform.mean is not None and transform.std is not None:
            return Received(self.told or InputSpec(transform.mean, transform.std, None), True)
        given = processor_spec(self.processing_class) if isinstance(self.processing_class, BaseImageProcessor) else None
        images, processed = _first_images(dataset, self.collate)
        size = None if images is None else (images.shape[-2], images.shape[-1])
        written = normalize_of(dataset)
        believed = [spec and replace(spec, bgr=False) for spec in self.believed]
        proved = None if images is None else _proved(images, [written, given, *believed, *COMMON])
        if self.told is None and given is None and self.believed[0] is not None and self.believed[0].bgr:
            warnings.warn(BGR_UNKNOWN, stacklevel=4)
        for spec in (self.told, given if processed else None, proved, written, given):
            if spec is not None:
                return Received(spec, True, size)
        return Received(believed[0], False, size)

    def read(self, dataset: Any) -> Tensor | None:
        """The first images [B, C, H, W] of a dataset, if they can be read."""
        return _first_images(dataset, self.collate)[0]

    def reads_bytes(self, dataset: Any) -> bool:
        """Whether the collator makes floats from 0 to 1 of a dataset's pictures or bytes, and no more of them."""
        if not isinstance(self.collate, ImageCollator) or self.collate.processor is not None or not map_style(dataset):
            return False
        with kept_random_state():
            row = dataset[0] if len(dataset) else {}
        image = row.get("pixel_values") if isinstance(row, Mapping) else row[0]
        return isinstance(image, Image.Image) or getattr(image, "dtype", None) in (torch.uint8, np.uint8)

    def compare(self, training: Received, eval_dataset: Any) -> None:
        """Warn if the images of an evaluation set are normalised differently from the training images."""
        learnt = training.spec if training.certain else None
        for name, part in sets_by_name(eval_dataset).items():
            found = Received(None, False) if part is None or learnt is None else self.of(part)
            scored = found.spec if found.certain else None
            if learnt is None or scored is None or same_statistics(scored, learnt, NEGLIGIBLE):
                continue
            warnings.warn(
                f"The images of {name} have {scored.in_words}, those of train_dataset {learnt.in_words}: the student "
                "would be evaluated on inputs unlike its training inputs. Normalise both in the same way.",
                stacklevel=3,
            )


@contextmanager
def receiving(teacher: Any, inputs: ImageInputs | None, dataset: Any) -> Iterator[None]:
    """Context in which a live teacher expects the normalisation of `dataset`, if that is known for certain."""
    found = inputs.of(dataset) if inputs is not None and isinstance(teacher, FrozenTeacher) else Received(None, False)
    if found.certain:
        with teacher.receiving(found.spec):
            yield
    else:
        yield


def normalisation(inputs: ImageInputs | None, datasets: Mapping[str, Any]) -> Received:
    """How the training images are normalised; warns of an evaluation set that is normalised differently."""
    if inputs is None:
        return Received(None, True)
    scored = datasets["eval_dataset"]
    if datasets["train_dataset"] is None:
        first = next(iter(scored.values()), None) if isinstance(scored, dict) else scored
        return Received(inputs.believed[0], True) if first is None else inputs.of(first)
    training = inputs.of(datasets["train_dataset"])
    inputs.compare(training, scored)
    return training


def refuse_other_normalisation(before: Received, now: Received) -> None:
    """Raise ValueError where training images that are set later are normalised otherwise than those before them."""
    if not now.certain or now.spec is None or (before.spec and same_statistics(before.spec, now.spec, NEGLIGIBLE)):
        return
    said = "in a way that nobody says" if before.spec is None else f"by {before.spec.in_words}"
    raise ValueError(
        f"train_dataset has been set to images of {now.spec.in_words}, and the trainer was built "
        f"with images normalised {said}, from which the teacher's are made: normalise both alike, or build another "
        "trainer"
    )


def warn_of_normalisation(said: InputSpec | None, wanted: InputSpec | None) -> None:
    """Warn if the normalisation is only taken from the student's config and differs from the teacher's."""
    if wanted is None or (said is not None and same_statistics(said, wanted, NEGLIGIBLE)):
        return
    how = (
        "and the normalisation of the training images is unknown: the teacher gets them unchanged"
        if said is None
        else f"and the student's config has {said.in_words}, which the training images are "
        "assumed to have: they are re-normalised accordingly for the teacher"
    )
    warnings.warn(
        f"The teacher was trained on images of {wanted.in_words}, {how}. If your transform "
        "normalises differently, the teacher gets wrong pixel values: pass the image processor of your images as "
        "processing_class=, "
        "or teacher=FrozenTeacher(teacher, received=InputSpec(mean, std, None)) with your transform's mean and std.",
        stacklevel=4,
    )


def _first_images(dataset: Any, collate: Callable[[list[Any]], Any]) -> tuple[Tensor | None, bool]:
    """Images [B, C, H, W] of the first rows, if these can be read; and whether an image processor made them."""
    if not map_style(dataset) or len(dataset) == 0:
        return None, False
    with kept_random_state():
        rows = [dataset[i] for i in range(min(PROBED, len(dataset)))]
        images = views_as_rows(collate(rows)).get("pixel_values")
    pictures = not isinstance(rows[0], dict) or not isinstance(rows[0].get("pixel_values"), Tensor)
    processed = isinstance(collate, ImageCollator) and collate.processor is not None and pictures
    return (images if isinstance(images, Tensor) and images.ndim == 4 else None), processed


def _proved(images: Tensor, candidates: Iterable[InputSpec | None]) -> InputSpec | None:
    """The candidate with which the pixels are bytes; None if there is none, or too few pixels to decide."""
    if images.dtype != torch.float32:
        return None
    fits = [(_deviation(images, spec), spec) for spec in candidates if spec is not None]
    deviation, spec = min(fits, key=lambda fit: fit[0], default=(float("inf"), None))
    return spec if deviation <= TOLERANCE else None


def _deviation(images: Tensor, spec: InputSpec) -> float:
    """The largest distance of the pixels, un-normalised with `spec`, from integers 0 to 255; infinite if out of range.

    Only the `SHARE` nearest of each channel's distinct values count: random erasing or padding after the normalisation
    gives values that are not bytes.
    """
    channels = images.shape[1]
    if len(spec.mean) not in (1, channels):
        return float("inf")
    worst = 0.0
    for channel in range(channels):
        mean, std = (values[channel % len(values)] for values in (spec.mean, spec.std))
        levels = 255 * (images[:, channel].unique().cpu().double() * std + mean)
        if len(levels) < DISTINCT or levels.min() < -TOLERANCE or levels.max() > 255 + TOLERANCE:
            return float("inf")
        off = (levels - levels.round()).abs().sort().values
        worst = max(worst, off[int(SHARE * (len(off) - 1))].item())
    return worst
