"""What the tests of objectives on features share: published numbers, and networks' outputs with features."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.items import Items
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.outputs import Features, Outputs
from hfkd.utils.attention import Attention
from hfkd.utils.slots import resolve

DATA = Path(os.environ.get("HFKD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def oracle(name):
    """Inputs, losses and gradients of the authors' public code, by name; the test skips where they are absent."""
    file = DATA.parent / "oracles" / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"no published numbers in {file}: they lie beside the folder that HFKD_DATA names")
    with np.load(file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind in "fi"}


def leaf(x):
    return x.clone().requires_grad_()


def random_pair(student, teacher, seed=0, positive=False):
    """A student's features, as a leaf, and a teacher's, of these shapes; float64."""
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in (student, teacher))
    return (leaf(s.relu()), t.relu()) if positive else (leaf(s), t)


def same_value_and_gradient(ours, naive, *leaves):
    """Numbers of samples [S] from the same leaves, by two ways: equal, and so are the gradients of a weighted sum."""
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)
    weights = torch.linspace(0.5, 2, len(ours), dtype=ours.dtype)
    of_ours = torch.autograd.grad((ours * weights).sum(), leaves)
    of_naive = torch.autograd.grad((naive * weights).sum(), leaves)
    for a, b in zip(of_ours, of_naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
        assert a.count_nonzero()


def as_published(values, loss, **gradients):
    """The mean of the samples' numbers is the published loss, and its gradients are: {name: (leaf, gradient)}."""
    torch.testing.assert_close(values.mean(), loss.double(), rtol=1e-6, atol=1e-12)
    leaves, expected = zip(*gradients.values(), strict=True)
    found = torch.autograd.grad(values.mean(), leaves)
    for name, a, b in zip(gradients, found, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item() + 1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- networks' outputs, and what an objective is built from ---------------------------------------------------------

ON_MAPS = ["at", "catkd", "crd", "cwd", "fitnet", "lsh", "nst", "ofd", "pkt", "reviewkd", "rkd", "sp", "vid"]
ON_STATES = ["attention_scores", "hidden_cosine", "hidden_mse", "minilm", "pkd"]
NAMES = ON_MAPS + ON_STATES
ROWS, CLASSES, LENGTH = 6, 5, 5
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]] * 2).bool()
LABELS = torch.arange(14) % 3  # of the training rows


class Ended(torch.nn.Module):
    """What of a network an objective looks at: batch norms before its activations, and a classifier."""

    def __init__(self, widths):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(width) for width in widths)
        self.fc = torch.nn.Linear(widths[-1], CLASSES)
        with torch.no_grad():
            for norm in self.norms:
                norm.bias.normal_()

    def get_classifier(self):
        return self.fc


def maps(widths, sizes):
    """The shapes of a convolutional network's features by key."""
    stages = {str(k): (width, size, size) for k, (width, size) in enumerate(zip(widths, sizes, strict=True), 1)}
    last = stages[str(len(widths))]
    before = {f"pre:{key}": shape for key, shape in stages.items()}
    whole = {"logits": (CLASSES, sizes[0], sizes[0])}  # of a network that gives maps
    return stages | before | whole | {"-1": last, "global_pool:in": last, "pooled": last[:1]}


def states(blocks, width, other):
    """The shapes of a transformer's features by key; its attention is made apart."""
    stages = {str(k): (LENGTH, width) for k in range(blocks + 1)}
    return stages | {"-1": (LENGTH, width), "other": (LENGTH, other), "pooled": (width,)}


def shapes_of(name):
    """The shapes of the student's features and of the teacher's, and which keys several stand for."""
    if name in ON_MAPS:
        both = maps((4, 6, 8), (8, 4, 4)), maps((6, 10, 8), (8, 8, 3))
    else:
        both = states(5, 4, 6), states(10, 4, 8)
    groups = [
        {
            f"{kind}{start}:": tuple(f"{kind}{k}" for k in range(start, 11) if str(k) in shapes)
            for kind in ("", "pre:", "attention:")
            for start in (0, 1)
        }
        for shapes in both
    ]
    return both, groups


def features(shapes, dtype, generator, attention):
    """Random features of these shapes, and as many blocks of attention."""
    found = {key: torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
    found = {key: value.to(dtype) for key, value in found.items()}
    for key in (*range(1, 11), -1) if attention else ():
        if str(key) in shapes:
            heads = torch.randn(3, ROWS, 2, LENGTH, attention, generator=generator, dtype=torch.float64).to(dtype)
            found[f"attention:{key}"] = Attention(*heads, None, attention**-0.5)
    return found


def as_leaves(found):
    return Features(
        {
            key: value._replace(query=leaf(value.query), key=leaf(value.key), value=leaf(value.value))
            if isinstance(value, Attention)
            else leaf(value)
            for key, value in found.items()
        }
    )


def built(objective, dtype=torch.float64, half=False, num_rows=14, labels=LABELS, class_order=None):
    """An objective, or the one of this name, built on random networks' features; and items that have them.

    half: the features are given in bfloat16, rounded.
    """
    name = objective if isinstance(objective, str) else type(objective)
    name = name if isinstance(name, str) else next(key for key, made in OBJECTIVES.items() if made is name)
    objective = resolve(objective, OBJECTIVES, "objective")
    generator = torch.Generator().manual_seed(0)
    (mine, theirs), groups = shapes_of(name)
    given = torch.bfloat16 if half else dtype
    attention = name in ON_STATES
    student, teacher = (
        features(shapes, given, generator, attention * size) for shapes, size in ((mine, 24), (theirs, 48))
    )
    logits = torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(0)
    networks = [Ended([shapes[str(k)][0] for k in (1, 2, 3)]) for shapes in (mine, theirs)]
    contexts = [
        NetworkContext(
            {key: tuple(value.shape[1:]) for key, value in found.items()},
            {f"pre:{k}": network.norms[k - 1] for k in (1, 2, 3)},
            network,
            group,
        )
        for found, network, group in zip((student, teacher), networks, groups, strict=True)
    ]
    contexts[1] = replace(contexts[1], class_order=class_order)

    def scan(visit):
        visit(Outputs(logits[1], teacher))

    objective.build(BuildContext(*contexts, CLASSES, num_rows, labels, scan, seed=0))
    right = logits[1].argmax(-1)
    items = Items(
        Outputs(logits[0], as_leaves(student)),
        Outputs(logits[1], teacher),
        torch.where(torch.arange(ROWS) < 4, right, (right + 1) % CLASSES),
        torch.arange(ROWS),
        ROWS,
        progress=30.0,
        own_sample=True,
        index=torch.tensor([3, 7, 0, 12, 5, 9]),
        mask=MASK if attention else None,
    )
    return objective.to(dtype), items


def items_of(items, order, **changes):
    """The items in another order, with other fields."""
    moved = {"labels": items.labels[order], "index": items.index[order]}
    moved |= {"student": items.student.rows(order), "teacher": items.teacher.rows(order)}
    return replace(items, **(moved | {"mask": None if items.mask is None else items.mask[order]} | changes))
