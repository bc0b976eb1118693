"""Networks that the caller, or `accelerate launch`, has compiled: the same training, and compiled once."""

from functools import partial

import pytest
import torch
from text_toys import VOCAB, language_model, taught_model, tokenizer
from torch._dynamo.testing import CompileCounter
from toys import Net, Rows, arguments, teacher

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


def images(folder, student, taught=None, **keywords):
    args = arguments(folder, max_steps=1, **keywords)
    taught = teacher() if taught is None else taught
    return DistillationTrainer(student, taught, args, train_dataset=Rows(8), eval_dataset=Rows(8))


def test_compiled_students_are_evaluated_in_float32(tmp_path):
    found = []
    for name, wrap in {"plain": lambda network: network, "compiled": partial(torch.compile, backend="eager")}.items():
        trainer = images(tmp_path / name, wrap(Net()), bf16=True)
        found.append([trainer.evaluate()["eval_loss"]])
        trainer.train()
        found[-1].append(trainer.evaluate()["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)  # in bfloat16 they differ by about 1e-4
    launched = images(tmp_path / "launched", Net(), bf16=True, torch_compile=True, torch_compile_backend="eager")
    assert launched.evaluate()["eval_loss"] == pytest.approx(found[0][0], rel=1e-6)


def test_a_compiled_student_has_the_precision_of_each_trainer(tmp_path):
    found = []
    for name in ("plain", "compiled"):
        inner, kept = Net(), []
        network = torch.compile(inner, backend="eager") if name == "compiled" else inner
        for number, (student, bf16) in enumerate([(network, True), (network, False), (network, True), (inner, False)]):
            kept.append(images(tmp_path / f"{name}{number}", student, bf16=bf16).train().training_loss)
        taught = images(tmp_path / f"{name}-taught", Net(), network, bf16=False).train().training_loss
        found.append([*kept, taught])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
