"""Several teachers: the combinations against loops over teachers and items, and the trainer with a list of teachers."""

import pytest
import reference
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import KD, Average, InverseEntropy, Standardized

N, C, K = 5, 6, 3


def make():
    g = torch.Generator().manual_seed(1)
    student, *taught = 3 * torch.randn(K + 1, N, C, generator=g, dtype=torch.float64)
    return image_items(student, torch.stack(taught), torch.arange(N))


def naive(items, shares):
    """sum_k a_k T² KL(p_k || q), item by item."""
    z = [one.logits for one in items.teachers]
    return torch.tensor(
        [
            sum(a * reference.kd(z[k][n], items.student.logits[n], None, 4.0) for k, a in enumerate(shares(z, n)))
            for n in range(N)
        ],
        dtype=torch.float64,
    )


def test_average():
    items = make()
    torch.testing.assert_close(Average()(items, torch.full((N,), 4.0)), naive(items, lambda z, n: [1 / K] * K))


def test_inverse_entropy():
    def shares(z, n):
        inverse = [1 / reference.entropy(one[n], 1.5) for one in z]
        return [x / sum(inverse) for x in inverse]

    items = make()
    values = InverseEntropy(entropy_temperature=1.5)(items, torch.full((N,), 4.0))
    torch.testing.assert_close(values, naive(items, shares))


def test_the_order_of_the_teachers_does_not_matter_and_equal_teachers_are_one():
    items = make()
    t = torch.full((N,), 4.0)
    stacked = torch.stack([one.logits for one in items.teachers])
    turned = image_items(items.student.logits, stacked.flip(0), items.labels)
    same = image_items(items.student.logits, stacked[:1].expand(K, N, C), items.labels)
    one = image_items(items.student.logits, stacked[0], items.labels)
    for objective in (Average("dkd"), InverseEntropy("dkd")):
        torch.testing.assert_close(objective(items, t), objective(turned, t))
        torch.testing.assert_close(objective(same, t), objective(one, t))


def test_a_certain_teacher_takes_all_and_stays_finite():
    items = make()
    stacked = torch.stack([one.logits for one in items.teachers])
    stacked[1] *= 1e4
    sure = image_items(items.student.logits, stacked, items.labels)
    values = InverseEntropy()(sure, torch.full((N,), 4.0))
    alone = KD()(image_items(items.student.logits, stacked[1], items.labels), torch.full((N,), 4.0))
    torch.testing.assert_close(values, alone, rtol=1e-3, atol=0)


def test_the_trainer_takes_a_list_of_teachers(tmp_path):
    teachers = [teacher(), Net(8, seed=7)]
    arguments_ = arguments(tmp_path, max_steps=1, per_device_train_batch_size=32)
    slots = {"objective": "inverse_entropy", "temperature": "energy", "weighting": "entropy"}
    trainer = DistillationTrainer(Net(), teachers, arguments_, train_dataset=Rows(), eval_dataset=Rows(9), **slots)
    trainer.train()
    rows = Rows()
    with torch.no_grad():
        taught = torch.stack([one.eval()(rows.images) for one in teachers])
    energies = -4 * (taught.mean(0) / 4).logsumexp(-1)
    torch.testing.assert_close(trainer.scan_result.energy, energies)
    student = Net()
    loss, _ = DistillationLoss("inverse_entropy", trainer.distillation_loss.temperature, "entropy")(
        image_items(student(rows.images), taught, rows.labels)
    )
    loss.backward()
    for mine, theirs in zip(student.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine - 0.1 * mine.grad, rtol=0, atol=1e-6)
    assert " + Net" in trainer.record.teacher


def test_a_list_of_one_teacher_and_different_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pass two or more"):
        DistillationTrainer(Net(), [teacher()], arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(ValueError, match=r"teachers have \[5, 7\] classes"):
        DistillationTrainer(Net(), [teacher(), Net(classes=7)], arguments(tmp_path), train_dataset=Rows())


def test_standardised_each_teacher_is():
    items, t = make(), torch.full((N,), 2.0)
    inside, outside = (Standardized("average"), Average(Standardized("kd")))
    torch.testing.assert_close(inside(items, t), outside(items, t))
