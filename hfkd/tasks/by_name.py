"""Loads networks given by name, a Hub id or a folder, with the head for the task, as TRL does."""

import os
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.label_names import label_names_in, order_of
from hfkd.models.language import brings_tokenizer
from hfkd.models.text_networks import loaded
from hfkd.models.tokenizers import stored_tokenizer
from hfkd.tasks.choice import head_of, named_task
from hfkd.utils.messages import some

AUTO = {
    "image_classification": (transformers.AutoModelForImageClassification,),
    "sequence_classification": (
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForAudioClassification,
    ),
    "token_classification": (transformers.AutoModelForTokenClassification,),
    "semantic_segmentation": (transformers.AutoModelForSemanticSegmentation,),
    "masked_lm": (transformers.AutoModelForMaskedLM,),
    "causal_lm": (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText),
    "seq2seq_lm": (transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForSpeechSeq2Seq),
}
AUTO["multi_label_classification"] = AUTO["image_classification"] + AUTO["sequence_classification"]
CLASSES = ("num_labels", "id2label", "label2id", "problem_type")


def networks_by_name(student: Any, teacher: Any, task: str) -> tuple[Any, Any]:
    """Load the networks that are given as names; a list or a dict of teachers may contain names too.

    `task`: that of the head; "auto": that of the other network, else that of the stored class. A student is loaded with
    the teacher's classes in float32, a teacher as it is stored. Raises ValueError for a name without such a network, a
    teacher whose head has no stored weights, and a student whose stored head has other classes.
    """
    if isinstance(teacher, (list, tuple)):
        teacher = [_teacher(one, task, student) for one in teacher]
    elif isinstance(teacher, Mapping):
        teacher = {name: _teacher(one, task, student) for name, one in teacher.items()}
    else:
        teacher = _teacher(teacher, task, student)
    return _student(student, task, teacher), teacher


def tokenizer_of_name(name: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored under a student's name; None if there is none, or the student is not a name."""
    if not isinstance(name, str) or not brings_tokenizer(name):
        return None
    try:
        return stored_tokenizer(name)
    except (OSError, ValueError, KeyError):
        return None


def _teacher(teacher: Any, task: str, student: Any) -> Any:
    teacher = os.fspath(teacher) if isinstance(teacher, os.PathLike) else teacher
    if not isinstance(teacher, str):
        return teacher
    network, info = loaded(_auto(teacher, "teacher", task, student), teacher, "auto")
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the teacher {teacher!r} has no stored weights for {some(missing)}, so that {type(network).__name__} "
            "would be initialized at random: choose a network that was trained for this task"
        )
    return network


def _student(student: Any, task: str, teacher: Any) -> Any:
    if not isinstance(student, str):
        return student
    first = next(iter(teacher.values())) if isinstance(teacher, dict) else teacher
    first = first[0] if isinstance(first, list) else first
    config = first.config if isinstance(first, PreTrainedModel) else None
    vocabulary = config is None or named_task(head_of(first) or "causal_lm").vocabulary
    labels = {} if vocabulary else {name: getattr(config, name) for name in CLASSES if name != "num_labels"}
    network, info = loaded(_auto(student, "student", task, first), student, "float32", **labels)
    if info["mismatched_keys"]:
        weight, stored, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"{weight} of the student {student!r} has shape {list(stored)}, but the teacher's classes need "
            f"{list(wanted)}: load the student yourself, with ignore_mismatched_sizes=True for a new head"
        )
    if labels and not info["missing_keys"]:
        _refuse_other_classes(student, config)
    return network


def _refuse_other_classes(student: str, wanted: Any) -> None:
    """Raise ValueError if the stored head has the teacher's classes in another order, or other classes."""
    own = label_names_in(AutoConfig.from_pretrained(student, trust_remote_code=False))
    its = label_names_in(wanted)
    if own is None or its is None or order_of(own, its, f"the student {student!r}", "the teacher") is None:
        return
    raise ValueError(
        f"the student {student!r} has a stored head with the teacher's classes in another order "
        f"({', '.join(own[:4])} instead of {', '.join(its[:4])}), which would be renamed to the teacher's: load "
        "the student yourself and pass the network, with data that has class names (a ClassLabel feature)"
    )


def _auto(name: str, role: str, task: str, other: Any) -> Any:
    """The class to load the network with: an Auto class, or the stored class if the task is unknown."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the {role} {name!r} is neither a folder with a config.json nor a model on the Hub or in its cache "
            f"({first}): correct the name, or pass the network itself"
        ) from error
    wanted = task if task != "auto" else head_of(other) if isinstance(other, nn.Module) else None
    if wanted is None:
        return _stored_class(name, role, config)
    found = [auto for auto in AUTO.get(wanted, ()) if type(config) in auto._model_mapping]
    if not found:
        raise ValueError(
            f"the {role} {name!r} is a {config.model_type}, and transformers has no such model for {wanted}: "
            "choose another, or pass the network itself"
        )
    return found[0]


def _stored_class(name: str, role: str, config: Any) -> Any:
    stored = (config.architectures or [None])[0]
    kind = getattr(transformers, stored or "", None)
    if kind is None:
        raise ValueError(
            f"the {role} {name!r} does not name its class (architectures={config.architectures}): pass task=, or "
            "pass the network itself"
        )
    return kind
