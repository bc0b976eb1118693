"""Inner features beside the logits: kept by whatever changes the items, and missed aloud."""

from dataclasses import fields, replace

import pytest
import torch

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.items import image_items
from hfkd.losses.outputs import Features, Outputs
from hfkd.utils.attention import Attention


def outputs(rows=4, **features):
    return Outputs(torch.randn(rows, 3, requires_grad=True), features)


def test_keys_are_numbers_or_strings():
    found = Outputs(torch.zeros(2, 3), {2: torch.ones(2, 5)}).features
    assert found[2] is found["2"]
    assert list(found) == ["2"]


def test_a_feature_that_is_not_there_is_an_error_that_names_those_there():
    with pytest.raises(ValueError, match=r"layer '3' was not captured, only \['2'\]"):
        Features({"2": torch.ones(2)})[3]


def test_detached_and_cut_into_rows_with_the_logits():
    map_ = torch.randn(4, 5, requires_grad=True)
    heads = torch.randn(4, 2, 6, 7)
    one = Outputs(torch.randn(4, 3), {"2": map_, "attention:0": Attention(heads, heads, heads, None, 0.5)})
    assert not one.detach().features["2"].requires_grad
    rows = one.rows(slice(1, 3))
    torch.testing.assert_close(rows.features["2"], map_[1:3])
    assert rows.features["attention:0"].query.shape == (2, 2, 6, 7)
    assert rows.features["attention:0"].scale == 0.5


def test_views_and_a_fixed_teacher_keep_them():
    items = image_items(torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2]))
    student = replace(items.student, kept={1: torch.arange(6.0)})
    items = replace(items, student=student, teacher=replace(items.teacher, kept={1: torch.ones(6).requires_grad_()}))
    fixed = items.with_fixed_teacher()
    assert not fixed.teacher.features["1"].requires_grad
    assert fixed.view(1).student.features["1"].tolist() == [3, 4, 5]


def test_requirements_have_keys_and_can_be_joined():
    joined = Requirements.joined([Requirements(student=(2,), epochs=3), Requirements(student=("2", 1), relations=True)])
    assert joined == Requirements(student=("2", "1"), epochs=3, relations=True)
    assert joined.features == ("2", "1")


@pytest.mark.parametrize("field", fields(Requirements), ids=lambda field: field.name)
def test_no_requirement_of_a_term_is_lost(field):
    value = {tuple: ("1",), bool: not field.default}.get(type(field.default), 7)
    alone = Requirements(**{field.name: value})
    joined = Requirements.joined([alone, Requirements()])
    assert getattr(joined, field.name) == (False if field.name in ("within_samples", "signals") else value)
    assert Requirements.joined([alone]) == alone


def context(mine, theirs):
    networks = (NetworkContext(dict.fromkeys(g, (1,)), {}, torch.nn.Identity(), {"1:": g}) for g in (mine, theirs))
    return BuildContext(*networks, num_classes=3, num_rows=None, labels=None, scan=lambda visit: None, seed=0)


def test_layers_of_both_networks_are_paired_in_order():
    assert context(("1", "2"), ("1", "2")).pairs("1:", "1:") == (("1", "1"), ("2", "2"))
    assert context(("1",), ("1",)).pairs((2, "pooled"), (3, "pooled")) == (("2", "3"), ("pooled", "pooled"))


def test_layers_that_are_not_as_many_are_refused():
    with pytest.raises(ValueError, match=r"\['1', '2'\] and the teacher's \['1', '2', '3'\]"):
        context(("1", "2"), ("1", "2", "3")).pairs("1:", "1:")
