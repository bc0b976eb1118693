"""What a saved student says of its images and classes: what it was trained on and scored with."""

import logging
import warnings
from typing import Any

from torch import nn
from transformers import TimmWrapperForImageClassification
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.epochs import image_transform
from hfkd.models import Peers, Preparation, processor_spec, same_statistics
from hfkd.models.processors import alike, resizes, timm_inputs, timm_wrappers
from hfkd.training.host import Host
from hfkd.training.validation.label_maps import write_label_names
from hfkd.training.validation.normalisation import NEGLIGIBLE, Received

logger = logging.getLogger(__name__)


def preparation(dataset: Any, received: Received) -> Preparation | None:
    """What evaluation does to the pictures of a dataset whose transform is hfkd's; None for others."""
    transform = image_transform(dataset)
    if transform is None:
        return None
    size, edge, interpolation = transform.resizing
    height, width = (size, size) if size is not None else received.size or dataset[0]["pixel_values"].shape[-2:]
    return Preparation(transform.mean, transform.std, (height, width), edge or min(height, width), interpolation)


def check_processor(processing_class: Any, student: nn.Module, dataset: Any, received: Received) -> None:
    """Raise ValueError for an image processor that does not prepare images as training does, and would be saved.

    Where a transform of the caller's own made the pixels, only their statistics can be compared: a warning.
    """
    if not isinstance(processing_class, BaseImageProcessor) or dataset is None:
        return
    name, given = type(processing_class).__name__, processor_spec(processing_class)
    prepared = preparation(dataset, received)
    if prepared is not None:
        if not alike(processing_class, prepared.processor, None if resizes(processing_class) else prepared.size):
            raise ValueError(
                f"processing_class={name} prepares images in another way ({given}) than the dataset's transform "
                f"({prepared}), and would be saved with the student: leave processing_class out, hfkd writes the one "
                "that fits"
            )
        return
    if given is None:
        return
    if received.certain and received.spec and not same_statistics(received.spec, given, NEGLIGIBLE):
        warnings.warn(
            f"processing_class={name} normalises with mean {given.mean}, std {given.std}, but the training images have "
            f"mean {received.spec.mean}, std {received.spec.std}: whoever loads the saved student prepares images "
            "otherwise than it was trained on. Normalise the training images as the processor does, or pass another.",
            stacklevel=3,
        )
    if timm_wrappers(student) and timm_inputs(processing_class, given, received.size) is None:
        raise ValueError(
            f"processing_class={name} prepares images in a way that a timm model's config, where AutoImageProcessor "
            "looks for it, cannot say: pass a processor that resizes, crops the centre and normalises, such as "
            "hfkd.models.image_processor(mean, std, size), or a student of transformers"
        )


def record_inputs(trainer: Host) -> None:
    """Write into the student's config what its classes are called and how its images are prepared.

    By hfkd's transform, else the image processor, else the statistics of the training images; says where nobody knows
    them. A student of transformers gets an image processor of its own (`processing_class`) for hfkd's transforms.
    """
    student, given = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    write_label_names(student, trainer.class_names)
    if trainer.image_inputs is None or trainer.train_dataset is None:
        return
    evaluated = trainer.eval_dataset if image_transform(trainer.eval_dataset) is not None else trainer.train_dataset
    prepared = preparation(evaluated, trainer.received)
    if prepared is not None:
        written = _write(student, prepared.in_timm)
        if not written and given is None:
            trainer.processing_class = prepared.processor
        return
    entries = _known(given, trainer.received)
    if entries is not None:
        _write(student, entries)
    elif timm_wrappers(student):
        logger.warning(
            "Nobody says how the training images are normalised, so the saved student's config keeps mean and std of "
            "its architecture, which may be others: pass processing_class=hfkd.models.image_processor(mean, std, size)."
        )


def _known(given: Any, received: Received) -> dict[str, Any] | None:
    """What a timm config can say, from an image processor or else the training images' own statistics."""
    known = received.spec if received.certain else None
    own = None if known is None else {"mean": list(known.mean), "std": list(known.std)}
    spec = processor_spec(given) if isinstance(given, BaseImageProcessor) else None
    if spec is not None:
        return (timm_inputs(given, spec, received.size) or {}) | (own or {})
    if own is None or known is None:
        return None
    return own if received.size is None else own | {"input_size": [len(known.mean), *received.size]}


def _write(student: nn.Module, entries: dict[str, Any]) -> bool:
    """Put entries into the `pretrained_cfg` of a timm model, bare or wrapped, or of peers; False for other models."""
    written = False
    for model in student.peers if isinstance(student, Peers) else [student]:
        if isinstance(model, TimmWrapperForImageClassification):
            model.config.pretrained_cfg = {**(model.config.pretrained_cfg or {}), **entries}
            written = True
        elif "pretrained_cfg" in vars(model):
            vars(model)["pretrained_cfg"].update(entries)
            written = True
    return written
