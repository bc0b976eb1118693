"""Settings that only have an effect beside another one."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

# The settings of which one must be on, and those that have no effect otherwise.
ONLY_WITH: dict[tuple[str, ...], tuple[str, ...]] = {
    ("lr_decay_epochs",): ("lr_decay_factor",),
    ("he_da",): ("he_da_ratio", "he_da_mix", "he_da_side"),
    ("on_policy", "seq_kd"): (
        *("on_policy_max_new_tokens", "on_policy_temperature", "on_policy_top_k", "on_policy_top_p"),
        *("on_policy_batch_size", "log_completions"),
    ),
    ("teacher_cache_dir",): (
        *("teacher_cache_on_device", "teacher_cache_k", "teacher_cache_batch_size"),
        *("teacher_cache_entropy_temperature", "teacher_cache_energy_temperature"),
    ),
    ("eval_rouge",): ("rouge_seeds", "rouge_max_new_tokens", "rouge_tokenizer"),
    ("use_peft",): ("lora_r", "lora_alpha", "lora_target_modules"),
    ("from_config",): ("student_config",),
    ("teacher_from_config",): ("teacher_config",),
    ("streaming",): ("shuffle_buffer",),
}


def refuse_without_effect(*settings: Any) -> None:
    """Raise ValueError for a setting that differs from its default, but has no effect without another one.

    settings: dataclasses, which are looked at together. Groups of `ONLY_WITH` that they do not contain are left out. A
    setting that is empty or False counts as not given.
    """
    found = {name: value for one in settings for name, value in vars(one).items()}
    defaults = {f.name: _default(f) for one in settings for f in fields(one)}
    for switches, names in ONLY_WITH.items():
        if not found.keys() >= set(switches) or is_on(switches, found):
            continue
        given = [name for name in names if name in defaults and not _is_off(found[name], defaults[name])]
        if given:
            needed, name = " or ".join(switches), given[0]
            raise ValueError(
                f"{name}={found[name]!r} has no effect without {needed}: set {needed} too, or leave {name} out"
            )


def is_on(switches: tuple[str, ...], settings: Mapping[str, Any]) -> bool:
    """Whether one of these settings is on: neither false, 0 or empty, nor "none"."""
    return any(settings.get(name) not in (None, "none", "", 0, []) for name in switches)


def _is_off(value: Any, default: Any) -> bool:
    return value is False or value in (default, None, "")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
