"""Which task a network's head is for, by the tables of transformers' Auto classes and its config; `proof.py` proves it.

The tables alone are not enough: BART is among the masked language models, decoders that shift their labels among the
sequence-to-sequence ones.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from hfkd.data.first_rows import first_rows
from hfkd.data.used_columns import LABELS
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import TASKS, Task

CAUSAL = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,)
GENERATING = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
# In this order: a class that several of these name is taken for the first.
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
# Heads that no task here knows, in the words of the Hub.
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
    """The task that is `asked` for by name; for "auto" that of the networks' heads, the student's first.

    Where neither says, the inputs and the labels of the first of `rows` decide. Raises ValueError for a head that no
    task knows, and for networks of two tasks.
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
                f"{_class(network)} is for {name} and {_class(other)} for {its}: give student and teacher heads for "
                "the same task, or name it with task="
            )
    return named_task(name)


def named_task(name: str) -> Task:
    """ValueError with the choices, and the closest of them, for a name that is none."""
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown task {name!r}{hint}: pass one of {['auto', *sorted(TASKS)]}")
    return TASKS[name]()


def head_of(network: nn.Module) -> str | None:
    """The task of a model of transformers or torchvision; None for other networks, and for a class in no table."""
    network = bare(network)
    if not isinstance(network, PreTrainedModel):
        modules = [cls.__module__ for cls in type(network).__mro__]
        return next((task for start, task in TORCHVISION.items() if any(m.startswith(start) for m in modules)), None)
    names = [cls.__name__ for cls in type(network).__mro__]  # a user's subclass has its parent's head
    decoder = network.config.is_encoder_decoder and bool(Call.of(network).shifts_labels)
    if _in(names, CAUSAL):
        return "causal_lm"
    if _in(names, GENERATING):
        return "seq2seq_lm" if decoder else "causal_lm"
    for task, tables in CLASSIFYING.items():
        if _in(names, tables):
            return _by_problem(network, task) if task in CLASSIFIERS else task
    if _in(names, (OTHERS["object detection"],)):
        raise ValueError(
            f"{names[0]} detects objects by queries, or by a head of another kind than proposals, and those of two "
            "networks do not correspond: hfkd distils torchvision's FasterRCNN, whose heads classify the same proposals"
        )
    other = next((task for task, table in OTHERS.items() if _in(names, (table,))), None)
    if other is not None:
        raise ValueError(
            f"{names[0]} is for {other}, and hfkd has no such task: use a model for one of {sorted(TASKS)}, or wrap it "
            "in an nn.Module whose logits are of one, and name that with task="
        )
    return None


def by_inputs(network: nn.Module, rows: Any = None) -> str:
    """For networks that say nothing of their head: text is for the next token, all else is classified as images are.

    Text whose row has one label, and not one a token, is classified too; a config may say that labels are several.
    """
    names = Call.of(network).keywords or ()
    if getattr(getattr(bare(network), "config", None), "problem_type", None) == "multi_label_classification":
        return "multi_label_classification"
    if "input_ids" not in names or "pixel_values" in names:
        return "image_classification"
    return "sequence_classification" if _one_label(rows) else "causal_lm"


def _one_label(rows: Any) -> bool:
    """Whether the first of `rows` has a class id, or a word for one, as its label."""
    row = next(iter(first_rows(next(iter(rows.values())) if isinstance(rows, dict) else rows)), None)
    label = next((row[name] for name in LABELS if name in row), None) if isinstance(row, Mapping) else None
    return label is not None and np.ndim(label) == 0


def _by_problem(network: PreTrainedModel, task: str) -> str:
    """A classifier's task, as its `problem_type` has it. ValueError for a regression, which classifies nothing."""
    problem = network.config.problem_type
    if problem == "multi_label_classification":
        return problem
    text = task == "sequence_classification"
    if problem == "regression" or (text and problem is None and network.config.num_labels == 1):
        said = f"problem_type={problem!r}" if problem else "num_labels=1"
        raise ValueError(
            f"{type(network).__name__} has {said}, a regression, which gives no probabilities to distil: choose a "
            "classifier (num_labels=2 or more, problem_type='single_label_classification')"
        )
    return task


def _class(network: nn.Module) -> str:
    return type(bare(network)).__name__


def _in(names: list[str], tables: Iterable[dict]) -> bool:
    classes = {name for table in tables for entry in table.values() for name in _several(entry)}
    return any(name in classes for name in names)


def _several(entry: str | tuple[str, ...] | list[str]) -> Iterable[str]:
    return (entry,) if isinstance(entry, str) else entry
