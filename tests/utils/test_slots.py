from dataclasses import replace

import pytest

from hfkd.losses.distillation import resolve
from hfkd.losses.logits import DKD, KD, OBJECTIVES, Standardized
from hfkd.losses.temperatures import Constant, Energy, resolve_temperature
from hfkd.losses.weightings import WEIGHTINGS, Entropy


def test_a_name_a_call_a_number_and_a_callable():
    assert resolve("kd", OBJECTIVES, "objective") == KD()
    assert resolve(" dkd(beta=2.0, warmup_epochs=0) ", OBJECTIVES, "objective") == DKD(beta=2.0, warmup_epochs=0)
    assert resolve("entropy(student=False)", WEIGHTINGS, "weighting") == Entropy(student=False)
    assert resolve_temperature(2) == resolve_temperature("2.0") == Constant(2)
    assert resolve_temperature("energy(thresholds=(-9.5, -3))") == Energy(thresholds=(-9.5, -3.0))
    function = lambda items: items  # noqa: E731
    assert resolve(function, WEIGHTINGS, "weighting") is function


def test_a_name_inside_a_name():
    nested = resolve("standardized(objective='dkd(beta=2.0)')", OBJECTIVES, "objective")
    assert isinstance(nested, Standardized)
    assert repr(nested) == "Standardized(objective='dkd(beta=2.0)')"
    assert nested.requirements() == replace(DKD(beta=2.0).requirements(), classes=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entrpy", r"unknown weighting 'entrpy' \(did you mean 'entropy'\?\): pass one of \['averaged', 'entropy', 'm"),
        ("entropy(temprature=3)", r"'entropy' has no argument 'temprature': it takes \['temperature', "),
        ("entropy(temperature='x')", r"temperature='x' must be a number from 0.001 to 10000"),
        ("entropy(3.0)", "cannot be read"),
        ("entropy(**{'temperature': 3})", "cannot be read"),
        ("entropy(temperature=__import__('os').getpid())", "cannot be read"),
        ("entropy.mro()", "cannot be read"),
        ("entropy(", "cannot be read"),
        ("", "cannot be read"),
        ("(" * 400, "cannot be read"),
        ("a" * 600, "cannot be read"),
        (None, "is a NoneType"),
        (Entropy, "is a class: pass an instance"),
    ],
)
def test_errors_say_value_reason_and_remedy(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec, WEIGHTINGS, "weighting")


def test_nothing_is_ever_evaluated(tmp_path):
    planted = tmp_path / "planted"
    with pytest.raises(ValueError, match="cannot be read"):
        resolve(f"entropy(temperature=open({str(planted)!r}, 'w'))", WEIGHTINGS, "weighting")
    assert not planted.exists()
