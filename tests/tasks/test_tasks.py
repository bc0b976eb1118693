"""Every task with real networks: the model's own loss, and gradients as the papers' formulas give them row by row.

N items, S rows, L length, C classes; z are the teacher's logits, v the student's.
"""

import copy
import math

import pytest
import torch
from reference import energy, energy_temperature, energy_thresholds, entropy, kl_of
from task_toys import KINDS, ROWS
from test_ranks import run
from torch.nn.functional import cross_entropy, interpolate
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.utils.targets import IGNORED

RATIO = 0.25
SLOTS = {"temperature": f"energy(ratio={RATIO})", "weighting": "entropy"}
PIXELS = {"temperature": "energy(ratio=0.2, level='item')", "weighting": "entropy(level='item')"}
MASKED_KINDS = [name for name, kind in KINDS.items() if kind.task == "semantic_segmentation"]
BOTH = {"ce_weight": 0.3, "kd_weight": 0.7}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def trainer(folder, kind, student, teacher, **settings):
    defaults = {"per_device_train_batch_size": ROWS, "max_steps": 1, "learning_rate": 1.0, "evaluate_teacher": False}
    return DistillationTrainer(student, teacher, arguments(folder, **(defaults | settings)), **kind.keywords())


def row_items(kind, network, row):
    """One row alone, without padding: the logits [n, C] of its items, and their labels."""
    inputs = {k: torch.as_tensor(v)[None] for k, v in row.items() if k != "labels"}
    labels = torch.as_tensor(row["labels"])
    if kind.task == "seq2seq_lm":
        return network(**inputs, labels=labels[None]).logits[0], labels
    logits = network(**inputs).logits[0]
    if kind.task == "semantic_segmentation":
        return pixels(logits, labels)
    if kind.task == "multi_label_classification":
        return torch.stack([torch.zeros_like(logits), logits], -1), labels.long()
    if logits.ndim == 1:
        return logits[None], labels[None]
    if kind.task == "causal_lm":
        logits, labels = logits[:-1], labels[1:]
    known = labels != IGNORED
    return logits[known], labels[known]


def pixels(logits, labels):
    """The logits of each pixel that has a label, at the labels' size, one pixel after the other."""
    whole = interpolate(logits[None], labels.shape, mode="bilinear", align_corners=False)[0]
    places = [(h, w) for h in range(labels.shape[0]) for w in range(labels.shape[1]) if labels[h, w] not in (255, -100)]
    found = [whole[:, h, w] for h, w in places]
    return (torch.stack(found) if found else whole.new_zeros(0, len(whole))), labels[labels != 255][
        labels[labels != 255] != -100
    ]


def auxiliary_loss(kind, student, batch):
    """What the second head adds: its cross-entropy over all pixels that have a label."""
    if not kind.auxiliary:
        return 0.0
    labels = batch["labels"].masked_fill(batch["labels"] == IGNORED, 255)
    seen = []
    hook = student.auxiliary_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    student(pixel_values=batch["pixel_values"])
    hook.remove()
    whole = interpolate(seen[0], labels.shape[1:], mode="bilinear", align_corners=False)
    return student.config.auxiliary_loss_weight * cross_entropy(whole, labels, ignore_index=255)


def naive_loss(kind, student, teacher, rows, rest):
    """ce_weight * CE + kd_weight * sum_s w_s T_s² sum_(n in s) KL(p_n || q_n) / N, one item after the other."""
    with torch.no_grad():
        zs = [row_items(kind, teacher, row)[0] for row in rows]
    pairs = [row_items(kind, student, row) for row in rows]
    zs, pairs = zip(*((z, pair) for z, pair in zip(zs, pairs, strict=True) if len(z)), strict=True)
    energies = [sum(energy(z, 4.0) for z in row) / len(row) for row in zs]
    low, high = energy_thresholds(energies, RATIO)
    N = sum(len(labels) for _, labels in pairs)
    loss = BOTH["ce_weight"] * rest
    for z, (v, labels), E in zip(zs, pairs, energies, strict=True):
        T = energy_temperature(E, low, high)
        H_t, H_s = (sum(entropy(x, 3.0) for x in row) / len(row) for row in (z, v.detach()))
        w = H_t * (1 + H_s / math.log(v.shape[-1])) / 2
        for n, label in enumerate(labels):
            loss = loss + BOTH["ce_weight"] * cross_entropy(v[n], label) / N
            kd = T**2 * kl_of(torch.softmax(z[n] / T, 0), torch.softmax(v[n] / T, 0))
            loss = loss + BOTH["kd_weight"] * w * kd / N
    return loss


def added_loss(kind, student, batch):
    """What the network adds to the cross-entropy in its own loss."""
    if not kind.router:
        return auxiliary_loss(kind, student, batch)
    known = ("input_ids", "attention_mask", "position_ids")
    return student.config.router_aux_loss_coef * student(**{name: batch[name] for name in known}).aux_loss


def own_loss(kind, student, batch):
    """The model's `.loss` on the batch."""
    names = ("input_ids", "attention_mask", "pixel_values", "input_values", "input_features", "labels")
    inputs = {name: batch[name] for name in names if name in batch}
    if kind.task == "semantic_segmentation":  # these take 255 alone for none
        inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == IGNORED, 255)
    with torch.no_grad():
        return student(**inputs).loss.item()


@every_kind
def test_its_loss_is_the_models_own(tmp_path, kind):
    student, teacher = kind.pair()
    made = trainer(tmp_path, kind, student.eval(), teacher)
    assert made.task.name == kind.task
    batch = made.data_collator(made.train_dataset)
    own = own_loss(kind, student, batch)
    with torch.no_grad():
        rest = float(added_loss(kind, student, batch))
    assert made.evaluate()["eval_loss"] == pytest.approx(own - rest, rel=1e-6)
    labels_only = trainer(tmp_path, kind, student, None, ce_weight=1.0, kd_weight=0.0)
    assert labels_only.train().training_loss == pytest.approx(own, rel=1e-6)


@every_kind
def test_a_network_learns_nothing_from_itself(tmp_path, kind):
    student = kind.network()
    before = copy.deepcopy(student.state_dict())
    made = trainer(tmp_path, kind, student, copy.deepcopy(student), ce_weight=0.0, kd_weight=1.0, **SLOTS)
    assert made.train().training_loss == pytest.approx(0, abs=1e-9)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6, msg=name)


PARTS = [(ROWS, 1), (ROWS // 2, 2)]


@pytest.mark.parametrize(
    ("size", "steps"), [PARTS[0], pytest.param(*PARTS[1], marks=pytest.mark.slow)], ids=["whole", "accumulated"]
)
@every_kind
def test_its_step_is_that_of_the_formulas(tmp_path, kind, size, steps):
    if kind.router and steps > 1:
        pytest.skip("a router loss couples the rows of a batch")
    student, teacher = kind.pair()
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    made = trainer(tmp_path, kind, student, teacher, **settings, **BOTH, **SLOTS)
    rows = made.train_dataset
    expected = copy.deepcopy(student)
    rest = added_loss(kind, expected, made.data_collator(rows))
    naive_loss(kind, expected, teacher, rows, rest).backward()
    made.train()
    moved = 0.0
    for (name, before), after in zip(expected.named_parameters(), student.parameters(), strict=True):
        step = before.detach() - after.detach()
        wanted = torch.zeros_like(step) if before.grad is None else before.grad
        torch.testing.assert_close(step, wanted, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        moved += wanted.abs().sum().item()
    assert moved > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "slots"), [(list(KINDS), SLOTS), (MASKED_KINDS, PIXELS)], ids=["every kind", "pixel by pixel"]
)
def test_two_ranks_are_one_process_that_accumulates_their_batches(tmp_path, names, slots):
    """Each kind in turn, in one process group: its parameters after two steps, and its loss."""
    job = {**BOTH, **slots, "max_steps": 2, "per_device_train_batch_size": 4, "evaluate_teacher": False, "kinds": names}
    one = run(tmp_path / "one", 1, "rank_job_tasks.py", job, gradient_accumulation_steps=2)
    two = run(tmp_path / "two", 2, "rank_job_tasks.py", job)
    for name in names:
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-6), name
        for key, value in one[0][name].items():
            torch.testing.assert_close(two[0][name][key], value, rtol=0, atol=1e-6, msg=f"{name}: {key}")
