"""The router loss of a mixture of experts joins the loss, as in the model's own, by the share of the labels."""

import pytest
import torch
from test_ranks import run
from text_toys import VOCAB, TokenRows, language_model, mixture_of_experts, taught_model, token_dataset, tokenizer
from torch import nn
from toys import arguments
from transformers import JetMoeConfig, JetMoeForCausalLM
from versions import since

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.teachers import CachedTextTeacher, build_text_cache
from hfkd.utils.targets import IGNORED

ROWS = 8
ALONE = {"ce_weight": 1.0, "kd_weight": 0.0}


def trainer(folder, student, teacher=None, rows=None, objective=None, **keywords):
    steps = {"max_steps": 1, "per_device_train_batch_size": ROWS, "per_device_eval_batch_size": ROWS}
    return DistillationTrainer(
        student,
        teacher,
        arguments(folder, **(steps | keywords)),
        objective=objective,
        train_dataset=TokenRows(ROWS) if rows is None else rows,
        eval_dataset=TokenRows(ROWS),
        processing_class=tokenizer(),
    )


def first_step(made):
    made.train()
    return next(entry for entry in made.state.log_history if "loss" in entry)


def own(student, rows):
    """The model's own loss of these rows as one batch, and what of it is router loss."""
    batch = TokenCollator(0)(rows)
    batch.pop("host_targets")
    with torch.no_grad():
        output = student(**batch)
    return output.loss.item(), 0.5 * output.aux_loss.item()


WAYS = {
    "heads on targets": {},
    "chunks": {"loss_chunk_size": 16},
    "whole logits": {"torch_compile": False, "return_outputs": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_of_a_step_is_the_models_own(tmp_path, way):
    settings = dict(WAYS[way])
    student = mixture_of_experts()
    loss, router = own(student, TokenRows(ROWS).rows)
    made = trainer(tmp_path, student, **ALONE, **{k: v for k, v in settings.items() if k != "return_outputs"})
    if "return_outputs" in settings:
        compute = made.compute_loss
        made.compute_loss = lambda *args, **keywords: compute(*args, **(keywords | {"return_outputs": True}))[0]
    entry = first_step(made)
    assert router > 0.5
    assert entry["loss"] == pytest.approx(loss, rel=1e-5)
    assert entry["router_loss"] == pytest.approx(router, rel=1e-5)
    assert entry["ce"] == pytest.approx(loss - router, rel=1e-5)


class Halves(nn.DataParallel):
    """What DataParallel does on two GPUs, with one copy on a CPU."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, **inputs):
        halves = [{k: v.chunk(2)[n] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()} for n in range(2)]
        outputs = [self.module(**half) for half in halves]
        self.routers = [0.5 * one.aux_loss.item() for one in outputs]
        numbers = {"logits": torch.cat([one.logits for one in outputs])}
        return type(outputs[0])(**numbers, aux_loss=torch.stack([one.aux_loss for one in outputs]))


def test_the_router_loss_of_data_parallel_is_the_mean_of_the_copies(tmp_path):
    student = mixture_of_experts()
    copies = Halves(student)
    loss, router = own(student, TokenRows(ROWS).rows)
    made = trainer(tmp_path, student, **ALONE)
    made.args._n_gpu = 2
    made._wrap_model = lambda model, training=True, dataloader=None: copies if training else model
    entry, of_both = first_step(made), sum(copies.routers) / 2
    assert copies.routers[0] != copies.routers[1]
    assert entry["router_loss"] == pytest.approx(of_both, rel=1e-5)
    assert entry["loss"] == pytest.approx(loss - router + of_both, rel=1e-5)


def test_a_step_moves_the_routers_as_the_models_own_loss_does(tmp_path):
    student, other = mixture_of_experts(), mixture_of_experts()
    batch = TokenCollator(0)(TokenRows(ROWS).rows)
    batch.pop("host_targets")
    other(**batch).loss.backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in other.named_parameters()}
    trainer(tmp_path, student, **ALONE).train()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_parts_of_a_batch_count_by_their_labels(tmp_path):
    """Plain Trainer adds the router loss once a micro-batch: twice as much for two."""
    student, rows = mixture_of_experts(), TokenRows(ROWS).rows
    made = trainer(tmp_path, student, **ALONE, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    order = [batch["labels"] for batch in made.get_train_dataloader()]
    by_labels = {tuple(row["labels"]): row for row in rows}
    parts = [[by_labels[_unpadded(labels, by_labels)] for labels in batch.tolist()] for batch in order]
    counts = [sum(label != IGNORED for row in part for label in row["labels"][1:]) for part in parts]
    assert counts[0] != counts[1]
    losses = [own(student, part) for part in parts]
    expected = sum(loss * count for (loss, _), count in zip(losses, counts, strict=True)) / sum(counts)
    entry = first_step(made)
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    router = sum(share * count for (_, share), count in zip(losses, counts, strict=True)) / sum(counts)
    assert entry["router_loss"] == pytest.approx(router, rel=1e-5)


def _unpadded(labels, known):
    return next(tuple(labels[:end]) for end in range(len(labels), 0, -1) if tuple(labels[:end]) in known)


def test_two_ranks_are_one_process_that_accumulates(tmp_path):
    job = ALONE | {"experts": True, "max_steps": 3}
    splits = ((2, {"per_device_train_batch_size": 4}), (1, {"gradient_accumulation_steps": 2}))
    (one, record), (other, other_record) = (
        run(tmp_path / str(ranks), ranks, "rank_job_text.py", job, **({"per_device_train_batch_size": 4} | split))
        for ranks, split in splits
    )
    for name, parameter in one.items():
        torch.testing.assert_close(other[name], parameter, rtol=0, atol=1e-5, msg=name)
    for a, b in zip(record["log"], other_record["log"], strict=True):
        for key in ("loss", "ce", "router_loss"):
            assert b.get(key) == pytest.approx(a.get(key), abs=2e-5), key


def test_it_belongs_to_the_task_and_is_weighted_with_it(tmp_path):
    student = mixture_of_experts()
    loss, router = own(student, TokenRows(ROWS).rows)
    entries = {}
    for ce_weight in (0.0, 0.25, 1.0):
        made = trainer(tmp_path / str(ce_weight), mixture_of_experts(), taught_model(), ce_weight=ce_weight)
        entries[ce_weight] = first_step(made)
    distillation = entries[0.0]["loss"]
    assert distillation == pytest.approx(0.9 * entries[0.0]["kd"], rel=1e-4)
    assert "router_loss" not in entries[0.0]
    for ce_weight in (0.25, 1.0):
        assert entries[ce_weight]["loss"] == pytest.approx(distillation + ce_weight * loss, rel=1e-5)
        assert entries[ce_weight]["router_loss"] == pytest.approx(router, rel=1e-5)


@pytest.mark.parametrize("objective", ["kd", "dist"])
def test_a_live_and_a_stored_teacher(tmp_path, objective):
    rows = token_dataset(ROWS)
    teacher = taught_model()
    if objective == "kd":
        build_text_cache(teacher, rows, tmp_path / "cache", temperatures=2.0, progress_bar=False)
        teacher = CachedTextTeacher(tmp_path / "cache")
    student = mixture_of_experts()
    made = trainer(tmp_path / "run", student, teacher, rows, objective, temperature="2.0")
    loss, router = own(student, TokenRows(ROWS).rows)
    entry = first_step(made)
    assert entry["router_loss"] == pytest.approx(router, rel=1e-5)
    assert entry["ce"] == pytest.approx(loss - router, rel=1e-5)
    if objective == "kd":
        assert entry["loss"] == pytest.approx(0.1 * loss + 0.9 * entry["kd"], rel=1e-4)


def test_eval_loss_is_the_cross_entropy_alone(tmp_path):
    student = mixture_of_experts()
    loss, router = own(student, TokenRows(ROWS).rows)
    assert trainer(tmp_path, student, **ALONE).evaluate()["eval_loss"] == pytest.approx(loss - router, rel=1e-5)


def test_without_router_logits_there_is_none(tmp_path):
    student = mixture_of_experts()
    student.config.output_router_logits = False
    assert "router_loss" not in first_step(trainer(tmp_path, student, **ALONE))
    assert "router_loss" not in first_step(trainer(tmp_path / "dense", language_model(), **ALONE))


@since("transformers", "5.23", "give no router loss of JetMoE")
def test_a_factor_of_another_name(tmp_path):
    torch.manual_seed(0)
    config = JetMoeConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=16,
        num_local_experts=4,
        output_router_logits=True,
        aux_loss_coef=0.5,
    )
    student = JetMoeForCausalLM(config).eval()
    loss, router = own(student, TokenRows(ROWS).rows)
    assert router > 0.1
    assert first_step(trainer(tmp_path, student, **ALONE))["loss"] == pytest.approx(loss, rel=1e-3)


class Experts(nn.Module):
    """A user's own network, with a router loss and not a word of its factor."""

    def __init__(self):
        super().__init__()
        self.net = mixture_of_experts()

    def forward(self, input_ids, attention_mask=None):
        return self.net(input_ids, attention_mask=attention_mask)


def test_a_factor_that_nobody_names_is_refused(tmp_path):
    student = Experts()
    with pytest.raises(ValueError, match="has none of .*, the factor of this loss"):
        trainer(tmp_path, student, **ALONE)
    student.router_aux_loss_coef = 0.5
    loss, _ = own(student.net, TokenRows(ROWS).rows)
    assert first_step(trainer(tmp_path, student, **ALONE))["loss"] == pytest.approx(loss, rel=1e-5)
