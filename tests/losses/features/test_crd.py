import math

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient
from torch.utils.data import ConcatDataset, Subset
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.transforms import ImageTransform, pack_pixels
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


# ---- rows by their index ---------------------------------------------------------------------------------------------


def images(count=40):
    """Random images behind hfkd's transform, without augmentation: an image has the same view whatever its index is."""
    g = torch.Generator().manual_seed(0)
    pixels = [pack_pixels(torch.randint(256, (8, 8, 3), generator=g, dtype=torch.uint8).numpy()) for _ in range(count)]
    labels = torch.randint(CLASSES, (count,), generator=g).tolist()
    return Dataset.from_dict({"pixels": pixels, "labels": labels, "index": list(range(count))})


def shown(rows):
    return rows.with_transform(ImageTransform())


def renumbered(rows):
    return rows.remove_columns("index").add_column("index", np.arange(len(rows)))


def crd_of(folder, rows, sampling="other_classes", **settings):
    objective = f"crd(layer='conv', dimension=8, negatives=16, sampling='{sampling}')"
    args = arguments(folder, max_steps=-1, num_train_epochs=2, ce_weight=0.0, kd_weight=1.0, **settings)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=rows, objective=objective)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("part", ["late rows", "shuffled", "split"])
def test_rows_are_found_by_an_index_that_is_not_their_number(tmp_path, part):
    """In a part of a data set, whose rows keep their index, and in a shuffled one."""
    rows = {
        "late rows": lambda: images().select(range(16, 40)),
        "shuffled": lambda: images().shuffle(seed=3),
        "split": lambda: images().train_test_split(16, seed=1)["train"],
    }[part]()
    wanted = crd_of(tmp_path / "numbered", shown(renumbered(rows)))
    assert crd_of(tmp_path / "kept", shown(rows)) == wanted


def test_rows_in_subsets_are_found_too(tmp_path):
    rows = images()
    parts = ConcatDataset([Subset(shown(rows), range(30, 40)), Subset(shown(rows), range(4, 18))])
    wanted = crd_of(tmp_path / "one", shown(renumbered(rows.select([*range(30, 40), *range(4, 18)]))), "other_images")
    assert crd_of(tmp_path / "parts", parts, "other_images") == wanted


class Later(Rows):
    """Rows of the user's own, behind others of the same data set."""

    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": 100 + i}


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (lambda: shown(concatenate_datasets([images(), images()])), {}, "'index', which several rows have in common"),
        (Later, {}, "'index' of the first row is 100, as in a part of another dataset"),
        (Rows, {}, "the rows have no column 'index': add it"),
        (lambda: shown(images()), {"he_da": "paper"}, "he_da='paper' adds mixed images to the training set"),
    ],
)
def test_rows_that_cannot_be_looked_up_are_refused_when_the_trainer_is_built(tmp_path, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        crd_of(tmp_path, rows(), "other_images", **settings)
    assert not list(tmp_path.iterdir())
