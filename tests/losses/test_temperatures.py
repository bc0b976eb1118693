from dataclasses import replace

import pytest
import reference
import torch

from hfkd.losses.functional import energy
from hfkd.losses.items import image_items
from hfkd.losses.temperatures import Constant, Energy, Gradation

Z = 6 * torch.randn(200, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ITEMS = image_items(torch.randn(200, 10), Z, torch.zeros(200, dtype=torch.long))
E = energy(Z, 4.0)


def test_energy_is_the_papers_equation():
    slot = Energy(ratio=0.2)
    slot.fit(E)
    low, high = reference.energy_thresholds(E, 0.2)
    assert slot.thresholds == pytest.approx((low, high), rel=1e-12)
    expected = [reference.energy_temperature(float(e), low, high) for e in E]
    assert slot(ITEMS).tolist() == expected


@pytest.mark.parametrize("ratio", [0.005, 0.1, 0.2, 0.29, 0.3, 0.5])
def test_exactly_floor_n_r_on_each_side(ratio):
    slot = Energy(ratio=ratio, increase=1.0, decrease=2.0)
    slot.fit(E)
    low, high = slot.thresholds
    assert (E < low).sum() == (E > high).sum() == int(round(200 * ratio, 6))
    t = slot(ITEMS)
    assert ((t == 5).sum(), (t == 2).sum()) == (int(round(200 * ratio, 6)),) * 2


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_no_threshold_is_an_items_own_energy(ratio):
    """What a stored teacher's rounding changes decides nothing: half of the gap is free on either side."""
    e = E.float()
    slot, ladder = Energy(ratio=ratio), Gradation()
    for fitted in (slot, ladder):
        fitted.fit(e)
        for threshold in fitted.thresholds:
            nearest = (e.double() - threshold).abs().sort().values
            torch.testing.assert_close(nearest[0], nearest[1], rtol=0, atol=2e-6)
            assert nearest[0] > 0


def test_neighbours_without_a_number_between_them_still_part():
    low = torch.tensor(-8.0)
    e = torch.stack([low, torch.nextafter(low, torch.tensor(0.0)), torch.tensor(-6.0), torch.tensor(-5.0)])
    slot = Energy(ratio=0.25)
    slot.fit(e)
    assert [(e < slot.thresholds[0]).sum().item(), (e > slot.thresholds[1]).sum().item()] == [1, 1]


def test_equal_energies_at_a_boundary_stay_inside_and_it_is_said(caplog):
    e = torch.tensor([-9.0, -8.0, -7.0, -7.0, -7.0, -5.0, -4.0, -3.0, -2.0, -1.0])
    slot = Energy(ratio=0.4)
    with caplog.at_level("WARNING", "hfkd"):
        slot.fit(e)
    assert slot.thresholds == (-7.5, -4.5)
    assert caplog.messages == [
        "Energy: 2 of 10 training items are below the lower threshold instead of 4, because the others have the same "
        "energy as the next item, and items of equal energy get the same temperature."
    ]
    slot = Gradation(temperatures=(2.0, 4.0))
    slot.fit(torch.tensor([-3.0, -2.0, -2.0, -1.0]))
    assert slot.thresholds == (-2.5,)


@pytest.mark.parametrize(
    ("slot", "energies", "message"),
    [
        (Energy(), [-8.0] * 10, "Energy: all 10 training items have the energy -8, so that none has a low or high"),
        (Gradation(), [-8.0] * 10, "Gradation: all 10 training items have the energy -8"),
        (Energy(), [-8.0] * 5 + [-6.0, -5.0, -4.0, -3.0, -2.0], "2 of 10 training items should be below the lower"),
        (
            Energy(),
            [-8.0, -7.0, -6.0] + [-5.0] * 7,
            "2 of 10 training items should be above the upper threshold, but there is none",
        ),
        (
            Gradation((1.0, 2.0, 3.0)),
            [-3.0, -2.0, -2.0, -2.0, -2.0, -1.0],
            "2 of 6 training items should be in step 2 of 3",
        ),
    ],
)
def test_energies_that_part_nothing_are_an_error(slot, energies, message):
    with pytest.raises(ValueError, match=message):
        slot.fit(torch.tensor(energies))


def test_a_side_that_is_off_may_have_equal_energies():
    slot = Energy(increase=0.0)
    slot.fit(torch.tensor([-8.0] * 5 + [-6.0, -5.0, -4.0, -3.0, -2.0]))
    assert slot.thresholds[1] == -3.5


def test_the_paper_softens_the_confident_more_and_the_release_the_uncertain():
    paper, released = Energy(thresholds=(-15, -8)), Energy(thresholds=(-15, -8), direction="released")
    confident, uncertain = E < -15, E > -8
    assert confident.any()
    assert uncertain.any()
    assert set(paper(ITEMS)[confident].tolist()) == set(released(ITEMS)[uncertain].tolist()) == {6.0}
    assert set(paper(ITEMS)[uncertain].tolist()) == set(released(ITEMS)[confident].tolist()) == {2.0}


def test_thresholds_are_strict_at_the_boundary():
    e = E.sort().values
    slot = Energy(thresholds=(e[10].item(), e[-11].item()))
    t = slot(ITEMS)
    assert t[E == e[10]].item() == t[E == e[-11]].item() == 4.0


@pytest.mark.parametrize(("off", "left"), [("increase", {2.0, 4.0}), ("decrease", {4.0, 6.0})])
def test_one_sided_ablations(off, left):
    slot = Energy(**{off: 0})
    slot.fit(E)
    assert set(slot(ITEMS).tolist()) == left
    assert len(slot.groups(slot(ITEMS))) == 1


def test_the_logged_shares_are_the_shares():
    slot = Energy(ratio=0.1)
    slot.fit(E)
    assert {k: round(v.item(), 6) for k, v in slot.groups(slot(ITEMS)).items()} == {
        "low_energy_share": 0.1,
        "high_energy_share": 0.1,
    }


@pytest.mark.parametrize("direction", ["paper", "released"])
@pytest.mark.parametrize("increase", [0.0, 0.1, 0.7, 2.1])
@pytest.mark.parametrize("decrease", [0.0, 0.3, 1.7, 2.1])
@pytest.mark.parametrize("temperature", [4, 4.1, 3.3])
def test_the_logged_shares_whatever_float32_makes_of_the_temperatures(direction, increase, decrease, temperature):
    steps = {"increase": increase, "decrease": decrease}
    slot = Energy(ratio=0.25, temperature=temperature, direction=direction, **steps)
    slot.fit(E)
    shares = {name: share.item() for name, share in slot.groups(slot(ITEMS)).items()}
    low, high = (increase, decrease) if direction == "paper" else (decrease, increase)
    assert shares == {f"{side}_energy_share": 0.25 for side, step in (("low", low), ("high", high)) if step}


def test_gradation_gives_each_decile_its_step_the_lowest_to_the_highest_energy():
    slot = Gradation()
    slot.fit(E)
    t = slot(ITEMS)[E.argsort()].view(10, 20)
    assert t.tolist() == [[x] * 20 for x in (6.0, 5.5, 5.0, 4.5, 4.0, 4.0, 3.5, 3.0, 2.5, 2.0)]


def test_a_sequence_shares_the_temperature_of_its_mean_energy():
    items = replace(ITEMS, sample=torch.arange(200) // 10, num_samples=20, own_sample=False)
    slot = Energy(thresholds=(-14.0, -11.0))
    mean = E.view(20, 10).mean(1)
    assert slot(items).view(20, 10).tolist() == [
        [reference.energy_temperature(float(m), -14.0, -11.0)] * 10 for m in mean
    ]
    assert torch.equal(replace(slot, level="item")(items), slot(ITEMS))


def test_constant():
    assert Constant(3)(ITEMS).tolist() == [3.0] * 200


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Energy(ratio=0), r"ratio=0 must be in \(0, 0.5\]"),
        (lambda: Energy(ratio=0.51), "ratio=0.51"),
        (lambda: Energy(ratio=float("nan")), "ratio=nan"),
        (
            lambda: Energy(temperature=2.0, decrease=2.0),
            "temperature - decrease=0.0 must be a number from 0.001 to 10000",
        ),
        (lambda: Energy(increase=-1), "increase=-1 must be a finite number of 0 or more"),
        (lambda: Energy(direction="reversed"), "direction='reversed' must be 'paper' or 'released'"),
        (lambda: Energy(energy_temperature=0), "energy_temperature=0 must be a number from 0.001 to 10000"),
        (lambda: Energy(thresholds=(1, 2, 3)), "must be a tuple of 2 numbers, each a finite number, or None"),
        (
            lambda: Energy(thresholds=(-5.0, -9.0)),
            r"must be \(low, high\), where a low energy is that of a confident teacher: swap",
        ),
        (lambda: Energy(thresholds=(-9.0, float("inf"))), "must be a tuple of 2 numbers, each a finite"),
        (lambda: Energy(increase=9996.5), "temperature \\+ increase=10000.5 must be a number from 0.001 to 10000"),
        (lambda: Energy(level="token"), "level='token' must be 'sample' or 'item'"),
        (lambda: Energy(ratio=0.001).fit(E), "less than one"),
        (lambda: Energy().fit(torch.full((10,), float("nan"))), "NaN or infinity"),
        (lambda: Constant(0), "temperature=0 must be a number from 0.001 to 10000"),
        (lambda: Gradation(temperatures=(1.0,)), "two temperatures or more"),
        (lambda: Gradation(thresholds=(3.0, 1.0)), "9 ascending energies"),
    ],
)
def test_bad_values_are_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
