"""Tasks: the items and labels of a batch, and a check that the task's loss is that of the network."""

# Each file registers its task.
from hfkd.tasks import (
    causal_lm,
    image_classification,
    masked_lm,
    multi_label_classification,
    object_detection,
    semantic_segmentation,
    seq2seq_lm,
    sequence_classification,
    token_classification,
)

__all__ = [
    "causal_lm",
    "image_classification",
    "masked_lm",
    "multi_label_classification",
    "object_detection",
    "semantic_segmentation",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
]
