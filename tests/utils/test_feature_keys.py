"""Names of inner layers."""

import numpy as np
import pytest

from hfkd.utils.feature_keys import feature_key, feature_keys, paired_keys, stages_of


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (2, "2"),
        ("2", "2"),
        ("02", "2"),
        (np.int64(2), "2"),
        (-1, "-1"),
        ("1:", "1:"),
        ("pre:3", "pre:3"),
        ("pre:1:", "pre:1:"),
        ("attention:0", "attention:0"),
        ("pooled", "pooled"),
        ("layer2.0.conv1:in", "layer2.0.conv1:in"),
        ("encoder.layer.3", "encoder.layer.3"),
    ],
)
def test_a_layer_has_one_key(layer, key):
    assert feature_key(layer) == key


@pytest.mark.parametrize(
    "layer", [True, 1.5, None, "", "a b", "post:2", "2.conv", "layer2:out", "pre:", "pre:x", "a..b", ("2",)]
)
def test_what_names_no_layer_is_refused(layer):
    with pytest.raises(ValueError, match="is not a valid layer"):
        feature_key(layer)


def test_one_layer_or_several():
    assert feature_keys(2) == feature_keys("2") == ("2",)
    assert feature_keys([1, "pre:2"]) == ("1", "pre:2")
    assert stages_of("pre:1:") == ("pre:", 1, True)
    assert stages_of("pooled") is None


def test_layers_of_both_networks():
    assert paired_keys((1, 2), None) == (("1", "2"), ("1", "2"))
    assert paired_keys(1, "a.b") == (("1",), ("a.b",))
    assert paired_keys({0: 0, "1": 3, "attention:2": "attention:5"}, None) == (
        ("0", "1", "attention:2"),
        ("0", "3", "attention:5"),
    )


@pytest.mark.parametrize(
    ("layers", "teacher_layers", "words"),
    [
        ({1: 3}, (3,), "is set too: leave one out"),
        ({}, None, "one or more of the student's layers"),
        ({1: 3, "1": 5}, None, "each once"),
        ({1: "a b"}, None, "'a b' is not a valid layer"),
    ],
)
def test_a_map_that_says_too_much_or_too_little_is_refused(layers, teacher_layers, words):
    with pytest.raises(ValueError, match=words):
        paired_keys(layers, teacher_layers)
