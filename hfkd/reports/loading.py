"""The Auto classes of transformers that load a saved student, by its head and its inputs."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto
from transformers.trainer_utils import unwrap_peft_model

from hfkd.models.calling import Call, bare

# In this order: a class in several tables is loaded by the first.
CLASSES: dict[str, Any] = {
    "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForTokenClassification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForAudioClassification": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForImageClassification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
ADAPTED = ("CausalLM", "Seq2SeqLM", "SequenceClassification", "TokenClassification")  # heads with Auto classes in PEFT


class Loading(NamedTuple):
    """The classes that load the student and prepare its inputs."""

    model: str
    inputs: str


def loading_of(student: nn.Module) -> Loading | None:
    """How to load a transformers student, or its adapters; None for other networks, and unlisted classes."""
    network = bare(student)
    if not isinstance(network, PreTrainedModel):
        return None
    names = {cls.__name__ for cls in type(network).__mro__}  # a user's subclass is loaded like its parent class
    known = (name for name, table in CLASSES.items() for entry in table.values() if names & set(_several(entry)))
    model = next(known, None)
    if model is None:
        return None
    call = Call.of(network)
    text, images = call.takes("input_ids"), call.takes_images
    inputs = "AutoProcessor" if text and images else "AutoTokenizer" if text else "AutoImageProcessor"
    inputs = inputs if text or images else "AutoFeatureExtractor"
    adapters = unwrap_peft_model(student) is not student
    return Loading(_adapted(model) if adapters else model, inputs)


def _adapted(model: str) -> str:
    head = model.removeprefix("AutoModelFor")
    return f"AutoPeftModelFor{head}" if head in ADAPTED else "AutoPeftModel"


def _several(entry: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)
