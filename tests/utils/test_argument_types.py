"""Every slot of every table refuses what its annotations do not allow, from Python and from a string alike."""

import inspect
import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.logits import DKD, MLD, OBJECTIVES, Average
from hfkd.losses.temperatures import TEMPERATURES, Energy, Gradation
from hfkd.losses.weightings import WEIGHTINGS, Entropy
from hfkd.utils.argument_types import Count, NotNegative, Positive, Share, SoftmaxTemperature, checked, fitting

TABLES = {"objective": OBJECTIVES, "temperature": TEMPERATURES, "weighting": WEIGHTINGS}
WRONG = {  # for each kind of annotation, values that would be taken for something else
    bool: ["no", 1, 0, None],
    int: ["8", 2.5, True],
    float: ["4", True, math.inf, math.nan, (4.0,)],
    tuple: [4.0, "4", ("a", "b"), (True, True), (math.inf, math.inf)],
    Literal: ["", 1, None],
}


def kind_of(annotation):
    """The plain kind of an annotation; None for what takes anything."""
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0])
    if type(None) in get_args(annotation):
        kinds = [a for a in get_args(annotation) if a is not type(None)]
        return kind_of(kinds[0]) if len(kinds) == 1 else None
    kind = get_origin(annotation) or annotation
    return kind if kind in WRONG else None


def wrong_arguments():
    for slot, table in TABLES.items():
        for name, cls in table.items():
            hints = get_type_hints(cls.__init__, include_extras=True)
            for argument in inspect.signature(cls).parameters:
                for value in WRONG.get(kind_of(hints[argument]), []):
                    if value is None and type(None) in get_args(hints[argument]):
                        continue
                    yield pytest.param(slot, name, argument, value, id=f"{name}({argument}={value!r})")


@pytest.mark.parametrize(("slot", "name", "argument", "value"), list(wrong_arguments()))
def test_a_value_of_another_kind_is_refused_in_python_and_in_a_string(slot, name, argument, value):
    cls = TABLES[slot][name]
    message = rf"{cls.__name__}: {argument}=.* must be "
    with pytest.raises(ValueError, match=message):
        cls(**{argument: value})
    if not isinstance(value, tuple) and (not isinstance(value, float) or math.isfinite(value)):
        with pytest.raises(ValueError, match=message):
            DistillationLoss(**{slot: f"{name}({argument}={value!r})"})


def test_every_argument_of_a_slot_says_what_it_takes():
    found = list(wrong_arguments())
    assert len(found) > 120
    assert {param.values[1] for param in found} >= set(TEMPERATURES) | {"entropy", "dkd", "nkd", "dist", "mld", "jsd"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: Average(objective="dkd(beta=True)"),
        lambda: DistillationLoss("average(objective='dkd(beta=True)')"),
        lambda: DistillationLoss("standardized(objective='nkd(gamma=True)')"),
        lambda: DistillationLoss(weighting="matched(weighting='entropy(student=0)')"),
    ],
)
def test_what_is_wrapped_is_checked_too(build):
    with pytest.raises(ValueError, match="must be"):
        build()


@pytest.mark.parametrize("value", [0, -1.0, 1e-300, 9e-4, 10001, 1e300])
@pytest.mark.parametrize(
    "build",
    [
        lambda t: DistillationLoss(temperature=t),
        lambda t: DistillationLoss(temperature=str(t)),
        lambda t: Energy(energy_temperature=t),
        lambda t: Gradation(temperatures=(2.0, t)),
        lambda t: Entropy(temperature=t),
        lambda t: MLD(temperatures=(2.0, t)),
        lambda t: fitting("scan", "energy_temperature", t, SoftmaxTemperature),
    ],
)
def test_temperatures_that_no_softmax_survives_are_refused(build, value):
    with pytest.raises(ValueError, match="a number from 0.001 to 10000"):
        build(value)


# ---- what is right ---------------------------------------------------------------------------------------------------


def test_numbers_of_any_library_and_lists_for_tuples_are_taken():
    assert repr(DKD(beta=np.float32(2.0), warmup_epochs=np.int64(3))) == repr(DKD(beta=2.0, warmup_epochs=3))
    assert type(DistillationLoss(kd_weight=np.float32(0.5)).kd_weight) is float
    assert Energy(thresholds=[-9, -5]) == Energy(thresholds=(-9.0, -5.0))
    assert MLD(temperatures=[3.0, 5.0]).temperatures == (3.0, 5.0)
    assert "Annotated[float, a finite number of 0 or more] = 8.0" in str(inspect.signature(DKD))


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "words"),
    [
        (Positive, [1, 1e-9], [0, -1], "a finite number above 0"),
        (NotNegative, [0, 3.0], [-1e-9], "a finite number of 0 or more"),
        (Share, [0, 1, 0.5], [1.01, -0.1], "a number from 0 to 1"),
        (Count, [1, 64], [0, 1.0], "a whole number above 0"),
        (Positive | None, [None, 1], [0], "a finite number above 0, or None"),
        (Literal["a", "b"], ["a"], ["c"], "'a' or 'b'"),
        (tuple[float, float], [(1, 2)], [(1,), (1, 2, 3)], "a tuple of 2 numbers, each a finite number"),
        (tuple[SoftmaxTemperature, ...], [(), (1, 2)], [(0,)], "a tuple of numbers, each a number from 0.001 to 10000"),
        (str, ["a"], [1], "a string"),
        (dict[int, str], [{}, {1: "a"}], [{1: 1}, {"a": "a"}, ((1, "a"),)], "a dict from a whole number to a string"),
        (object, [1, "a"], [], ""),
    ],
)
def test_kinds(kind, right, wrong, words):
    for value in right:
        assert fitting("It", "x", value, kind) == value
    for value in wrong:
        with pytest.raises(ValueError, match=f"It: x=.* must be {words}$"):
            fitting("It", "x", value, kind)


def test_the_decorator_serves_a_class_of_ones_own():
    @checked
    @dataclass
    class Mine:
        """Kept."""

        size: Count = 3
        anything: object = None

    assert (Mine().size, Mine(4, anything="x").size, Mine.__doc__) == (3, 4, "Kept.")
    with pytest.raises(ValueError, match="Mine: size=0 must be a whole number above 0"):
        Mine(0)
    with pytest.raises(TypeError):
        Mine(width=3)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"channels_last": "no"}, "channels_last='no' must be True or False"),
        ({"evaluate_kl": 1}, "evaluate_kl=1 must be True or False"),
        ({"bf16": "no"}, "bf16='no' must be True or False, or None"),
        ({"kd_weight": True}, "kd_weight=True must be a finite number"),
        ({"loss_chunk_size": 2.5}, "loss_chunk_size=2.5 must be a whole number"),
        ({"he_da_ratio": "0.4"}, "he_da_ratio='0.4' must be a finite number"),
        ({"per_device_train_batch_size": 2.5}, "per_device_train_batch_size=2.5 must be a whole number above 0"),
        ({"lr_decay_epochs": [1.0, math.inf]}, "must be ascending epochs above 0"),
        ({"num_train_epochs": math.inf, "max_steps": -1}, "num_train_epochs=inf must be a finite number above 0"),
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path, setting, words):
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **setting)


def test_the_trainers_own_keywords_are_checked(tmp_path):
    with pytest.raises(ValueError, match="ce_weight=True must be a finite number of 0 or more"):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), ce_weight=True)
