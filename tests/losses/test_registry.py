"""Slots of a user's own, by name."""

import sys
from types import ModuleType

import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import (
    DistillationArguments,
    DistillationLoss,
    DistillationTrainer,
    Objective,
    register_objective,
    register_temperature,
    register_weighting,
)
from hfkd.losses.base import Weighting
from hfkd.losses.registry import OBJECTIVES, TEMPERATURES, WEIGHTINGS
from hfkd.utils.parsing import parse

MODULE = '''
import torch
from dataclasses import dataclass
from hfkd import Objective, register_objective, register_temperature, register_weighting


@register_objective("logit_mse")
@dataclass
class LogitMSE(Objective):
    """l_n = scale mean_c (v_nc - z_nc)^2"""

    scale: float = 1.0

    def __call__(self, items, temperature):
        return self.scale * (items.student.logits - items.teacher.logits).square().mean(-1)


@register_weighting("by_confidence")
@dataclass
class ByConfidence:
    def __call__(self, items):
        return 1 - items.teacher.logits.softmax(-1).amax(-1)


@register_temperature("two")
@dataclass
class Two:
    def __call__(self, items):
        return torch.full((len(items),), 2.0)
'''


@pytest.fixture(autouse=True)
def _tables():
    """As they were, afterwards."""
    saved = [(table, dict(table)) for table in (OBJECTIVES, TEMPERATURES, WEIGHTINGS)]
    yield
    for table, before in saved:
        table.clear()
        table.update(before)


@pytest.fixture
def my_slots(tmp_path, monkeypatch):
    (tmp_path / "my_slots.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "my_slots"
    sys.modules.pop("my_slots", None)


def test_slots_of_ones_own_train_by_name_from_a_file_of_settings(tmp_path, my_slots):
    (tmp_path / "mine.yaml").write_text("objective: logit_mse(scale=2.0)\nweighting: by_confidence\ntemperature: two\n")
    argv = ["--output_dir", "run", "--import", my_slots, "--config", "mine.yaml"]
    (parsed,) = parse([DistillationArguments], argv)
    slots = {name: getattr(parsed, name) for name in ("objective", "temperature", "weighting")}
    args = arguments(tmp_path / "run", max_steps=1, ce_weight=0.0, kd_weight=1.0, **slots)
    student, taught, rows = Net(), teacher(), Rows(8)
    trainer = DistillationTrainer(student, taught, args, train_dataset=rows)
    with torch.no_grad():
        v, z = student(rows.images), taught(rows.images)
        expected = ((1 - z.softmax(-1).amax(-1)) * 2 * (v - z).square().mean(-1)).mean()
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert logged["temperature"] == 2


def test_a_file_of_settings_imports_nothing(tmp_path, my_slots):
    (tmp_path / "mine.yaml").write_text(f"import: {my_slots}\n")
    with pytest.raises(ValueError, match=r"mine.yaml: import runs code.*pass --import as a flag"):
        parse([DistillationArguments], ["--output_dir", "run", "--config", "mine.yaml"])
    assert my_slots not in sys.modules


def test_a_module_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--import nowhere: this module does not exist"):
        parse([DistillationArguments], ["--output_dir", "run", "--import", "nowhere"])


@pytest.mark.parametrize(
    ("register", "taken"),
    [(register_objective, "kd"), (register_temperature, "energy"), (register_weighting, "entropy")],
)
def test_a_name_is_given_once_and_can_be_written(register, taken):
    class Mine(Objective):
        def __call__(self, items, temperature):
            return temperature

    with pytest.raises(ValueError, match=f"{taken!r} is taken by hfkd.losses.*: choose another name"):
        register(taken)(Mine)
    with pytest.raises(ValueError, match="'my-slot' cannot be used in a slot: pass a Python identifier"):
        register("my-slot")(Mine)
    register("mine")(Mine)
    register("mine")(Mine)  # a module that is loaded again


def cell(name, main):
    source = (
        f"@register_weighting('celled')\nclass {name}:\n    def __call__(self, items): return items.sample * 0 + 1.0"
    )
    exec(source, vars(main) | {"register_weighting": register_weighting})


def test_a_class_of_a_notebook_may_be_renamed_and_its_cell_run_again(monkeypatch, caplog):
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cell("Mine", main)
    cell("Mine", main)
    assert caplog.text == ""
    cell("Renamed", main)
    assert WEIGHTINGS["celled"].__name__ == "Renamed"
    assert "weighting 'celled' is __main__.Renamed from now on, in place of __main__.Mine" in caplog.text
    main.__file__ = "script.py"
    with pytest.raises(ValueError, match="weighting 'celled' is taken by __main__.Renamed: choose another name"):
        cell("Mine", main)


def test_a_function_that_is_the_slot_is_passed_as_it_is():
    @register_objective("as_a_function")
    def squares(items, temperature):
        return (items.student.logits - items.teacher.logits).square().mean(-1)

    try:
        with pytest.raises(
            ValueError, match=r"'as_a_function' needs a value of 'items': .*pass the function itself \(squ"
        ):
            DistillationLoss("as_a_function")
    finally:
        OBJECTIVES.pop("as_a_function")
    assert DistillationLoss(squares).objective is squares


def test_an_argument_without_a_default_is_asked_for():
    @register_weighting("by_table")
    class ByTable(Weighting):
        def __init__(self, table, rows=2):
            self.table = table

        def __call__(self, items):
            return items.teacher.entropy(1.0)

    try:
        with pytest.raises(
            ValueError, match=r"weighting 'by_table' needs a value of 'table': write by_table\(table=...\)"
        ):
            DistillationLoss(weighting="by_table")
        assert DistillationLoss(weighting="by_table(table=3)").weighting.table == 3
    finally:
        WEIGHTINGS.pop("by_table")
