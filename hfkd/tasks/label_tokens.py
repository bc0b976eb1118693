"""Warns of tokens among the labels of the first rows that no network should learn to write.

B rows, L length.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hfkd.models.calling import bare
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

# What stands for other inputs among the tokens: the attributes of a configuration in which transformers keeps its id.
PLACEHOLDERS = tuple(f"{kind}_token_{name}" for kind in ("image", "video", "audio") for name in ("index", "id"))
SURELY_PADDING = 2  # a row may end in one token that is the end of the text and the pad token


def warn_of_label_tokens(student: nn.Module, batch: Mapping[str, Any], shifts: bool, decodes: bool) -> None:
    """Warn of labels that are padding, stand for an image, or repeat what the decoder starts with.

    Models of transformers take them as any other label, and so does the distillation term. shifts: tokens that are not
    attended to have no label. decodes: the network makes its decoder's inputs of the labels.
    """
    config, labels = getattr(bare(student), "config", None), batch["labels"]
    if config is None or labels.ndim != 2:
        return
    attended = batch.get("attention_mask")
    if shifts and isinstance(attended, Tensor) and attended.shape == labels.shape:
        labels = labels.masked_fill(attended == 0, IGNORED)  # which the loss leaves out
    for token in _padding_of(config):
        if longest := max(_run(labels, token), _run(labels.flip(-1), token)):
            logger.warning(
                "Of the labels of the first rows up to %d at an end of a row are token %d, the pad token or end of the "
                "text: the student learns to write it again and again. Set the labels of padding to -100, or leave "
                "padding to the collator.",
                longest,
                token,
            )
    others = {_id_of(config, name): name for name in PLACEHOLDERS}  # two names may have one id
    for token, name in others.items():
        if token >= 0 and (count := int((labels == token).sum())):
            logger.warning(
                "%d labels of the first rows are token %d, which stands for other inputs than text (%s of the "
                "student): the student learns to write it. Set these labels to -100.",
                count,
                token,
                name,
            )
    if decodes and batch.get("decoder_input_ids") is None:
        _warn_of_start(labels, _id_of(config, "decoder_start_token_id"))


def _warn_of_start(labels: Tensor, start: int) -> None:
    if labels.numel() and start >= 0 and bool((labels[:, 0] == start).all()):
        logger.warning(
            "The labels of the first rows begin with token %d, the decoder_start_token_id, which networks put before "
            "the labels themselves: the student learns to write it twice. Remove the first label of each row, as "
            "transformers' example for Whisper does.",
            start,
        )


def _padding_of(config: Any) -> Iterator[int]:
    """The ids with which rows may be padded: of the pad token, and of the end of the text."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in ("pad_token_id", "eos_token_id")]
    several = [one for value in found for one in (value if isinstance(value, list) else [value])]
    yield from {one for one in several if isinstance(one, int) and one >= 0}


def _run(labels: Tensor, token: int) -> int:
    """The longest run of `token` at the end of a row, among labels that are not -100; 0 if it may end a text."""
    runs = [0]
    for row in labels:
        known = row[row != IGNORED]
        others = (known != token).nonzero()
        runs.append(len(known) - 1 - int(others[-1]) if len(others) else 0)
    longest = max(runs)
    return longest if longest >= SURELY_PADDING else 0


def _id_of(config: Any, name: str) -> int:
    """The id of a special token; -1 if the configuration has none."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
