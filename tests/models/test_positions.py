"""How long a row of a network may be."""

import pytest
import task_toys
from toys import arguments
from transformers import (
    CTRLConfig,
    CTRLLMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from hfkd import DistillationTrainer

SIZES = {"vocab_size": task_toys.VOCAB, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
TABLES = {
    "CTRL": lambda: CTRLLMHeadModel(CTRLConfig(**SIZES, dff=8)),
    "GPT-J": lambda: GPTJForCausalLM(GPTJConfig(**SIZES, rotary_dim=4)),
    "GPT": lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZES)),
}


def trainer(folder, student, teacher, rows, **settings):
    args = arguments(folder, **settings)
    return DistillationTrainer(student, teacher, args, train_dataset=rows, processing_class=task_toys.tokenizer())


@pytest.mark.parametrize("name", TABLES)
def test_a_row_beyond_a_table_of_positions_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="a row has 18 tokens, but .* has 16 positions"):
        trainer(tmp_path, TABLES[name](), task_toys.gpt2(8), [{"input_ids": [3, 4] * 9}] * 4)
    trainer(tmp_path, TABLES[name](), task_toys.gpt2(8), [{"input_ids": [3, 4] * 8}] * 4)
