"""Rows without labels, from which a student learns by the teacher alone.

N items, S rows, C classes; z are the teacher's logits, v the student's.
"""

import math

import pytest
import torch
from reference import energy, energy_temperature, energy_thresholds, entropy, kl_of
from task_toys import KINDS, ROWS
from torch.utils.data import IterableDataset
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.losses.logits import KD

WITHOUT = ("BERT, a label a row", "AST", "ViT", "BERT, a label a token", "BERT, several labels", "ViT, several labels")
ALONE = {"ce_weight": 0.0, "kd_weight": 1.0}


def trainer(folder, kind, *networks, **settings):
    keywords = kind.keywords()
    rows = keywords["train_dataset"]
    keywords["train_dataset"] = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
    slots = {name: settings.pop(name) for name in ("objective", "temperature", "weighting") if name in settings}
    defaults = {"per_device_train_batch_size": ROWS, "max_steps": 1, "learning_rate": 1.0, "evaluate_teacher": False}
    args = arguments(folder, **(defaults | ALONE | settings))
    return DistillationTrainer(*networks, args, **keywords, **slots)


def row_logits(kind, network, row):
    """The logits [n, C] of a row's items: itself, or each of its tokens or (row, label) pairs."""
    logits = network(**{k: torch.as_tensor(v)[None] for k, v in row.items() if k != "labels"}).logits[0]
    if kind.task == "multi_label_classification":
        return torch.stack([torch.zeros_like(logits), logits], -1)
    return logits[None] if logits.ndim == 1 else logits


def naive_loss(kind, student, teacher, rows):
    """sum_s w_s T_s² sum_(n in s) KL(p_n || q_n) / N, one item after the other."""
    with torch.no_grad():
        zs = [row_logits(kind, teacher, row) for row in rows]
    energies = [sum(energy(z, 4.0) for z in row) / len(row) for row in zs]
    low, high = energy_thresholds(energies, 0.25)
    N, loss = sum(map(len, zs)), 0.0
    for row, z, E in zip(rows, zs, energies, strict=True):
        v, T = row_logits(kind, student, row), energy_temperature(E, low, high)
        H_t, H_s = (sum(entropy(x, 3.0) for x in one) / len(one) for one in (z, v.detach()))
        w = H_t * (1 + H_s / math.log(v.shape[-1])) / 2
        loss = (
            loss
            + sum(w * T**2 * kl_of(torch.softmax(a / T, 0), torch.softmax(b / T, 0)) for a, b in zip(z, v, strict=True))
            / N
        )
    return loss


@pytest.mark.parametrize("name", WITHOUT)
def test_a_step_is_a_naive_loop_over_every_row_or_attended_token(tmp_path, name):
    kind = KINDS[name]
    student, teacher = kind.pair()
    made = trainer(tmp_path, kind, student, teacher, temperature="energy(ratio=0.25)", weighting="entropy")
    expected = kind.pair()[0].eval()
    loss = naive_loss(kind, expected, teacher.eval(), kind.keywords()["train_dataset"])
    loss.backward()
    made.train()
    logged = made.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert "ce" not in logged
    for (name, p), q in zip(student.named_parameters(), expected.parameters(), strict=True):
        wanted = q.detach() - (0 if q.grad is None else q.grad)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-6, atol=1e-8, msg=name)


def test_labels_do_not_change_what_is_distilled_without_them(tmp_path):
    """The same steps with labels and ce_weight=0: nothing else reads them."""
    kind, losses = KINDS["ViT"], []
    for labelled in (False, True):
        student, teacher = kind.pair()
        settings = {"per_device_train_batch_size": 4, "max_steps": 4, "weighting": "entropy"}
        made = trainer(tmp_path / str(labelled), kind, student, teacher, **settings)
        if labelled:
            args = made.args
            made = DistillationTrainer(kind.pair()[0], teacher, args, **kind.keywords(), weighting="entropy")
        made.train()
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
        assert math.isfinite(made.evaluate()["eval_loss"])  # those that are scored have labels
    assert losses[0] == losses[1]


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def streamed(folder, kind, labelled, **settings):
    student, teacher = kind.pair()
    keywords = kind.keywords()
    rows = [{k: v for k, v in row.items() if labelled or k != "labels"} for row in keywords["train_dataset"]]
    args = arguments(folder, **({"per_device_train_batch_size": 4, "max_steps": 2} | ALONE | settings))
    return DistillationTrainer(student, teacher, args, **keywords | {"train_dataset": Stream(rows)})


@pytest.mark.parametrize("name", ["ViT", "BERT, a label a row"])
def test_a_stream_may_be_without_labels(tmp_path, name):
    losses = []
    for labelled in (False, True):
        made = streamed(tmp_path / str(labelled), KINDS[name], labelled)
        made.train()
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert losses[0][0] > 0


def test_a_stream_without_the_labels_that_are_learned_is_told_at_its_first_batch(tmp_path):
    with pytest.raises(ValueError, match=r"training rows have no labels \(they have .*ce_weight=0.1.*set ce_weight=0"):
        streamed(tmp_path, KINDS["ViT"], False, ce_weight=0.1).train()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ViT", {"ce_weight": 0.1}, r"training rows have no labels .they have \['pixel_values'\].*ce_weight=0.1"),
        ("ViT", {"objective": "dkd"}, "reads labels, but the training rows have none"),
        ("ViT", {"objective": "standardized(objective='nkd')"}, "reads labels, but the training rows have none"),
        ("ViT", {"weighting": lambda items: items.labels / 2.0}, "fails without"),
        ("ViT", {"objective": lambda items, t: t * items.labels}, "fails without"),
        ("T5", {}, "seq2seq_lm needs labels"),
        ("Whisper", {}, "seq2seq_lm needs labels"),
    ],
)
def test_what_reads_labels_is_refused_when_the_trainer_is_built(tmp_path, name, settings, message):
    kind = KINDS[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", kind, *kind.pair(), **settings)
    assert not (tmp_path / "run").exists()


def test_a_slot_that_reads_no_labels_is_taken(tmp_path):
    kind = KINDS["BERT, a label a token"]
    own = {"objective": lambda items, t: KD()(items, t), "weighting": lambda items: items.teacher.entropy(3.0)}
    made = trainer(tmp_path, kind, *kind.pair(), **own)
    made.train()
    assert made.state.log_history[0]["kd"] > 0


def test_a_slot_that_wants_a_whole_batch_is_left_to_the_first_step(tmp_path):
    """It fails on the first rows with labels as well: no reason to speak of them."""

    def whole(items, temperature):
        assert len(items) == ROWS
        return KD()(items, temperature)

    kind = KINDS["ViT"]
    made = trainer(tmp_path, kind, *kind.pair(), objective=whole)
    made.train()
    assert made.state.log_history[0]["kd"] > 0
