"""Networks that are given by name, a Hub id or a folder: loaded with the head that the task needs, as TRL does."""

from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.checkpoints import some
from hfkd.models.label_names import label_names_in, order_of
from hfkd.models.language import brings_tokenizer
from hfkd.models.text_networks import loaded
from hfkd.tasks.choice import head_of, named_task

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
    """The networks, with names loaded; a list of teachers may hold names too.

    `task`: of the head; "auto": that of the other network, else the one that is stored under the name. A student gets
    the teacher's classes, and float32; a teacher stays as it is stored. Raises ValueError for a name that holds no
    such network, a teacher whose head has no stored weights, and a student whose stored head has other classes.
    """
    if isinstance(teacher, (list, tuple)):
        teacher = [_teacher(one, task, student) for one in teacher]
    else:
        teacher = _teacher(teacher, task, student)
    return _student(student, task, teacher), teacher


def tokenizer_of_name(name: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored under a student's name, None where there is none, or the student is no name."""
    if not isinstance(name, str) or not brings_tokenizer(name):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def _teacher(teacher: Any, task: str, student: Any) -> Any:
    if not isinstance(teacher, str):
        return teacher
    network, info = loaded(_auto(teacher, "teacher", task, student), teacher, "auto")
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the teacher {teacher!r} has no stored weights for {some(missing)}, so its {type(network).__name__} would "
            "be random there: name a network that was trained for this task"
        )
    return network


def _student(student: Any, task: str, teacher: Any) -> Any:
    if not isinstance(student, str):
        return student
    first = teacher[0] if isinstance(teacher, list) else teacher
    config = first.config if isinstance(first, PreTrainedModel) else None
    vocabulary = config is None or named_task(head_of(first) or "causal_lm").vocabulary
    labels = {} if vocabulary else {name: getattr(config, name) for name in CLASSES if name != "num_labels"}
    network, info = loaded(_auto(student, "student", task, first), student, "float32", **labels)
    if info["mismatched_keys"]:
        weight, stored, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"{weight} of the student {student!r} is of shape {list(stored)}, and the teacher's classes need "
            f"{list(wanted)}: load it yourself, with ignore_mismatched_sizes=True for a fresh head"
        )
    if labels and not info["missing_keys"]:
        _refuse_other_classes(student, config)
    return network


def _refuse_other_classes(student: str, wanted: Any) -> None:
    """Raise ValueError where the head that is stored has the teacher's classes in another order, or others."""
    own = label_names_in(AutoConfig.from_pretrained(student, trust_remote_code=False))
    its = label_names_in(wanted)
    if own is None or its is None or order_of(own, its, f"the student {student!r}", "the teacher") is None:
        return
    raise ValueError(
        f"the student {student!r} has a stored head for the teacher's classes in another order ({', '.join(own[:4])}; "
        f"the teacher's {', '.join(its[:4])}), and would be told the teacher's: load it yourself and pass the network, "
        "with data that name their classes (a ClassLabel)"
    )


def _auto(name: str, role: str, task: str, other: Any) -> Any:
    """What loads the network: an Auto class, or where nothing tells a task the class that was stored."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the {role} {name!r} is no folder with a config.json and no model that the Hub, or its cache, gives "
            f"({first}): name one, or pass the network itself"
        ) from error
    wanted = task if task != "auto" else head_of(other) if isinstance(other, nn.Module) else None
    if wanted is None:
        return _stored_class(name, role, config)
    found = [auto for auto in AUTO.get(wanted, ()) if type(config) in auto._model_mapping]
    if not found:
        raise ValueError(
            f"the {role} {name!r} is a {config.model_type}, of which transformers has no model for {wanted}: name "
            "another, or pass the network itself"
        )
    return found[0]


def _stored_class(name: str, role: str, config: Any) -> Any:
    stored = (config.architectures or [None])[0]
    kind = getattr(transformers, stored or "", None)
    if kind is None:
        raise ValueError(
            f"the {role} {name!r} does not say which network it is (architectures={config.architectures}): name its "
            "task=, or pass the network itself"
        )
    return kind
