"""Checks before training that a token cache supports loss, settings and rows."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.slot_values import check_slots, on_copy
from hfkd.losses.temperatures import Fitted
from hfkd.models.vocabulary import common_size
from hfkd.tasks.base import Task
from hfkd.teachers.token_cache.columns import HIGHEST_TEMPERATURE
from hfkd.teachers.token_cache.underestimates import warn_of_underestimates
from hfkd.utils.random_state import kept_random_state

PROBED_TOKENS = 2


def check_cached(
    teacher: Any,
    loss: DistillationLoss,
    args: Any,
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Any,
    task: Task,
) -> int | None:
    """Raise ValueError unless the cache can replace the teacher; returns the vocabulary size to cut to (`common_size`).

    Supported are objectives on log-probabilities, the temperatures and entropies it was built for, and the rows it was
    built from.
    """
    if not task.by_target:
        raise ValueError(
            f"CachedTextTeacher is for causal language models, but the task is {task.name}: pass the live "
            "teacher, for images with teacher_cache_dir"
        )
    for name in ("loss_chunk_size", "evaluate_kl"):
        if getattr(args, name):
            raise ValueError(
                f"{name} needs the live teacher, but a teacher cache was given: leave {name} out, or "
                "pass the live teacher"
            )
    size = student.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    stored = teacher.manifest.num_classes
    if size < stored:
        raise ValueError(
            f"the student has {size} logits, but the teacher cache {stored}: build it with num_classes={size}"
        )
    if loss.kd_weight:
        _check_declared(loss, teacher)
        teacher.check_rows(dataset)
        _probe(loss, teacher, dataset)
        warn_of_underestimates(loss, teacher, student, dataset)
    return common_size(size, stored, tokenizer)


def _check_declared(loss: DistillationLoss, teacher: Any) -> None:
    needs = requirements_of(loss.objective)
    if needs.relations:
        raise ValueError(
            f"the objective {loss.objective!r} compares items with each other, which a teacher cache does not "
            "support: train with the live teacher"
        )
    given, stored = getattr(loss.temperature, "choices", None), teacher.manifest.temperatures
    highest = HIGHEST_TEMPERATURE[teacher.manifest.dtype]
    if given is not None and max(given) > highest:
        raise ValueError(
            f"the temperature {loss.temperature!r} goes up to {max(given):g}, but above {highest:g} masked "
            f"classes get some probability in a cache of {teacher.manifest.dtype}: build it with dtype='float32', "
            "or train with the live teacher"
        )
    known = given is not None and all(any(math.isclose(t, s, rel_tol=1e-6) for s in stored) for t in given)
    if teacher.manifest.captured and teacher.manifest.has_tail and not known:
        raise ValueError(
            f"the temperature {loss.temperature!r} differs from that of the captured log-probabilities, T = "
            f"{stored[0]:g}, and the mass of classes other than the {teacher.manifest.k} stored ones is not known "
            f"at another temperature: set temperature={stored[0]:g}, or store this teacher with build_text_cache"
        )
    if given is None or (teacher.manifest.has_tail and not known):
        which = "values not known in advance" if given is None else ", ".join(map(str, given))
        raise ValueError(
            f"the temperature {loss.temperature!r} uses {which}, but the teacher cache was built for "
            f"temperatures={stored}: build one with all temperatures needed, or train with the live teacher"
        )


@torch.no_grad()
def _probe(loss: DistillationLoss, teacher: Any, dataset: Any) -> None:
    """Call a copy of each slot on a few stored tokens, so that one that needs more than is stored fails now."""
    for number in range(len(dataset)):
        said = {name: values[:PROBED_TOKENS] for name, values in teacher.look_up([dataset[number]]).items()}
        stored = teacher.outputs(said)
        count = len(stored.ids)
        if count:
            break
    else:
        return  # no target tokens
    zeros = torch.zeros(count, dtype=torch.long)
    index = torch.tensor([dataset[number]["index"]])
    items = Items(Outputs(torch.zeros(count, stored.num_classes)), stored, zeros, zeros, 1, index=index)
    with kept_random_state(), on_copy("weighting", loss.weighting, warns=False) as weighting:
        weighting(items)
    check_slots(loss, items)
    slot = loss.temperature
    if isinstance(slot, Fitted):
        stored.energy(slot.energy_temperature)
    with kept_random_state(), on_copy("objective", loss.objective) as objective:
        for temperature in slot.choices:
            if not torch.isfinite(objective(items, torch.full((count,), temperature))).all():
                raise ValueError(
                    f"the objective {loss.objective!r} uses another temperature internally, for which the teacher "
                    "cache has no values: train with the live teacher"
                )
