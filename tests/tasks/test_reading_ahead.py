"""Causal language models that see the token that they are to predict."""

import pytest
import task_toys
import torch
from toys import arguments
from transformers import BertConfig, BertLMHeadModel

from hfkd import DistillationTrainer


def bert(width, decodes):
    torch.manual_seed(width)
    sizes = task_toys.encoder(width) | {"vocab_size": task_toys.VOCAB, "pad_token_id": task_toys.PAD}
    return BertLMHeadModel(BertConfig(**sizes, is_decoder=decodes))


def trainer(folder, student, teacher, **settings):
    rows = [{"input_ids": row["input_ids"]} for row in task_toys.masked()]
    args = arguments(folder, **settings)
    return DistillationTrainer(student, teacher, args, train_dataset=rows, processing_class=task_toys.tokenizer())


@pytest.mark.parametrize(("mine", "its"), [(False, True), (True, False)])
def test_a_network_that_reads_ahead_is_refused(tmp_path, mine, its):
    with pytest.raises(ValueError, match="attends to the tokens after it"):
        trainer(tmp_path, bert(8, mine), bert(16, its))
    trainer(tmp_path, bert(8, True), bert(16, True))
