"""What a network's head is made for: heads that hfkd would train wrongly are refused before anything runs."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from hfkd.losses.items import TOKENS, ItemRule
from hfkd.models.calling import bare

CAUSAL = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,)
# Each has causal language models too; of these an encoder-decoder is none, and own_loss.py compares the others.
GENERATING = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
ONE_LABEL = (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
TASKS: dict[str, Any] = {
    "masked language modelling": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "token classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "text classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "question answering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "table question answering": auto.MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING_NAMES,
    "visual question answering": auto.MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES,
    "document question answering": auto.MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES,
    "multiple choice": auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "next sentence prediction": auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "audio classification": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "audio frame classification": auto.MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES,
    "speech recognition": auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "video classification": auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "semantic segmentation": auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "image segmentation": auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    "instance segmentation": auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    "universal segmentation": auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    "object detection": auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "zero-shot object detection": auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
    "zero-shot image classification": auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "depth estimation": auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    "masked image modelling": auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
}
SUPPORTED = "hfkd trains image classifiers with one label an image, and causal language models"
SOFTMAX = (None, "single_label_classification")


def refuse_other_heads(networks: Iterable[nn.Module], rule: ItemRule) -> None:
    """Raise ValueError for a model of transformers, student or teacher, whose head is for another task than `rule`'s.

    By the tables that transformers' Auto classes use and by the model's own config. A causal language model that does
    not shift its labels passes, and so does a class in no table: `own_loss` compares those with what hfkd computes.
    """
    for network in map(bare, networks):
        if isinstance(network, PreTrainedModel):
            (_refuse_for_tokens if rule is TOKENS else _refuse_for_images)(network)


def _refuse_for_tokens(network: PreTrainedModel) -> None:
    names = _names(network)
    if _in(names, CAUSAL):
        return
    if network.config.is_encoder_decoder:
        raise ValueError(
            f"{names[0]} is a sequence-to-sequence model: its decoder predicts each label in its own place, and hfkd "
            f"shifts token labels by one. {SUPPORTED}"
        )
    if not _in(names, GENERATING) and (task := _task(names)):
        raise ValueError(
            f"{names[0]} is for {task}, and hfkd shifts token labels by one, as causal language models need. "
            f"{SUPPORTED}"
        )


def _refuse_for_images(network: PreTrainedModel) -> None:
    names = _names(network)
    if not _in(names, ONE_LABEL):
        if _in(names, (*CAUSAL, *GENERATING)) and not network.config.is_encoder_decoder:
            raise ValueError(f"{names[0]} predicts tokens, and an item would be an image: set items='token'")
        task = "sequence-to-sequence generation" if network.config.is_encoder_decoder else _task(names)
        if task:
            raise ValueError(f"{names[0]} is for {task}, and {SUPPORTED}")
    if network.config.problem_type not in SOFTMAX:
        raise ValueError(
            f"{names[0]} has problem_type={network.config.problem_type!r}, whose loss is no cross-entropy over the "
            f"classes: {SUPPORTED}; leave problem_type out of its config if that is what you want"
        )


def _names(network: PreTrainedModel) -> list[str]:
    """Its class and what that derives from, from the nearest: a user's subclass has its parent's head."""
    return [cls.__name__ for cls in type(network).__mro__]


def _in(names: list[str], tables: Iterable[dict]) -> bool:
    classes = {name for table in tables for entry in table.values() for name in _several(entry)}
    return any(name in classes for name in names)


def _task(names: list[str]) -> str | None:
    return next((task for task, table in TASKS.items() if _in(names, [table])), None)


def _several(entry: str | tuple[str, ...] | list[str]) -> Iterable[str]:
    return (entry,) if isinstance(entry, str) else entry
