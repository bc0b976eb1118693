"""Settings that have no effect without another one are refused, and left out where a later layer turns that one off."""

from dataclasses import fields

import pytest

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.evaluation.callback import RougeArguments
from hfkd.experiments.cache_arguments import TeacherCacheArguments
from hfkd.models.lora import LoraArguments
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.utils.dependent_settings import ONLY_WITH
from hfkd.utils.parsing import parse

CLASSES = (
    *(DistillationArguments, ImageDataArguments, RougeArguments, TeacherCacheArguments),
    *(LoraArguments, TextNetworkArguments),
)


def arguments(**settings):
    return DistillationArguments("out", use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"lr_decay_factor": 0.5}, "lr_decay_epochs"),
        ({"he_da_ratio": 0.2}, "he_da"),
        ({"he_da_mix": "mixup"}, "he_da"),
        ({"he_da_side": "low"}, "he_da"),
        ({"on_policy_max_new_tokens": 6}, "on_policy or seq_kd"),
        ({"on_policy_temperature": 0.0}, "on_policy or seq_kd"),
        ({"on_policy_top_k": 5}, "on_policy or seq_kd"),
        ({"on_policy_top_p": 0.5}, "on_policy or seq_kd"),
        ({"on_policy_batch_size": 2}, "on_policy or seq_kd"),
        ({"teacher_cache_on_device": True}, "teacher_cache_dir"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, needed):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"^{name}={value!r} has no effect without {needed}: set {needed} too, or"):
        arguments(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "needed"),
    [
        (RougeArguments, {"rouge_seeds": [1, 2]}, "eval_rouge"),
        (RougeArguments, {"rouge_tokenizer": "unicode"}, "eval_rouge"),
        (ImageDataArguments, {"shuffle_buffer": 5}, "streaming"),
        (LoraArguments, {"lora_r": 8}, "use_peft"),
    ],
)
def test_so_is_one_of_data_evaluation_and_adapters(kind, settings, needed):
    with pytest.raises(ValueError, match=f"has no effect without {needed}: set {needed} too"):
        kind(**settings)


def test_settings_in_effect_and_defaults_are_taken():
    assert arguments(lr_decay_epochs=[1], lr_decay_factor=0.5).lr_decay_factor == 0.5
    assert arguments(seq_kd=True, on_policy_top_k=5).on_policy_top_k == 5
    assert arguments(he_da_ratio=0.4, lr_decay_factor=0.1, on_policy_batch_size=None).he_da == "none"
    assert RougeArguments(rouge_seeds=[10]).rouge_max_new_tokens == 256


def read(*argv, protocol=()):
    given = ["--output_dir=out", "--use_cpu", *argv]
    return parse((TeacherCacheArguments, DistillationArguments), given, protocol)


def test_of_two_sets_of_flags_one_may_need_the_other():
    with pytest.raises(ValueError, match="^teacher_cache_k=8 has no effect without teacher_cache_dir"):
        read("--teacher_cache_k=8")
    assert read("--teacher_cache_k=8", "--teacher_cache_dir=cache")[0].teacher_cache_k == 8


@pytest.mark.parametrize(
    ("protocol", "flag", "left_out"),
    [
        ({"he_da": "paper", "he_da_ratio": 0.2, "he_da_mix": "mixup"}, "--he_da=none", "he_da_mix"),
        ({"on_policy": 0.5, "on_policy_max_new_tokens": 6}, "--on_policy=0", "on_policy_max_new_tokens"),
        ({"lr_decay_epochs": [1, 2], "lr_decay_factor": 0.5}, "--lr_scheduler_type=cosine", "lr_decay_factor"),
        ({"teacher_cache_dir": "cache", "teacher_cache_k": 8}, "--teacher_cache_dir=", "teacher_cache_k"),
    ],
)
def test_what_a_flag_turns_off_takes_its_settings_along(protocol, flag, left_out):
    cache, args = read(flag, protocol=[protocol])
    found, default = vars(cache) | vars(args), {f.name: f.default for one in (cache, args) for f in fields(one)}
    assert found[left_out] == default[left_out] != protocol[left_out]


def test_what_the_other_switch_keeps_on_is_kept():
    protocol = {"on_policy": 0.5, "seq_kd": True, "on_policy_max_new_tokens": 6}
    assert read("--on_policy=0", protocol=[protocol])[1].on_policy_max_new_tokens == 6


def test_the_table_names_settings_that_exist():
    names = {f.name for one in CLASSES for f in fields(one)}
    assert {name for switches, those in ONLY_WITH.items() for name in (*switches, *those)} <= names
