"""Infers the task of a network's head from transformers' Auto classes and its config; `proof.py` verifies it.

The tables alone are not sufficient: BART is listed as a masked language model, and decoders that shift labels as
sequence-to-sequence models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from hfkd.data.first_rows import first_rows
from hfkd.data.used_columns import label_column
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import TASKS, Task
from hfkd.utils.messages import did_you_mean

CAUSAL = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,)
GENERATING = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
# In this order: a class in several of these tables gets the first task.
CLASSIFYING: dict[str, tuple[Any, ...]] = {
    "masked_lm": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,),
    "token_classification": (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,),
    "sequence_classification": (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    ),
    "image_classification": (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,),
    "semantic_segmentation": (auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,),
}
TORCHVISION = {  # by the module of a network's class
    "torchvision.models.segmentation.": "semantic_segmentation",
    "torchvision.models.detection.": "object_detection",
}
# Heads without a task in hfkd, by their names on the Hub.
OTHERS: dict[str, Any] = {
    "question answering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "table question answering": auto.MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING_NAMES,
    "visual question answering": auto.MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES,
    "document question answering": auto.MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES,
    "multiple choice": auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "next sentence prediction": auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "audio frame classification": auto.MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES,
    "speech recognition with CTC": auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "video classification": auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "image segmentation": auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    "instance segmentation": auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    "universal segmentation": auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    "object detection": auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "zero-shot object detection": auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
    "zero-shot image classification": auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "depth estimation": auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    "masked image modelling": auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
}
CLASSIFIERS = ("sequence_classification", "image_classification")


def chosen_task(asked: str, student: Sequence[nn.Module], teacher: Sequence[nn.Module] = (), rows: Any = None) -> Task:
    """The task with the name `asked`; for "auto" that of the networks' heads, the student's first.

    If these are unknown, it is inferred from the inputs and the labels of the first of `rows`. Raises ValueError for a
    head without a task, and for networks of different tasks.
    """
    if asked != "auto":
        return named_task(asked)
    heads = [(network, head_of(network)) for network in (*student, *teacher)]
    known = [(network, name) for network, name in heads if name is not None]
    if not known:
        task = named_task(by_inputs(student[0], rows))
        task.guessed = True
        return task
    network, name = known[0]
    for other, its in known:
        if its != name:
            raise ValueError(
                f"{_class(network)} is for {name} and {_class(other)} for {its}: use heads for the same task, or "
                "set task="
            )
    return named_task(name)


def named_task(name: str) -> Task:
    """The task of this name. Raises ValueError with the choices, and the closest one, for an unknown name."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{did_you_mean(name, TASKS)}: pass one of {['auto', *sorted(TASKS)]}")
    return TASKS[name]()


def head_of(network: nn.Module) -> str | None:
    """The task of a transformers or torchvision model; None for other networks, and for a class not in the tables."""
    network = bare(network)
    if not isinstance(network, PreTrainedModel):
        modules = [cls.__module__ for cls in type(network).__mro__]
        return next((task for start, task in TORCHVISION.items() if any(m.startswith(start) for m in modules)), None)
    names = [cls.__name__ for cls in type(network).__mro__]  # a user's subclass has its parent's head
    decoder = network.config.is_encoder_decoder and bool(Call.of(network).shifts_labels)
    if listed(names, *CAUSAL):
        return "causal_lm"
    if listed(names, *GENERATING):
        return "seq2seq_lm" if decoder else "causal_lm"
    for task, tables in CLASSIFYING.items():
        if listed(names, *tables):
            return _by_problem(network, task) if task in CLASSIFIERS else task
    if listed(names, OTHERS["object detection"]):
        raise ValueError(
            f"{names[0]} detects objects by queries, or by another kind of head than on proposals, whose outputs "
            "do not correspond between two networks: use torchvision's FasterRCNN, whose heads can classify the "
            "same proposals"
        )
    other = next((task for task, table in OTHERS.items() if listed(names, table)), None)
    if other is not None:
        raise ValueError(
            f"{names[0]} is for {other}, a task that hfkd does not support: use a model for one of "
            f"{sorted(TASKS)}, or wrap it in an nn.Module with the logits of one of these, and set task="
        )
    return None


def by_inputs(network: nn.Module, rows: Any = None) -> str:
    """Infer the task of networks whose head is unknown: next-token prediction for text, image classification for
    others.

    Text with one label per row, not per token, is classified too; a config may say that it is multi-label.
    """
    names = Call.of(network).keywords or ()
    if getattr(getattr(bare(network), "config", None), "problem_type", None) == "multi_label_classification":
        return "multi_label_classification"
    if "input_ids" not in names or "pixel_values" in names:
        return "image_classification"
    return "sequence_classification" if _one_label(rows) else "causal_lm"


def _one_label(rows: Any) -> bool:
    """Whether the label of the first of `rows` is a single class id or class name."""
    row: Any = next(iter(first_rows(next(iter(rows.values())) if isinstance(rows, dict) else rows)), None)
    column = label_column(row) if isinstance(row, Mapping) else None
    return column is not None and row[column] is not None and np.ndim(row[column]) == 0


def _by_problem(network: PreTrainedModel, task: str) -> str:
    """A classifier's task, by its `problem_type`. Raises ValueError for a regression."""
    problem = network.config.problem_type
    if problem == "multi_label_classification":
        return problem
    text = task == "sequence_classification"
    if problem == "regression" or (text and problem is None and network.config.num_labels == 1):
        said = f"problem_type={problem!r}" if problem else "num_labels=1"
        raise ValueError(
            f"{type(network).__name__} has {said}, which is a regression without probabilities to distil: choose "
            "a classifier (num_labels=2 or more, problem_type='single_label_classification'); a reranker whose one "
            "logit means yes (trained on binary labels) is one with problem_type='multi_label_classification' in its "
            "config, and rows with the labels [0.0] and [1.0]"
        )
    return task


def _class(network: nn.Module) -> str:
    return type(bare(network)).__name__


def listed(names: list[str], *tables: Any) -> bool:
    """Whether one of the classes is in an Auto class's tables, whose entries are names or several names."""
    entries = [entry for table in tables for entry in table.values()]
    classes = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
    return not classes.isdisjoint(names)
