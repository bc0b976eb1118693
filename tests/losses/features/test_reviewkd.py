import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.reviewkd import Review, hierarchical_context


def pooled(x, size):
    """Adaptive average pooling of one map [H, W] as a loop."""
    H, W = x.shape
    cells = []
    for i in range(size):
        for j in range(size):
            rows, columns = slice(i * H // size, -(-(i + 1) * H // size)), slice(j * W // size, -(-(j + 1) * W // size))
            cells.append(x[rows, columns].mean())
    return torch.stack(cells)


def naive_context(student, teacher):
    """The pyramid of sizes, each a mean of squares; the weights halve and add up to 1."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        sizes = [s.shape[-1]] + [size for size in (4, 2, 1) if size < s.shape[-1]]
        weights = [0.5**k for k in range(len(sizes))]
        total = 0.0
        for weight, size in zip(weights, sizes, strict=True):
            squares = [(pooled(a, size) - pooled(b, size)).square() for a, b in zip(s, t, strict=True)]
            total = total + weight * torch.cat(squares).mean()
        rows.append(total / sum(weights))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_hierarchical_context_loss_image_by_image(size):
    s, t = random_pair((3, 2, size, size), (3, 2, size, size))
    same_value_and_gradient(hierarchical_context(s, t), naive_context(s, t), s)


CASES = {"resnet8x4": 4, "mobilenetv2_vgg13": 5}


def published(name):
    """The student's maps as leaves, the teacher's, and the chain of fusions with its published parameters."""
    z, levels = oracle(f"features/reviewkd_{name}"), CASES[name]
    maps = {
        net: [z[f"{net}{k}"] for k in range(1, levels)] + [z[f"{net}_pooled"][..., None, None]]
        for net in ("student", "teacher")
    }
    students = [leaf(x) for x in maps["student"]]
    review = Review([x.shape[1] for x in students], [x.shape[1] for x in maps["teacher"]]).double()
    state = {}
    for k in range(levels):
        state |= {
            f"levels.{k}.{key.split('.', 1)[1]}": value for key, value in z.items() if key.startswith(f"abf{k + 1}.")
        }
    assert not [
        key
        for key in review.load_state_dict(state, strict=False).missing_keys
        if "running" not in key and "num_b" not in key
    ]
    return z, students, maps["teacher"], review


@pytest.mark.parametrize("name", CASES)
def test_published_numbers(name):
    z, students, teachers, review = published(name)
    fused = review(students, [t.shape[-2:] for t in teachers])
    levels = [hierarchical_context(s, t) for s, t in zip(fused, teachers, strict=True)]
    for k, (level, out) in enumerate(zip(levels, fused, strict=True), 1):
        torch.testing.assert_close(level.mean(), z[f"hcl_level{k}"])
        torch.testing.assert_close(out[:2], z[f"fused{k}_of_first_two_samples"])
    values = sum(levels)
    names = [f"grad_student{k}" for k in range(1, CASES[name])] + ["grad_student_pooled"]
    for prefix, weight in (("", 1.0), ("ea.", z["ea.weight"]), ("er.", z["er.weight"])):
        gradients = {n: (s, z[prefix + n].view_as(s)) for n, s in zip(names, students, strict=True) if prefix + n in z}
        if prefix != "":
            fused = review(students, [t.shape[-2:] for t in teachers])
            values = sum(hierarchical_context(s, t) for s, t in zip(fused, teachers, strict=True))
        as_published(weight * values, z[f"{prefix}loss"], **gradients)
