"""Classifiers that find the last token of a row by a pad token, held against that of the tokenizer."""

import pytest
import task_toys
import torch
from toys import arguments
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hfkd import DistillationTrainer

OTHER = 0


def decoder(width, pad=task_toys.PAD):
    torch.manual_seed(width)
    config = LlamaConfig(**(task_toys.decoder(width) | {"pad_token_id": pad}), num_labels=task_toys.CLASSES)
    return LlamaForSequenceClassification(config)


def encoder(width):
    sizes = task_toys.encoder(width) | {"vocab_size": task_toys.VOCAB, "pad_token_id": OTHER}
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=32))


def trainer(folder, student, teacher, side="right"):
    rows = [{"input_ids": list(range(3, 7 + i % 3)), "labels": i % task_toys.CLASSES} for i in range(8)]
    if isinstance(student, GPT2ForTokenClassification):
        rows = [row | {"labels": [row["labels"]] * len(row["input_ids"])} for row in rows]
    words = task_toys.tokenizer()
    words.padding_side = side
    return DistillationTrainer(student, teacher, arguments(folder), train_dataset=rows, processing_class=words)


@pytest.mark.parametrize(("mine", "its"), [(task_toys.PAD, OTHER), (OTHER, task_toys.PAD)])
def test_a_decoder_with_another_pad_token_would_classify_padding(tmp_path, mine, its):
    with pytest.raises(ValueError, match=r"pad_token_id=0 in its config, but the tokenizer pads rows with 1"):
        trainer(tmp_path, decoder(8, mine), decoder(16, its))
    trainer(tmp_path, decoder(8), decoder(16))


def test_padding_that_changes_nothing_passes(tmp_path):
    """Encoders mask it, and before a row it is never the last token."""
    trainer(tmp_path / "encoders", encoder(8), encoder(16))
    trainer(tmp_path / "left", decoder(8, OTHER), decoder(16, OTHER), "left")


@pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, GPT2ForTokenClassification])
def test_learned_positions_are_not_counted_from_padding(tmp_path, kind):
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": task_toys.VOCAB}
    config = GPT2Config(**sizes, initializer_range=0.3, pad_token_id=task_toys.PAD, num_labels=task_toys.CLASSES)
    networks = [kind(config) for _ in range(2)]
    with pytest.raises(ValueError, match=f"{kind.__name__} counts padding in the positions of a row"):
        trainer(tmp_path, *networks, "left")
    trainer(tmp_path, *networks)
