"""What an objective may be beyond a number an item: numbers of samples, shares, parts of its own. Each by a toy."""

from dataclasses import replace

import pytest
import torch
from text_toys import TokenRows, language_model, taught_model, tokenizer
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationLoss, DistillationTrainer, Objective
from hfkd.losses.counts import Counts
from hfkd.losses.items import token_items
from hfkd.utils.targets import IGNORED

B, L, V = 3, 5, 7
LABELS = torch.tensor([[4, IGNORED, 2, 3, IGNORED], [IGNORED] * 5, [1, 2, 3, 4, 5]])  # 2 targets, none, 4


class MeanLogit(Objective):
    """l_s = (mean_n v_n - mean_n z_n)^2, means over the sample's items and classes"""

    level = "sample"

    def __call__(self, items, temperature):
        student, taught = (items.sample_means(z.logits.double()) for z in (items.student, items.teacher))
        return (student - taught).mean(-1) ** 2


def tokens(seed=0):
    g = torch.Generator().manual_seed(seed)
    student, taught = torch.randn(2, B, L, V, generator=g, dtype=torch.float64)
    return token_items(student.requires_grad_(), taught, LABELS)


def test_a_number_for_each_sample_takes_the_mean_weight_of_its_items_and_is_divided_by_samples():
    items = tokens()
    weight = torch.arange(1.0, 7, dtype=torch.float64)
    loss = DistillationLoss(MeanLogit(), 4.0, lambda items: weight, ce_weight=0.0, kd_weight=0.5)
    value, parts = loss(items)
    by_hand = 0
    for rows in (slice(0, 2), slice(2, 6)):  # the middle row has no items, and counts nowhere
        l = (items.student.logits[rows].mean() - items.teacher.logits[rows].mean()) ** 2  # noqa: E741
        by_hand = by_hand + weight[rows].mean() * l / 2
    torch.testing.assert_close(value, 0.5 * by_hand)
    assert {"kd", "temperature", "weight"} <= parts.keys()
    torch.testing.assert_close(parts["kd"].double(), by_hand.detach())  # what is logged leaves the empty row out too
    # The same as a part of a step that has three times as many samples.
    torch.testing.assert_close(loss(items, Counts(18, 18, 6))[0], 0.5 * by_hand / 3)
    with pytest.raises(ValueError, match="num_items=6 does not give the number of samples.*pass Counts with samples"):
        loss(items, 6)


@pytest.mark.parametrize("kind", ["tokens", "images"])
def test_accumulated_batches_are_one_for_an_objective_on_samples(tmp_path, kind):
    def run(folder, **split):
        args = arguments(tmp_path / folder, max_steps=2, weighting="entropy", **split)
        keywords = {"objective": MeanLogit()}
        if kind == "tokens":
            networks, data = (language_model(), taught_model()), {"train_dataset": TokenRows()}
            keywords["processing_class"] = tokenizer()
        else:
            networks, data = (Net(), teacher()), {"train_dataset": Rows()}
        trainer = DistillationTrainer(*networks, args, **data, **keywords)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    whole = run("whole", per_device_train_batch_size=8)
    parts = run("parts", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_number_for_each_sample_is_refused_where_there_are_chunks(tmp_path):
    args = arguments(tmp_path, loss_chunk_size=8)
    with pytest.raises(
        ValueError,
        match="may read all items. logits for a value per sample .* which a chunked loss cannot compute",
    ):
        DistillationTrainer(
            language_model(), taught_model(), args, objective=MeanLogit(), processing_class=tokenizer(),
            train_dataset=TokenRows(),
        )  # fmt: skip


def test_shares_make_a_mean_over_samples_of_means_over_items():
    items = tokens()
    count = items.sample.bincount(minlength=B)[items.sample]
    shared = replace(items, share=1 / count.double())
    loss = DistillationLoss("kd", 4.0, "uniform", ce_weight=0.0, kd_weight=1.0)
    each = loss.per_item(items, **loss.choose(items))["kd"]
    expected = (each[:2].mean() + each[2:].mean()) / 2
    torch.testing.assert_close(loss(shared)[0], expected)
    torch.testing.assert_close(loss(shared, Counts(12, 12, 4))[0], expected / 2)


def test_what_a_network_adds_joins_by_the_share_of_the_labels():
    items = replace(tokens(), rest=torch.tensor(3.0))
    loss = DistillationLoss(ce_weight=0.5, kd_weight=0.0)
    plain = DistillationLoss(ce_weight=0.5, kd_weight=0.0)(replace(items, rest=None), 12)[0]
    torch.testing.assert_close(loss(items, 12)[0], plain + 0.5 * 6 / 12 * 3)


class Agent(Objective, nn.Module):
    """l_n = (a - z_n0)^2 at the scale of nothing; a learns to be 2 by a loss of its own."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a = nn.Parameter(torch.zeros(()))

    def __call__(self, items, temperature):
        return (items.student.logits[:, 0] - self.a.detach()) ** 2

    def own_loss(self, items, temperature):
        return (self.a - 2) ** 2

    def parameter_groups(self):
        return [{"params": [self.a], "lr": 0.25}]

    forward = __call__


def test_parts_of_its_own_learn_by_a_loss_of_their_own_at_a_rate_of_their_own(tmp_path):
    agent = Agent()
    args = arguments(tmp_path, max_steps=1, learning_rate=0.1, kd_weight=1e-3, gradient_accumulation_steps=2)
    trainer = DistillationTrainer(Net(), teacher(), args, objective=agent, weighting=lambda i: 0 * i.labels + 0.5,
                                  train_dataset=Rows())  # fmt: skip
    trainer.train()
    # One step of SGD on (a - 2)^2, whatever kd_weight and weight are, and over two accumulated batches: 0.25 * 4.
    assert agent.a.item() == pytest.approx(1.0, rel=1e-6)
    assert [group["lr"] for group in trainer.optimizer.param_groups][-1] == 0.25
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["own_loss"] == pytest.approx(4.0)


def test_an_optimizer_that_was_given_trains_them_at_that_rate_too(tmp_path):
    agent, student = Agent(), Net()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = DistillationTrainer(student, teacher(), arguments(tmp_path, max_steps=1), objective=agent,
                                  train_dataset=Rows(), optimizers=(optimizer, None))  # fmt: skip
    trainer.train()
    assert agent.a.item() == pytest.approx(1.0, rel=1e-6)


def test_the_teacher_gets_no_gradient():
    items = tokens()
    taught = items.teacher.logits.clone().requires_grad_()
    items = replace(items, teacher=replace(items.teacher, logits=taught))
    for objective in ("kd", "dkd(warmup_epochs=0)", "mld", "dist", "average"):
        loss = DistillationLoss(objective, "energy(thresholds=(-9.0, -5.0))", "entropy")(items)[0]
        student, of_teacher = torch.autograd.grad(loss, [items.student.logits, taught], allow_unused=True)
        assert of_teacher is None
        assert student.abs().sum() > 0


class Slope(nn.Module):
    """T_n = 1 + a H_n, H_n the student's entropy."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, items):
        return 1 + self.a * items.student.entropy(3.0)


def test_a_temperature_of_the_students_entropy_is_not_what_the_student_learns():
    items, slope = tokens(), Slope()
    known = slope(items).detach()
    found = []
    for temperature in (slope, lambda items: known):
        loss = DistillationLoss("kd", temperature, ce_weight=0.0, kd_weight=1.0)(items)[0]
        found.append(torch.autograd.grad(loss, items.student.logits, retain_graph=True)[0])
    torch.testing.assert_close(*found)
    value = DistillationLoss("kd", slope, ce_weight=0.0, kd_weight=1.0)(items)[0]
    assert torch.autograd.grad(value, slope.a)[0] != 0  # which is trained
