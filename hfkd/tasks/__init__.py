"""What a network's head means: the items of a batch, its labels, and the proof that a task is the network's own."""

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
