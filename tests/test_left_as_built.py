"""Networks compute after the trainer is built what they computed before: the checks on short rows leave nothing."""

import copy

import task_toys
import torch
from toys import arguments
from transformers import BigBirdConfig, BigBirdForMaskedLM, LlamaConfig, LlamaForSequenceClassification

from hfkd import DistillationTrainer


def built(folder, student, teacher, rows):
    return DistillationTrainer(
        student, teacher, arguments(folder), train_dataset=rows, processing_class=task_toys.tokenizer()
    )


def bigbird():
    sizes = task_toys.encoder(8) | {"vocab_size": task_toys.VOCAB, "pad_token_id": task_toys.PAD}
    blocks = {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64, "bos_token_id": 2}
    return BigBirdForMaskedLM(BigBirdConfig(**sizes, **blocks, attention_type="block_sparse"))


def test_block_sparse_attention_stays_though_the_first_rows_are_short(tmp_path):
    """BigBird turns to full attention for good in a row of up to 14 tokens here."""
    networks = [bigbird(), bigbird()]
    built(tmp_path, *networks, task_toys.masked())
    for network in networks:
        assert network.bert.attention_type == network.bert.encoder.layer[0].attention_type == "block_sparse"
        assert type(network.bert.encoder.layer[0].attention.self).__name__ == "BigBirdBlockSparseAttention"


def dynamic(width):
    torch.manual_seed(width)
    sizes = task_toys.decoder(width) | {"max_position_embeddings": 8, "num_labels": task_toys.CLASSES}
    stretched = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, rope_parameters=stretched))


LONG = [*range(3, 14), 3, 4]


def test_dynamic_positions_are_stretched_for_the_first_long_row_too(tmp_path):
    """They remember the longest row, for which they have stretched, and the trial run has had it already."""
    student, teacher = dynamic(8), dynamic(16)
    fresh = copy.deepcopy((student, teacher))
    built(tmp_path, student, teacher, [{"input_ids": LONG, "labels": 0}] * 4)
    row = torch.tensor([LONG])
    for network, other in zip((student, teacher), fresh, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(row).logits, other.eval()(row).logits)
