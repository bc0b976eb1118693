"""What the tests of objectives on features share: published numbers, and networks' outputs with features."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

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
