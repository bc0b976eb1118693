"""Networks that the caller, or `accelerate launch`, has compiled: the same training, and compiled once."""

import pytest
import torch
from text_toys import VOCAB, language_model, taught_model, tokenizer
from torch._dynamo.testing import CompileCounter
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.utils.targets import IGNORED


def rows(n=32, length=8):
    """Rows of one length, each with another number of targets."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (n, length), generator=g).tolist()
    return [{"input_ids": t, "labels": [IGNORED] * (1 + i % 5) + t[1 + i % 5 :]} for i, t in enumerate(tokens)]


def by_wrapper(network, counter):
    return torch.compile(network, backend=counter)


def in_place(network, counter):
    """One that has been used already, before any objective reads its layers."""
    network.compile(backend=counter)
    tokens = torch.ones(2, 8, dtype=torch.long)
    with torch.no_grad():
        network.eval()(input_ids=tokens, attention_mask=tokens, use_cache=False)
    counter.frame_count = 0
    return network.train()


def losses(folder, student, teacher, objective="kd", **keywords):
    settings = {"max_steps": 5, "per_device_train_batch_size": 2, "objective": objective} | keywords
    made = DistillationTrainer(
        student, teacher, arguments(folder, **settings), train_dataset=rows(), processing_class=tokenizer()
    )
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "keywords", [{}, {"objective": "hidden_mse"}, {"loss_chunk_size": 4}], ids=["logits", "layers", "chunks"]
)
@pytest.mark.parametrize("how", [by_wrapper, in_place])
def test_networks_that_are_compiled_already(tmp_path, how, keywords):
    want = losses(tmp_path / "plain", language_model(), taught_model(), **keywords)
    counters = CompileCounter(), CompileCounter()
    student, teacher = map(how, (language_model(), taught_model()), counters)
    torch.testing.assert_close(losses(tmp_path / "compiled", student, teacher, **keywords), want)
    assert [counter.frame_count for counter in counters] == [1, 1]


def test_a_launch_that_compiles_is_torch_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    args = arguments(tmp_path)
    assert (args.torch_compile, args.torch_compile_backend) == (True, "aot_eager")
    with pytest.raises(ValueError, match="torch_compile hides the attention inside of them"):
        losses(tmp_path, language_model(), language_model(seed=1), "minilm(heads=2)")
