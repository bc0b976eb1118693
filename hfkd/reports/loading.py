"""The Auto classes of transformers that load a saved student, by its head and its inputs."""

from typing import Any, NamedTuple

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto import modeling_auto as auto

from hfkd.models.calling import Call, bare
from hfkd.models.processors import timm_wrappers
from hfkd.tasks.choice import listed

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
    "AutoModelForSemanticSegmentation": auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
}
ADAPTED = ("CausalLM", "Seq2SeqLM", "SequenceClassification", "TokenClassification")  # heads with Auto classes in PEFT


# What a saved object that prepares inputs is loaded by.
PREPARING: dict[type[Any], str] = {
    ProcessorMixin: "AutoProcessor",
    PreTrainedTokenizerBase: "AutoTokenizer",
    BaseImageProcessor: "AutoImageProcessor",
    FeatureExtractionMixin: "AutoFeatureExtractor",
}


class Loading(NamedTuple):
    """The classes that load the student and prepare its inputs.

    base, head: of adapters on a classifier, the class of the base model, and what to load it with: only the adapters
    are saved, and its configuration may have another number of classes.
    """

    model: str
    inputs: str
    base: str = ""
    head: str = ""


def inputs_saved(student: nn.Module, processor: Any) -> str | None:
    """The class that loads what prepares the student's inputs, of which `processor` is saved; None without any."""
    if processor is None:
        return "AutoImageProcessor" if timm_wrappers(student) else None
    found = next((name for kind, name in PREPARING.items() if isinstance(processor, kind)), None)
    loading = loading_of(student)
    return found or (None if loading is None else loading.inputs)


def loading_of(student: nn.Module) -> Loading | None:
    """How to load a transformers student, or its adapters; None for other networks, and unlisted classes."""
    network = bare(student)
    if not isinstance(network, PreTrainedModel):
        return None
    names = [cls.__name__ for cls in type(network).__mro__]  # a user's subclass is loaded like its parent class
    model = next((name for name, table in CLASSES.items() if listed(names, table)), None)
    if model is None:
        return None
    call = Call.of(network)
    text, images = call.takes("input_ids"), call.takes_images
    inputs = "AutoProcessor" if text and images else "AutoTokenizer" if text else "AutoImageProcessor"
    inputs = inputs if text or images else "AutoFeatureExtractor"
    if bare(student) is extract_model_from_parallel(student, keep_torch_compile=False):
        return Loading(model, inputs)
    return Loading(_adapted(model), inputs, model, _head(network) if model.endswith("Classification") else "")


def _head(network: PreTrainedModel) -> str:
    config = network.config
    problem = f", problem_type={config.problem_type!r}" if config.problem_type else ""
    return f"num_labels={config.num_labels}{problem}".replace("'", '"')


def _adapted(model: str) -> str:
    head = model.removeprefix("AutoModelFor")
    return f"AutoPeftModelFor{head}" if head in ADAPTED else "AutoPeftModel"
