"""Records in the saved student how its images are prepared, the names of its classes, and where its texts end."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.epochs import ImageEpochTransform, common_transform
from hfkd.data.first_rows import sets_by_name
from hfkd.models import InputSpec, Preparation, processor_spec, same_statistics
from hfkd.models.calling import Call, bare
from hfkd.models.peers import networks_of
from hfkd.models.processors import alike, in_preparation, resizes, timm_inputs, timm_wrappers
from hfkd.models.writing import record_ends
from hfkd.tasks.base import Task
from hfkd.training.given_collator import tokenizer_of_rows
from hfkd.training.host import Host
from hfkd.training.validation.label_maps import write_label_names
from hfkd.training.validation.normalisation import NEGLIGIBLE, ImageInputs, Received
from hfkd.training.validation.torchvision_transforms import Written, written_preparation

logger = logging.getLogger(__name__)

CLASSIFICATION = "image-classification"


def preparation(dataset: Any, received: Received) -> Preparation | None:
    """How evaluation prepares the images of a dataset with hfkd's transform; None for other datasets."""
    transform = common_transform(dataset)
    if not isinstance(transform, ImageEpochTransform):
        return None
    size, edge, interpolation = transform.resizing
    height, width = (size, size) if size is not None else received.size or dataset[0]["pixel_values"].shape[-2:]
    return Preparation(transform.mean, transform.std, (height, width), edge or min(height, width), interpolation)


def _of_sets(scored: Any, rows: Any, received: Received) -> Preparation | None:
    """`preparation` of the first evaluation set that has one, else of the training rows."""
    found = (preparation(one, received) for one in (*sets_by_name(scored).values(), rows))
    return next((one for one in found if one is not None), None)


def of_evaluation(trainer: Host) -> Preparation | None:
    """How the images are prepared on which the student is evaluated; None if that is not known for certain."""
    prepared = _of_sets(trainer.eval_dataset, trainer.train_dataset, trainer.received)
    if prepared is not None or trainer.processing_class is not None:
        return prepared
    written = _written(trainer.eval_dataset, trainer.train_dataset, trainer.image_inputs, trainer.task, trainer.call)
    students = networks_of(extract_model_from_parallel(trainer.model, keep_torch_compile=False))
    if written is None or not all(written.as_by(_loaded(written, one)) for one in students):
        return None
    return written.preparation


def _written(scored: Any, rows: Any, inputs: ImageInputs | None, task: Task, call: Call) -> Written | None:
    """What the torchvision transforms of the evaluated rows say, if they are understood; not where masks need them."""
    if inputs is None or task.hub_tag(call) != CLASSIFICATION:
        return None
    first = next(iter(sets_by_name(scored).values()), None)
    evaluated = rows if first is None else first
    found = written_preparation(evaluated, inputs.read, inputs.reads_bytes)
    received = inputs.of(evaluated) if found is not None else None
    if found is None or received is None or received.spec is None or not received.certain:
        return None
    said = InputSpec(found.preparation.mean, found.preparation.std, None)
    return found if same_statistics(said, received.spec, NEGLIGIBLE) else None  # the collator may normalise too


def _loaded(written: Written, student: nn.Module) -> BaseImageProcessor:
    """The image processor that is loaded with a saved student."""
    prepared = written.preparation
    return TimmWrapperImageProcessor(prepared.in_timm) if timm_wrappers(student) else prepared.processor


def check_processor(
    processing_class: Any,
    student: nn.Module,
    data: Mapping[str, Any],
    received: Received,
    inputs: ImageInputs | None,
    task: Task,
    call: Call,
) -> None:
    """Raise ValueError for an image processor that prepares images differently from training, as it would be saved.

    Where a user's own transform does it, a difference is a warning: of the statistics, and for torchvision's transforms
    of size and crop.
    """
    rows, scored = data["train_dataset"], data["eval_dataset"]
    if not isinstance(processing_class, BaseImageProcessor) or rows is None:
        return
    name, given = type(processing_class).__name__, processor_spec(processing_class)
    prepared = _of_sets(scored, rows, received)
    if prepared is not None:
        if not alike(processing_class, prepared.processor, None if resizes(processing_class) else prepared.size):
            raise ValueError(
                f"processing_class={name} prepares images differently ({given}) from the dataset's transform "
                f"({prepared}), and would be saved with the student: leave processing_class out, and hfkd saves a "
                "matching one"
            )
        return
    if given is None:
        return
    written = _written(scored, rows, inputs, task, call)
    if received.certain and received.spec and not same_statistics(received.spec, given, NEGLIGIBLE):
        warnings.warn(
            f"processing_class={name} normalises with {given.in_words}, but the training images have "
            f"{received.spec.in_words}: users of the saved student would prepare images "
            "differently from training. Normalise the training images as the processor does, or pass a matching "
            "processor.",
            stacklevel=3,
        )
    elif written is not None and written.as_by(processing_class) is False:
        warnings.warn(
            f"processing_class={name} resizes or crops images differently from the transforms of the evaluated ones "
            f"({written.preparation}): users of the saved student would prepare images differently from evaluation. "
            "Leave processing_class out, and hfkd saves a matching one.",
            stacklevel=3,
        )
    if timm_wrappers(student) and timm_inputs(processing_class, given, received.size) is None:
        raise ValueError(
            f"processing_class={name} prepares images in a way that cannot be stored in a timm model's config, "
            "from which AutoImageProcessor reads it: pass a processor that resizes, crops the centre and "
            "normalises, such as "
            "hfkd.models.image_processor(mean, std, size), or a student of transformers"
        )


def record_inputs(trainer: Host) -> None:
    """Write class names, ends of sequence and image preparation into the student's configs.

    The preparation is taken from hfkd's transform, else the image processor, else torchvision's transforms, else the
    statistics of the training images; warns if it is unknown. Where transforms say it a student gets an image processor
    (`processing_class`), except a timm model in transformers' wrapper, which is loaded with the preparation in its
    config.
    """
    student, given = extract_model_from_parallel(trainer.model, keep_torch_compile=False), trainer.processing_class
    write_problem_type(student, trainer.task)
    write_label_names(student, trainer.class_names)
    for one in networks_of(student):
        record_ends(one, tokenizer_of_rows(trainer.processing_class, trainer.data_collator))
    if trainer.image_inputs is None or trainer.train_dataset is None:
        return
    prepared, wrappers = of_evaluation(trainer), timm_wrappers(student)
    if prepared is None and isinstance(given, TimmWrapperImageProcessor):
        prepared = None if wrappers else in_preparation(given)
    if prepared is not None:
        _write(student, prepared.in_timm)
        if not wrappers and (given is None or isinstance(given, TimmWrapperImageProcessor)):  # which saves nothing
            trainer.processing_class = prepared.processor
        return
    entries = _known(given, trainer.received)
    if entries is not None:
        _write(student, entries)
    if wrappers and not (entries and isinstance(given, BaseImageProcessor)):
        _say_kept(wrappers[0].config.pretrained_cfg or {}, entries or {})


def _say_kept(saved: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Warn of what a timm model's config keeps of its architecture, as nobody says it of the training images."""
    if "mean" not in entries:
        logger.warning(
            "The normalisation of the training images is unknown, so the saved student's config keeps the mean "
            "and std of its architecture, which may be wrong: pass "
            "processing_class=hfkd.models.image_processor(mean, std, size)."
        )
    elif saved.get("crop_pct") != 1:
        logger.warning(
            "How the images are resized and cropped is unknown, so the saved student's config keeps the crop of its "
            "architecture (crop_pct=%s, %s), which may be another: pass "
            "processing_class=hfkd.models.image_processor(mean, std, size, edge).",
            saved.get("crop_pct"),
            saved.get("interpolation"),
        )


def write_problem_type(student: nn.Module, task: Task) -> None:
    """Write the task into a classifier's config, by which pipelines choose between sigmoid and softmax.

    A model does so itself only when it computes a loss. For one label a row, only another problem is replaced.
    """
    for model in networks_of(student):
        config = getattr(bare(model), "config", None)
        if not isinstance(config, PreTrainedConfig) or task.problem_type is None:
            continue
        if config.problem_type is not None or not task.class_ids:
            config.problem_type = task.problem_type


def _known(given: Any, received: Received) -> dict[str, Any] | None:
    """Entries for a timm config, from an image processor, or else from the training images' statistics."""
    known = received.spec if received.certain else None
    own = None if known is None else {"mean": list(known.mean), "std": list(known.std)}
    spec = processor_spec(given) if isinstance(given, BaseImageProcessor) else None
    if spec is not None:
        return (timm_inputs(given, spec, received.size) or {}) | (own or {})
    if own is None or known is None:
        return None
    return own if received.size is None else own | {"input_size": [len(known.mean), *received.size]}


def _write(student: nn.Module, entries: dict[str, Any]) -> None:
    """Write entries into `pretrained_cfg` of a timm model, plain or wrapped, or of peers."""
    for model in networks_of(student):
        if isinstance(model, TimmWrapperForImageClassification):
            model.config.pretrained_cfg = {**(model.config.pretrained_cfg or {}), **entries}
        elif "pretrained_cfg" in vars(model):
            vars(model)["pretrained_cfg"].update(entries)
