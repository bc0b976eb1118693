"""What a teacher's and a data set's fingerprints see, and what they pass over."""

import os
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from text_toys import language_model
from torch import nn
from toys import Net
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from hfkd.data.large_images import load_large_images
from hfkd.teachers import FrozenTeacher, TeacherEnsemble, fingerprint
from hfkd.teachers.fingerprint import (
    changed_setting,
    configuration,
    data_fingerprint,
    teacher_key,
    weights_fingerprint,
)


def gemma(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**sizes | heads | settings))


def llama(theta):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    rope = {"rope_type": "default", "rope_theta": theta}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, rope_parameters=rope))


def key(model):
    return teacher_key(FrozenTeacher(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"final_logit_softcapping": 2.0},
        {"attn_logit_softcapping": 3.0},
        {"query_pre_attn_scalar": 7},
        {"sliding_window": 3},
    ],
)
def test_a_setting_that_changes_the_outputs_is_another_teacher(settings):
    assert key(gemma()) == key(gemma())
    assert key(gemma(**settings)) != key(gemma())
    (name,) = settings
    said = changed_setting(configuration(FrozenTeacher(gemma())), configuration(FrozenTeacher(gemma(**settings))))
    assert said.startswith(f"in its config {name} is ")


def test_nested_settings_are_named():
    said = changed_setting(configuration(FrozenTeacher(llama(10000.0))), configuration(FrozenTeacher(llama(4.0))))
    assert said == "in its config rope_parameters.rope_theta is 10000.0, here it is 4.0"


@pytest.mark.parametrize(
    "settings", [{"attention_dropout": 0.3}, {"use_cache": False}, {"eos_token_id": 5}, {"initializer_range": 0.1}]
)
def test_a_setting_that_changes_no_output_does_not_count(settings):
    assert configuration(FrozenTeacher(gemma(**settings))) == configuration(FrozenTeacher(gemma()))


def test_a_setting_that_another_version_does_not_know_is_not_compared():
    assert changed_setting({"old": 1, "both": 2}, {"both": 2, "new": 3}) is None


def test_several_teachers_are_told_apart():
    found = configuration(TeacherEnsemble([FrozenTeacher(gemma()), FrozenTeacher(gemma(final_logit_softcapping=2.0))]))
    assert (found["0.final_logit_softcapping"], found["1.final_logit_softcapping"]) == (30.0, 2.0)


class Stateful(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept_out", torch.linspace(1, 2, 5), persistent=False)
        self.plain, self.factor, self.calls = torch.ones(3), 2.0, 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.kept_out.mul_(2),
        lambda net: net.plain.mul_(2),
        lambda net: setattr(net, "factor", 3.0),
        lambda net: setattr(net, "forward", lambda x: 2 * Net.forward(net, x)),
        lambda net: net.head.register_forward_hook(lambda module, args, output: 2 * output),
    ],
)
def test_state_outside_of_the_weights_counts(change):
    net = Stateful()
    before = key(net)
    net(torch.zeros(1, 3, 8, 8))
    assert key(net) == before  # a count of calls is nothing that outputs depend on
    change(net)
    assert key(net) != before


def test_the_last_bit_of_a_buffer_that_is_computed_does_not_count():
    """Another machine's power function rounds otherwise."""
    net, other = Stateful(), Stateful()
    other.kept_out.mul_(1 + 1e-7)
    assert key(net) == key(other)


def test_a_model_that_was_saved_and_loaded_is_the_same(tmp_path):
    model = language_model()
    model.save_pretrained(tmp_path)
    assert key(type(model).from_pretrained(tmp_path)) == key(model)


# ---- data ------------------------------------------------------------------------------------------------------------


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for number in range(4):
            picture(tmp_path / "images" / split / f"class{number % 2}" / f"{number}.png", 10 * number)
    return tmp_path / "images"


def test_files_replaced_under_their_names_are_other_data(folder):
    rows, _ = load_large_images(str(folder))
    before = data_fingerprint(rows)
    assert data_fingerprint(rows) == before
    file = folder / "train" / "class1" / "3.png"
    picture(file, 200)
    os.utime(file, ns=(1, 1))
    assert data_fingerprint(rows) != before
    file.unlink()
    assert data_fingerprint(rows) not in (before, "")


def test_columns_of_paths_are_files_too(folder):
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    rows = Dataset.from_dict({"file": paths, "text": ["a/b", "c"] * 4, "index": list(range(8))})
    before = data_fingerprint(rows)
    picture(folder / "train" / "class0" / "0.png", 99)
    os.utime(paths[-1], ns=(1, 1))
    assert data_fingerprint(rows) != before


def test_embedded_images_are_their_bytes(folder):
    files = sorted(folder.rglob("*.png"))
    stored = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = Dataset.from_dict({"image": stored}, Features({"image": ImageFeature(decode=False)}))
    before = data_fingerprint(rows)
    for file in files:
        file.unlink()
    assert data_fingerprint(rows) == before


def test_a_teacher_is_the_same_in_versions_of_torch_that_describe_its_norms_otherwise(monkeypatch):
    """torch 2.15 adds to the repr of norms whether they have a bias: stored outputs and runs were another teacher's."""
    norms = nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.BatchNorm2d(2, affine=False), nn.InstanceNorm2d(2))
    network = nn.Sequential(nn.Conv2d(3, 2, 1), norms, nn.RMSNorm(2))
    described, found = repr(network), weights_fingerprint(FrozenTeacher(network))
    for kind in (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase):
        monkeypatch.setattr(kind, "extra_repr", as_before(kind.extra_repr))
    assert ", bias=" not in repr(norms)
    assert weights_fingerprint(FrozenTeacher(network)) == found
    if ", bias=" in described:  # what this version of torch has stored stays valid
        assert fingerprint._modules(network) == described


def as_before(own):
    return lambda norm: re.sub(r", bias=(True|False)", "", own(norm))
