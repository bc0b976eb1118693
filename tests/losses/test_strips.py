"""Pixels a strip at a time: what F.interpolate and the dense loss give, values and gradients.

B images, C classes, h and w of a network's maps, H and W of the labels.
"""

from itertools import product

import pytest
import torch
from largest_tensor import LargestTensor
from objectives_by_level import ON_LOGITS
from slots_by_level import temperature, weighting
from torch.nn.functional import interpolate

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.functional import interpolated
from hfkd.losses.items import token_items
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.strips import StripLoss, StripSource, map_items
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.weightings import WEIGHTINGS
from hfkd.utils.targets import IGNORED, HostTargets

B, C, SIZE = 3, 5, (11, 7)
ENERGIES = (-7.5, -5.0)  # the pixels of the maps below lie below, between and above the thresholds
OF_IMAGES = (-6.8, -5.8)  # of the two images that have pixels with a label, one lies below and one between
PER_ITEM = [name for name in ON_LOGITS if not OBJECTIVES[name]().requirements().relations]


def maps(h, w, seed=0, dtype=torch.float64, batch=B):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(batch, C, h, w, generator=g, dtype=torch.float64)).to(dtype)


def masks(size=SIZE, batch=B):
    """One image has all kinds of pixels, one a single class, one none at all."""
    labels = torch.randint(C, (batch, *size), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = IGNORED
    labels[0, 5, 3:] = IGNORED
    labels[1] = 2
    labels[2] = IGNORED
    return labels.flatten(1)


def strips(monkeypatch, pixels):
    """As many pixels as a strip has at most: they begin and end anywhere in a line, and reach over two images."""
    monkeypatch.setattr("hfkd.losses.strips.BLOCK", pixels * C)
    monkeypatch.setattr("hfkd.losses.chunked_outputs.BLOCK", 24 * C)


@pytest.mark.parametrize("given", [(3, 2), (4, 7), (11, 3), (11, 7), (23, 15), (1, 1)])
@pytest.mark.parametrize("pixels", [5, 1000])
def test_a_strip_is_what_interpolate_gives(given, pixels):
    """To 1e-12 in float64, forward and backward: larger, smaller, of the same size, one line or one column alone."""
    z, labels = maps(*given).requires_grad_(), masks()
    found = HostTargets.in_place(labels)
    whole = interpolate(z, SIZE, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    expected = whole.flatten(0, 1)[found.position]
    source = StripSource(z, SIZE, found.position, found.position)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sums = [torch.zeros_like(z)]
    for start in range(0, len(expected), pixels):
        rows = slice(start, min(start + pixels, len(expected)))
        torch.testing.assert_close(source(rows), expected[rows], rtol=0, atol=1e-12)
        logits, add = source.with_backward(rows, sums)
        torch.testing.assert_close(logits, expected[rows], rtol=0, atol=1e-12)
        add(gradient[rows])
    (wanted,) = torch.autograd.grad(expected, z, gradient)
    torch.testing.assert_close(sums[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lower_precision_is_read_as_float32(dtype, layout):
    z, labels = maps(30, 37, dtype=dtype).to(memory_format=layout), masks((120, 150))
    position = HostTargets.in_place(labels).position
    expected = interpolated(z, (120, 150)).flatten(2).transpose(1, 2).flatten(0, 1)[position]
    found = StripSource(z, (120, 150), position, position)(slice(0, len(position)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)  # interpolate places pixels in float32


def run(loss, student, teacher, labels, strips, num_items=None):
    """The loss, its parts and all gradients."""
    student = student.detach().requires_grad_()
    if strips:
        value, parts = StripLoss(loss)(map_items(student, teacher, labels, SIZE, progress=30.0), num_items)
    else:
        mine, its = (interpolated(z, SIZE).flatten(-2).transpose(-1, -2) for z in (student, teacher))
        value, parts = loss(token_items(mine, its, labels, progress=30.0, shift=0), num_items)
    trained = [student, *(p for p in loss.parameters() if p.requires_grad)]
    return value.detach(), parts, torch.autograd.grad(2.5 * value, trained, materialize_grads=True)


def assert_same(loss, labels, num_items=None, given=((3, 4), (6, 5))):
    cases = maps(*given[0]), maps(*given[1], seed=3), labels
    found, expected = (run(loss, *cases, strips, num_items) for strips in (True, False))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, part in expected[1].items():
        torch.testing.assert_close(found[1][name], part, rtol=1e-5, atol=1e-6, msg=name)  # logged in float32
    for mine, its in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-12)
    return found


def same_with(objective, t, w, level, num_items):
    energies = ENERGIES if level == "item" else OF_IMAGES
    loss = DistillationLoss(objective, temperature(t, level, energies), weighting(w, level), 0.3, 0.7).double()
    assert assert_same(loss, masks(), num_items=num_items)[0] > 0


@pytest.mark.parametrize("objective", PER_ITEM)
def test_loss_parts_and_gradients_are_the_dense_ones(monkeypatch, objective):
    strips(monkeypatch, 29)
    same_with(objective, "energy", "entropy", "sample", None)
    same_with(objective, "energy", "entropy", "item", 90)


@pytest.mark.parametrize("objective", PER_ITEM)
@pytest.mark.parametrize("level", ["sample", "item"])
@pytest.mark.slow
def test_so_they_are_with_every_temperature_and_weighting(monkeypatch, objective, level):
    for number, (t, w) in enumerate(product(TEMPERATURES, WEIGHTINGS)):
        strips(monkeypatch, (13, 29, 1000)[number % 3])
        same_with(objective, t, w, level, (None, 90)[number % 2])


@pytest.mark.parametrize("pixels", [17, 1000])
def test_a_batch_without_labels_and_one_without_pixels(monkeypatch, pixels):
    strips(monkeypatch, pixels)
    loss = DistillationLoss("kd", temperature("energy", energies=ENERGIES), "entropy")
    assert assert_same(loss, torch.full_like(masks(), IGNORED))[0] == 0
    loss.labelled = False  # stand-ins say which pixels are there
    assert "ce" not in assert_same(loss, torch.zeros_like(masks()))[1]


@pytest.mark.parametrize("given", [((11, 7), (3, 4)), ((3, 4), (11, 7)), ((23, 15), (11, 7))])
def test_networks_of_other_sizes(monkeypatch, given):
    strips(monkeypatch, 10)
    assert_same(DistillationLoss("kd", temperature("energy", "item", ENERGIES), "entropy"), masks(), given=given)


def test_networks_of_other_classes_and_comparisons_of_pixels_are_refused():
    with pytest.raises(ValueError, match="the student gives 5 classes and the teacher 4"):
        map_items(maps(3, 4), maps(3, 4)[:, :4], masks(), SIZE)
    with pytest.raises(ValueError, match="a chunked loss cannot compute"):
        StripLoss(DistillationLoss("dist"))


def test_without_gradient_it_gives_the_value_alone():
    loss, student, teacher = DistillationLoss(), maps(3, 4).requires_grad_(), maps(6, 5, 3)
    with torch.no_grad():
        value, _ = StripLoss(loss)(map_items(student, teacher, masks(), SIZE))
    assert not value.requires_grad
    assert value > 0


def test_the_logits_of_all_pixels_never_exist(monkeypatch):
    strips(monkeypatch, 600)
    labels = torch.zeros(2, 32 * 32, dtype=torch.long)
    student, teacher = maps(8, 8, batch=2).requires_grad_(), maps(16, 16, 3, batch=2)
    loss = DistillationLoss("kd", temperature("energy", energies=ENERGIES), "entropy")
    with LargestTensor() as largest:
        StripLoss(loss)(map_items(student, teacher, labels, (32, 32)))[0].backward()
    columns = 4  # of numbers that each pixel has: cross-entropy, divergence, temperature, weight, stacked to be logged
    assert largest.numbers == columns * labels.numel() < C * labels.numel()


def test_the_thresholds_above_part_these_pixels_and_images():
    labels = masks()
    whole = [interpolated(z, SIZE).flatten(-2).transpose(-1, -2) for z in (maps(3, 4), maps(6, 5, 3))]
    items = token_items(*whole, labels, shift=0)
    assert len(set(temperature("energy", "item", ENERGIES)(items).tolist())) == 3
    assert len(set(temperature("energy", "sample", OF_IMAGES)(items).tolist())) == 2
