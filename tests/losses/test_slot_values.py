"""Temperatures below 0 and negative weights of one's own: refused when built, or stopped in their step."""

import pytest
import torch
from text_toys import TokenRows, language_model, taught_model
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.weightings import WEIGHTINGS, Entropy, Matched


def make(folder, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "temperature", "weighting") if k in keywords}
    args = arguments(folder / "run", **keywords)
    return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), **slots)


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def full(value):
    return lambda items: torch.full((len(items),), value)


class Sinking(nn.Module):
    """Above 0 at first: 1, 0, -1, ... in the steps."""

    calls = 0

    def forward(self, items):
        self.calls += 1
        return torch.full((len(items),), 2.0 - self.calls)


# ---- when the trainer is built ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (
            {"temperature": full(-4.0)},
            "the temperature returned -4 for one of the first rows.*temperature above 0",
        ),
        ({"temperature": full(0.0)}, "the temperature returned 0 for"),
        ({"temperature": full(float("inf"))}, "the temperature returned inf for"),
        ({"temperature": full(float("nan"))}, "the temperature returned nan for"),
        (
            {"temperature": full(True)},
            "the temperature returned torch.bool: a slot must return a tensor of real numbers",
        ),
        ({"temperature": lambda items: 4.0}, "the temperature returned float: a slot must return a tensor"),
        ({"temperature": lambda items: torch.tensor(4.0)}, r"returned a tensor of shape \(\) for 2 items"),
        (
            {"weighting": full(-1.0)},
            "the weighting returned -1 for one of the first rows: return.*a negative weight",
        ),
        ({"weighting": full(float("nan"))}, "the weighting returned nan for"),
        ({"weighting": full(1j)}, "the weighting returned torch.complex64"),
        ({"weighting": lambda items: torch.ones(len(items), 1)}, r"returned a tensor of shape \(2, 1\) for 2 items"),
        ({"weighting": lambda items: -items.teacher.entropy(3.0)}, "the weighting returned -"),
    ],
)
def test_what_shows_on_the_first_rows_is_refused(tmp_path, slots, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **slots)
    assert not (tmp_path / "run").exists()


def test_a_wrapped_weighting_of_ones_own_is_looked_at_too(tmp_path):
    for value in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="the weighting returned nan"):
            make(tmp_path, weighting=Matched(full(value)))


def test_a_language_models_slots_are_asked_about_its_tokens(tmp_path):
    with pytest.raises(ValueError, match="the temperature returned -1 for one of the first rows"):
        DistillationTrainer(
            language_model(),
            taught_model(),
            arguments(tmp_path),
            train_dataset=TokenRows(),
            data_collator=TokenCollator(0),
            temperature=full(-1.0),
        )


def test_looking_counts_no_call_and_a_slot_for_whole_batches_is_left_alone(tmp_path):
    sinking = Sinking()
    make(tmp_path, temperature=sinking)
    assert sinking.calls == 0
    trainer = make(tmp_path, weighting=lambda items: torch.linspace(0, 1, 8))
    trainer.train()
    assert logged(trainer, "weight") == pytest.approx([0.5] * 3)


# ---- in a step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "step", "what"),
    [
        ("temperature", 2, "the temperature that a slot returned is not above 0, or NaN or infinite for row"),
        ("weighting", 3, "the weight that a slot returned is below 0, or NaN or infinite for row"),
    ],
)
def test_what_shows_later_stops_its_step(tmp_path, slot, step, what):
    trainer = make(tmp_path, **{slot: Sinking()})
    with pytest.raises(FloatingPointError, match=f"step {step}: {what}"):
        trainer.train()
    assert trainer.state.global_step == step - 1


def test_or_is_left_out_where_that_is_wanted(tmp_path):
    trainer = make(tmp_path, temperature=Sinking(), on_nan="skip")
    trainer.train()
    assert logged(trainer, "skipped_steps")[-1] == 2
    assert logged(trainer, "temperature") == [1.0]


# ---- what may not change ---------------------------------------------------------------------------------------------


def test_right_numbers_pass_bit_for_bit_and_rounding_does_not_matter():
    g = torch.Generator().manual_seed(0)
    v, z = 3 * torch.randn(2, 12, 5, generator=g)
    items = image_items(v.requires_grad_(), z, torch.arange(12) % 5)
    own = {"temperature": lambda items: 2 + items.teacher.entropy(3.0), "weighting": lambda items: Entropy()(items)}
    loss = DistillationLoss(**own)
    value, parts = loss(items)
    t, w = (own[name](items) for name in ("temperature", "weighting"))
    expected = 0.1 * parts["ce"] + 0.9 * (w * loss.objective(items, t)).sum() / 12
    assert torch.equal(value.detach(), expected.detach())
    assert torch.isfinite(DistillationLoss(weighting=full(-1e-7))(items)[0])  # as 1 - max softmax may be
    assert torch.isfinite(DistillationLoss(weighting=lambda items: items.teacher.entropy(3.0) > 1)(items)[0])


@pytest.mark.parametrize("name", [*TEMPERATURES, *WEIGHTINGS])
def test_hfkds_own_slots_are_not_looked_at(name):
    kind = "temperature" if name in TEMPERATURES else "weighting"
    assert DistillationLoss(**{kind: name}).own_slots == []
    assert DistillationLoss(**{kind: full(1.0)}).own_slots == [kind]
