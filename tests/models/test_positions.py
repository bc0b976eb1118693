"""How long a row of a network may be, and from which number its positions count."""

import pytest
import task_toys
import torch
import torch.nn.functional as F
from toys import arguments
from transformers import (
    CTRLConfig,
    CTRLLMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    MarianConfig,
    MarianMTModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RobertaConfig,
    RobertaForCausalLM,
)

from hfkd import DistillationTrainer
from hfkd.evaluation import TextGenerator

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


ROWS = [{"input_ids": row["input_ids"]} for row in task_toys.masked()]


def roberta(width):
    torch.manual_seed(width)
    sizes = task_toys.encoder(width) | {"vocab_size": task_toys.VOCAB, "pad_token_id": task_toys.PAD}
    return RobertaForCausalLM(RobertaConfig(**sizes, max_position_embeddings=40, is_decoder=True))


def test_positions_are_those_of_the_network(tmp_path):
    """RoBERTa's begin behind that of padding: the loss and the written tokens are those of rows without positions."""
    student = roberta(8)
    made = trainer(
        tmp_path, student, None, ROWS, ce_weight=1.0, kd_weight=0.0, max_steps=1, per_device_train_batch_size=8
    )
    with torch.no_grad():
        of_rows = [
            F.cross_entropy(student(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            for ids in map(torch.tensor, (row["input_ids"] for row in ROWS))
        ]
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(torch.cat(of_rows).mean().item(), abs=1e-4)

    tokenizer, words = task_toys.tokenizer(), ["a b", "you"]
    settings = {"max_new_tokens": 4, "max_prompt_length": 8, "temperature": 0.0, "no_repeat_ngram_size": 0}
    for prompt, answer in zip(words, TextGenerator(student, tokenizer, **settings)(words), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(4):
            with torch.no_grad():
                ids = torch.cat([ids, student.eval()(ids).logits[:, -1:].argmax(-1)], 1)
        written = tokenizer.decode(ids[0], skip_special_tokens=False).removeprefix(prompt).split("<end>")[0]
        assert answer == " ".join(word for word in written.split() if word not in ("<s>", "<unk>"))


def marian():
    sides = {
        f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    tokens = {"vocab_size": task_toys.VOCAB, "pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    return MarianMTModel(MarianConfig(d_model=8, max_position_embeddings=16, **sides, **tokens))


def bart():
    network = task_toys.bart(8)
    return type(network)(type(network.config)(**network.config.to_dict() | {"max_position_embeddings": 16}))


SIDES = {"BART": bart, "Marian": marian}


@pytest.mark.parametrize("name", SIDES)
def test_both_sides_of_an_encoder_decoder_have_their_positions(tmp_path, name):
    """The second half of the rows, which no check before training sees, is longer."""

    def rows(tokens, labels):
        return [
            {"input_ids": [3, 4] * (n // 2), "labels": [3, 4] * (m // 2)} for n, m in ((8, 8), (tokens, labels)) * 4
        ]

    settings = {"ce_weight": 1.0, "kd_weight": 0.0, "max_steps": 1, "per_device_train_batch_size": 8}
    for number, (size, said) in enumerate((((18, 8), "18 tokens"), ((8, 18), "18 labels for its decoder"))):
        message = f"a row has {said}, but {type(SIDES[name]()).__name__} has 16 positions: truncate"
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path / str(number), SIDES[name](), None, rows(*size), **settings)
        few = [row for row in rows(*size) if len(row["input_ids"] + row["labels"]) == 16]
        made = trainer(tmp_path / f"{number}, later", SIDES[name](), None, few + rows(*size), **settings)
        with pytest.raises(ValueError, match=message):
            made.train()
    trainer(tmp_path / "fits", SIDES[name](), None, rows(16, 16), **settings).train()
