"""Names of inner layers."""

import numpy as np
import pytest

from hfkd.utils.feature_keys import feature_key, feature_keys, stages_of


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
    with pytest.raises(ValueError, match="names no layer"):
        feature_key(layer)


def test_one_layer_or_several():
    assert feature_keys(2) == feature_keys("2") == ("2",)
    assert feature_keys([1, "pre:2"]) == ("1", "pre:2")
    assert stages_of("pre:1:") == ("pre:", 1, True)
    assert stages_of("pooled") is None
