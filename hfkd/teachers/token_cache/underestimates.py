"""Estimates how much of a divergence is hidden by a cache of the teacher's most probable classes, for a student.

N target tokens, k stored classes, V vocabulary, T one temperature.
"""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items, index_of_samples, target_items
from hfkd.losses.outputs import Outputs
from hfkd.losses.topk import TopKOutputs, spread
from hfkd.models.calling import Call
from hfkd.utils.modes import in_eval_mode
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

ROWS, LOOKED_AT = 4, 64  # rows, chosen as the shortest of the first
BADLY, LEAST = 1.5, 0.1  # whole divergence relative to the visible one, and the gap, above which to warn


@dataclass(frozen=True)
class SplitItems(Items):
    """Items of a stored teacher whose bucket is split in two halves, as unequal under the teacher as its classes are.

    The student's probability is the same on both; the teacher's shares a and 1 - a are such that KL(u || p) over the
    bucket's classes, u uniform, is the stored `spread`:  -log(4 a (1 - a)) / 2 = spread. The divergence of these items
    is about that of the live teacher for a student with uniform probabilities in the bucket. For a student with its own
    spread there, it is assumed to agree with the teacher to that extent.
    """

    spread: float = 0.0

    def log_probabilities(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = super().log_probabilities(temperature)
        larger = (1 + math.sqrt(-math.expm1(-2 * self.spread))) / 2
        smaller = -2 * self.spread - math.log(4 * larger)  # log(1 - a)
        halves = log_p.new_tensor([math.log(larger), smaller])
        return torch.cat([log_p[:, :-1], log_p[:, -1:] + halves], -1), torch.cat(
            [log_q[:, :-1], (log_q[:, -1:] - math.log(2)).expand(-1, 2)], -1
        )


@torch.no_grad()
def warn_of_underestimates(loss: DistillationLoss, teacher: Any, student: nn.Module, dataset: Any) -> None:
    """Warn if the objective is much smaller with the cache than with the live teacher.

    All classes other than the k stored ones form one bucket. A divergence weighted by the teacher's probabilities loses
    little, as the bucket has little of these; reverse KL, weighted by the student's, loses most of it early in
    training.
    """
    if not teacher.manifest.has_tail:
        return
    rows = _short_rows(dataset)
    items, said = _items(teacher, student, rows)
    if not rows or not len(items):
        return
    objective = copy.deepcopy(loss.objective)  # one with state is not changed
    for temperature in loss.temperature.choices:
        own = float(spread(items.student.logits / temperature, said.ids).mean())
        apart = max(teacher.spread(rows, temperature) - own, 0.0)
        t = torch.full((len(items),), temperature, device=items.sample.device)
        split = SplitItems(**vars(items), spread=min(apart, 1e6))
        seen, whole = (float(objective(one, t).mean()) for one in (items, split))
        if whole > BADLY * seen and whole - seen > LEAST:
            share = float(items.log_probabilities(t)[1][:, -1].exp().mean())
            logger.warning(
                "The teacher cache has the %d most probable of %d classes, and the others as one: with it %r at "
                "T = %g is %.3g, but about %.3g with the live teacher (measured on %d tokens, where the "
                "student's probability of the other classes is %.0f %%). Store more classes (a larger k) or "
                "train with the live teacher.",
                teacher.manifest.k,
                teacher.manifest.num_classes,
                loss.objective,
                temperature,
                seen,
                whole,
                len(items),
                100 * share,
            )
            return


def _short_rows(dataset: Any) -> list[Any]:
    rows = [dataset[number] for number in range(min(len(dataset), LOOKED_AT))]
    return sorted(rows, key=lambda row: len(row["input_ids"]))[:ROWS]


def _items(teacher: Any, student: nn.Module, rows: Sequence[Any]) -> tuple[Items, TopKOutputs]:
    device = next(student.parameters()).device
    batch = {key: value.to(device) for key, value in TokenCollator(0)(list(rows)).items()}
    with in_eval_mode(student):
        logits = Call.of(student)(student, batch)
    targets = Targets.of(batch)
    stored = {name: value.to(device) for name, value in teacher.look_up(rows).items()}
    said, size = teacher.outputs(stored), teacher.manifest.num_classes
    items = target_items(Outputs(upcast(targets.pick(logits))[:, :size]), said, targets)
    return replace(items, index=index_of_samples(batch.get("index"), items)), said
