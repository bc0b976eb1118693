import math

import numpy as np
import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient
from scan_job import packed
from toys import Net, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.transforms import ImageTransform
from hfkd.losses.features.crd import Embedding, contrast, exponentials
from hfkd.losses.features.memory_bank import MemoryBank
from hfkd.losses.features.negatives import Negatives


def naive(v, memory, rows, temperature, z, n):
    """With h = e / (e + K/N), image by image: log h(own) + sum over the others of log(1 - h)."""
    losses = []
    for i in range(len(v)):
        c = (rows.shape[1] - 1) / n
        e = [torch.exp(memory[r] @ v[i] / temperature) / z for r in rows[i]]
        loss = -torch.log(e[0] / (e[0] + c + 1e-7))
        losses.append(loss - sum(torch.log(c / (x + c + 1e-7)) for x in e[1:]))
    return torch.stack(losses)


def test_the_paper_image_by_image():
    v, memory = random_pair((3, 4), (10, 4))
    rows = torch.tensor([[0, 5, 6], [1, 7, 7], [2, 0, 1]])
    scores = exponentials(v, memory, rows, 0.5)
    same_value_and_gradient(contrast(scores / 30, 2 / 10), naive(v, memory, rows, 0.5, 30, 10), v)


@pytest.mark.parametrize("case", ["fixed_z", "first_batch"])
def test_published_numbers(case):
    z = oracle("features/crd")
    s, t, T = leaf(z["student_pooled"]), z["teacher_pooled"], z["temperature"].item()
    N, K = int(z["num_data"]), z["contrast_index"].shape[1] - 1
    bank = MemoryBank(N, 16, z["momentum"].item(), seed=0)
    bank.student, bank.teacher = z["memory_student"].clone(), z["memory_teacher"].clone()
    bank.normalizers = torch.stack([z[f"{case}.z_student"], z[f"{case}.z_teacher"]])
    bank.normalized = dict.fromkeys(bank.normalized, case == "fixed_z")
    bank._forget()
    embeddings, leaves = {}, {"student_pooled": (s, z[f"{case}.grad_student_pooled"])}
    for name, x in (("student", s), ("teacher", t)):
        embed = embeddings[name] = Embedding((x.shape[1],), 16).double()
        keys = {"linear.weight": z[f"embed_{name}.linear.weight"], "linear.bias": z[f"embed_{name}.linear.bias"]}
        embed.load_state_dict(keys)
        leaves |= {f"{name}.{n}": (p, z[f"{case}.grad__embed_{name}.{n}"]) for n, p in embed.named_parameters()}
    bank.arrive(0, torch.device("cpu"))
    v_s, v_t = embeddings["student"](s), embeddings["teacher"](t)
    rows, total = z["contrast_index"], 0.0
    for name, v, memory in (("student", v_s, bank.teacher), ("teacher", v_t, bank.student)):
        scores = exponentials(v, memory, rows, T)
        total = total + contrast(scores / bank.normalizer(name, scores), K / N)
        # The release holds it, and its temperature, in float32.
        torch.testing.assert_close(bank.normalizer(name, scores), z[f"{case}.z_{name}_after"], rtol=1e-6, atol=0)
    as_published(total, z[f"{case}.loss"], **leaves)
    bank.remember(z["index"], v_s, v_t)
    torch.testing.assert_close(bank.student, z["memory_student"])  # not before the step is over
    bank.arrive(1, torch.device("cpu"))
    for name in ("student", "teacher"):
        torch.testing.assert_close(getattr(bank, name), z[f"{case}.memory_{name}_after"])


def test_micro_batches_of_a_step_meet_the_same_memories():
    bank = MemoryBank(6, 3, 0.5, seed=0)
    before = bank.student.clone()
    v = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    for micro in (slice(0, 2), slice(2, 4)):
        bank.arrive(0, torch.device("cpu"))
        assert torch.equal(bank.student, before)
        bank.remember(torch.arange(4)[micro], v[micro], v[micro])
    bank.arrive(1, torch.device("cpu"))
    moved = (before[:4] + v) / 2
    torch.testing.assert_close(bank.student[:4], moved / moved.norm(dim=-1, keepdim=True))
    assert torch.equal(bank.student[4:], before[4:])


def test_a_bank_is_saved_in_the_middle_of_a_step_and_loaded_as_it_was():
    bank, other = (MemoryBank(6, 3, 0.5, seed=seed) for seed in (0, 1))
    bank.arrive(3, torch.device("cpu"))
    bank.normalizer("student", torch.ones(2, 2))
    bank.remember(torch.tensor([1, 2]), torch.ones(2, 3), torch.ones(2, 3))
    other.load_state_dict(bank.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in bank.state_dict().values())
    assert not list(bank.buffers())
    for one in (bank, other):
        one.arrive(4, torch.device("cpu"))
    assert torch.equal(other.student, bank.student)
    assert other.normalized == {"student": True, "teacher": False}
    assert other.step == 4
    with pytest.raises(RuntimeError, match=r"shape \(6, 3\) instead of \(7, 3\)"):
        MemoryBank(7, 3, 0.5, seed=0).load_state_dict(bank.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict({})


# ---- negatives ----------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_negatives_are_all_other_images_or_all_of_other_classes_alike(labels):
    index, count = torch.tensor([1, 5]), 40_000
    drawn = Negatives(8, labels)(0, 7, index, count)
    for own, rows in zip(index.tolist(), drawn, strict=True):
        allowed = [i for i in range(8) if i != own and (labels is None or labels[i] != labels[own])]
        counts = rows.bincount(minlength=8)
        assert counts.nonzero().flatten().tolist() == allowed
        expected = count / len(allowed)
        assert ((counts[allowed] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_negatives_depend_on_seed_step_and_image_and_on_nothing_else():
    draw, index = Negatives(1000), torch.tensor([3, 4, 5])
    rows = draw(1, 2, index, 50)
    assert torch.equal(draw(1, 2, index[[2, 0]], 50), rows[[2, 0]])
    assert torch.equal(draw(1, 2, index, 20), rows[:, :20])
    for other in (draw(2, 2, index, 50), draw(1, 3, index, 50), draw(1, 2, index + 3, 50)):
        assert (other != rows).float().mean() > 0.9


@pytest.mark.parametrize("labels", [None, torch.zeros(1, dtype=torch.long)])
def test_without_other_rows_there_are_no_negatives(labels):
    with pytest.raises(ValueError, match="no negatives"):
        Negatives(1, labels)


def test_a_step_that_broke_is_not_remembered():
    """Of its images the memories stay what they were, of others they move; the normalizer is that of the next step."""
    bank, cpu = MemoryBank(4, 3, 0.5, seed=0), torch.device("cpu")
    before, v = bank.student.clone(), torch.eye(3)[:2]
    broken = v.clone()
    broken[0] = torch.nan
    bank.arrive(0, cpu)
    bank.normalizer("student", torch.full((2, 3), torch.nan))
    bank.remember(torch.tensor([0, 1]), broken, v)
    bank.arrive(1, cpu)
    assert torch.equal(bank.student[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(bank.student[1], before[1])
    assert bank.teacher.isfinite().all()
    assert bank.normalizer("student", torch.ones(2, 3)) == 4
    assert bank.normalizer("student", 5 * torch.ones(2, 3)) == 4


# ---- rows of the training set ---------------------------------------------------------------------------------------


def trained(folder, rows, **settings):
    settings = {"objective": "crd(layer='conv', negatives=8, dimension=4)", "max_steps": 4} | settings
    args = arguments(folder, evaluate_teacher=False, **settings)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "part",
    [
        lambda rows: rows.shuffle(seed=1),
        lambda rows: rows.select(range(9, 23)),
        lambda rows: rows.select([22, 3, 8, 4]),
    ],
)
def test_rows_that_were_selected_or_shuffled_have_the_memories_and_negatives_of_rows_numbered_anew(tmp_path, part):
    kept = part(packed(transform=ImageTransform()))
    anew = kept.with_format(None).remove_columns("index").add_column("index", np.arange(len(kept)))
    one = trained(tmp_path / "kept", kept)
    other = trained(tmp_path / "anew", anew.with_transform(ImageTransform()))
    for mine, its in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    mine, its = (x.distillation_loss.objective.objectives[0].bank for x in (one, other))
    for name in ("student", "teacher"):
        assert torch.equal(getattr(mine, name), getattr(its, name))


def test_rows_of_one_number_are_refused(tmp_path):
    rows = packed(5).with_format(None)
    rows = rows.remove_columns("index").add_column("index", np.array([0, 1, 2, 2, 4]))
    with pytest.raises(ValueError, match=r"have the same index \(2\)"):
        trained(tmp_path, rows.with_transform(ImageTransform()))


def test_rows_that_he_da_adds_have_no_memory_and_are_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(ValueError, match="he_da='paper' adds mixed images"):
        trained(tmp_path, packed(), he_da="paper")
