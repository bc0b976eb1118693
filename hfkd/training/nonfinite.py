"""NaN and infinity: found without making the device wait, named, and never written into a checkpoint.

N items, B rows of a batch, C classes, vocabulary or hidden size.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hfkd.losses.counts import Counts
from hfkd.losses.terms import Term
from hfkd.training.averages import BatchAverage
from hfkd.training.host import Host
from hfkd.utils.buffers import KeptBuffers
from hfkd.utils.finite import input_sums, output_sums

logger = logging.getLogger(__name__)

NAMED_ROWS = 16
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# The part that broke first comes first: what follows it is NaN because of it.
PARTS = {
    "the inputs are": "check the data, and what its transform makes of them",
    "the teacher's outputs are": "check its checkpoint and its precision",
    "the student's outputs are": "lower learning_rate, or clip the gradient with max_grad_norm",
    "the temperature that a slot gave is not above 0, or": "give each item a finite number above 0",
    "the weight that a slot gave is below 0, or": "give each item a finite number of 0 or more",
    "the loss, of finite outputs, is": "check the labels and the slots of the loss",
    "the gradient, of a finite loss, is": "lower learning_rate, or train with bf16 in place of fp16",
}


@dataclass
class _Batch:
    """What tells, after the fact, which rows broke: inputs [B], student and teacher [N] are finite where those are.

    The loss, and the means of its temperature and weight (None: no distillation), are of the whole batch.
    """

    inputs: Tensor | None
    student: Tensor
    teacher: Tensor | None
    sample: Tensor
    loss: Tensor
    index: Tensor | None
    temperature: Tensor | None
    weight: Tensor | None


@dataclass
class _Step:
    """An optimizer step on trial. `total` is NaN or infinite when anything was, on any process."""

    number: int
    batches: list[_Batch]
    total: Tensor
    ready: torch.cuda.Event | None = None


class NonFiniteWatch(TrainerCallback):
    """Judges each optimizer step by its loss and its gradient's norm, over all processes.

    `stop` raises FloatingPointError with step, rows and part. A GPU is not waited for: a step's verdict is read while
    the next one runs, and always before anything is logged, evaluated or saved; the student in memory may then have
    taken the bad step, no checkpoint has. On a CPU the verdict comes before the step. `skip` reads it before the step
    everywhere, which waits for the device, and leaves the step out on all processes: parameters, optimizer state and
    the student's buffers stay as they were. `ignore` looks at nothing.
    """

    def __init__(self, on_nan: str, accelerator: Accelerator) -> None:
        self.on_nan, self.accelerator = on_nan, accelerator
        self.lags = on_nan == "stop" and accelerator.device.type == "cuda"
        self.skipped = 0
        self.taken = TakenSteps()
        self.buffers = KeptBuffers()
        self._outputs: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._batches: list[_Batch] = []
        self._on_trial: _Step | None = None

    def outputs(self, student: Tensor, teacher: Tensor | None, sample: Tensor) -> None:
        """Logits or hidden states [N, C] of both networks (None: no teacher is asked), and each item's row."""
        if self.on_nan != "ignore":
            self._outputs = output_sums(student), None if teacher is None else output_sums(teacher), sample

    def batch(self, inputs: Mapping[str, Any], loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """The batch whose outputs were seen last, its loss, and the means of the loss's parts."""
        if self._outputs is not None:
            student, teacher, sample = self._outputs
            chosen, index = (parts.get("temperature"), parts.get("weight")), inputs.get("index")
            sums = input_sums(inputs)
            self._batches.append(_Batch(sums, student, teacher, sample, loss.detach(), index, *chosen))
            self._outputs = None

    def leaves_out(self, number: int, gradient_norm: Tensor | float | None) -> bool:
        """Whether optimizer step `number`, about to be taken, is to be skipped. May raise, for it or the one before."""
        if self.on_nan == "ignore" or not self._batches:
            return False
        step = self._put_on_trial(number, gradient_norm)
        if not self.lags:
            broken = self._verdict(step)
            self.taken.count(not broken)
            return broken
        self.settle()
        self._on_trial = step
        return False

    def settle(self) -> None:
        """Wait for the verdict on the last step, if it is still out."""
        step, self._on_trial = self._on_trial, None
        if step is not None:
            self._verdict(step)

    def _put_on_trial(self, number: int, gradient_norm: Tensor | float | None) -> _Step:
        losses = [batch.loss.float() for batch in self._batches]
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        # A scaler of fp16 gradients meets infinities all the time, and leaves those steps out itself.
        if gradient_norm is not None and self.accelerator.scaler is None:
            total = total + (gradient_norm.full_tensor() if isinstance(gradient_norm, DTensor) else gradient_norm)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total)
        step, self._batches = _Step(number, self._batches, total), []
        if total.is_cuda and self.lags:
            step.total = torch.empty((), pin_memory=True).copy_(total, non_blocking=True)
            step.ready = torch.cuda.Event()
            step.ready.record()
        return step

    def _verdict(self, step: _Step) -> bool:
        if step.ready is not None:
            step.ready.synchronize()
        if math.isfinite(step.total.item()):
            return False
        found = f"step {step.number}: {self._what_broke(step)}"
        if self.on_nan == "stop":
            raise FloatingPointError(f"{found}. on_nan='skip' would leave such steps out, 'ignore' would take them")
        self.skipped += 1
        logger.warning("%s. The step is left out; %d so far.", found, self.skipped)
        return True

    def _what_broke(self, step: _Step) -> str:
        """The first part that broke and its rows, on all processes; each of them calls this for the same steps."""
        mine = [_broken_rows(step.batches, part) for part in range(len(PARTS))]
        everywhere = [mine] if self.accelerator.num_processes == 1 else gather_object([mine])
        for part, (name, remedy) in enumerate(PARTS.items()):
            rows = [row for process in everywhere for row in process[part]]
            if rows:
                more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
                return f"{name} NaN or infinite for {', '.join(rows[:NAMED_ROWS])}{more}: {remedy}"
        raise AssertionError("a gradient always has rows")

    def logged(self) -> dict[str, float]:
        """How many steps were left out since training started, where they are."""
        return {"skipped_steps": self.skipped} if self.on_nan == "skip" else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._outputs, self._batches, self._on_trial = None, [], None  # those of an attempt that was stopped
        self.taken = TakenSteps()
        self.skipped = next((e["skipped_steps"] for e in reversed(state.log_history) if "skipped_steps" in e), 0)
        if self.on_nan == "skip":
            self.buffers.keep(keywords["model"])

    # ---- nothing is logged, evaluated or saved before the verdict ----

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.settle()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.settle()


class TakenSteps:
    """The loss of the steps that were taken: Trainer adds up and divides by all of them."""

    def __init__(self) -> None:
        self._all, self._logged = [0, 0], [0, 0]  # steps, and those of them that were taken
        self._sum: Tensor | None = None

    def count(self, taken: bool) -> None:
        for counts in (self._all, self._logged):
            counts[0] += 1
            counts[1] += taken

    def keep(self, loss: Tensor) -> None:
        """Trainer's sum since it logged last, whose latest step was taken."""
        self._sum = loss.clone()

    def restore(self, loss: Tensor) -> None:
        """The sum as it was before a step that was left out, in place."""
        loss.zero_() if self._sum is None else loss.copy_(self._sum)

    def ratio_since_logging(self) -> float:
        """What a mean over all steps since this was asked last is to be multiplied by."""
        counts, self._logged, self._sum = self._logged, [0, 0], None
        return _ratio(*counts)

    def ratio(self) -> float:
        """What a mean over all steps of this training is to be multiplied by."""
        return _ratio(*self._all)


def _ratio(steps: int, taken: int) -> float:
    """NaN where no step was taken: there is no loss then."""
    return steps / taken if taken else math.nan if steps else 1.0


class JudgedSteps:
    """The optimizer steps of a trainer, which a `NonFiniteWatch` judges, and the parts of the loss that are logged.

    A step that is left out is not in the averages that are logged, nor in the loss itself.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.watch = NonFiniteWatch(host.args.on_nan, host.accelerator)
        self.parts = BatchAverage()

    def add(self, parts: dict[str, Tensor], counts: Counts, terms: Sequence[Term] = ()) -> None:
        """`parts` are means over the items, those of `terms` on samples over the samples, `ce` over the labels."""
        of_samples = {term.name for term in terms if term.by_sample}
        kinds: dict[Any, dict[str, Tensor]] = {}
        for name, mean in parts.items():
            kind = "labels" if name == "ce" else "samples" if name in of_samples else "items"
            kinds.setdefault(kind, {})[name] = mean
        for kind, means in kinds.items():
            self.parts.add(means, getattr(counts, kind))

    def gradient_norm(self, model: nn.Module) -> Tensor | None:
        """The gradient's norm where each process has it whole: Trainer clips at infinity, and writes it all anew."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        accelerator = self.host.accelerator
        if accelerator.distributed_type not in WHOLE or accelerator.scaler is not None:
            return None
        if any(isinstance(gradient, DTensor) for gradient in gradients):
            return None
        return nn.utils.get_total_norm(gradients)

    def judge(self, model: nn.Module, norm: Any, total_loss: Tensor) -> None:
        """Before a step is taken: leave it out where it is to be. `total_loss`: Trainer's sum since it logged last."""
        watch = self.watch
        if watch.leaves_out(self.host.state.global_step + 1, norm):
            model.zero_grad(set_to_none=True)  # an optimizer passes over parameters without a gradient
            watch.buffers.restore(self.host.model)
            self.parts.forget()
            watch.taken.restore(total_loss)
        else:
            self.parts.keep()
            if self.host.args.on_nan == "skip":
                watch.buffers.keep(self.host.model)
                watch.taken.keep(total_loss)

    def add_to(self, logs: dict[str, float]) -> None:
        """What is logged beside the training loss, which itself is the mean over the steps that were taken."""
        if "loss" in logs:
            logs["loss"] *= self.watch.taken.ratio_since_logging()
            logs |= {name: round(value, 6) for name, value in self.parts.read(self.host.accelerator).items()}
            logs |= self.watch.logged()


def _broken_rows(batches: list[_Batch], part: int) -> list[str]:
    found = []
    for batch in batches:
        of_batch = (batch.temperature, batch.weight, batch.loss)
        means = [None if mean is None else mean.expand(len(batch.sample)) for mean in of_batch]
        values = (batch.inputs, batch.teacher, batch.student, *means, None)[part]
        if values is None and part < len(PARTS) - 1:  # there is none to break
            continue
        rows_of = torch.arange(len(values), device=values.device) if values is not None and part == 0 else batch.sample
        rows = (rows_of if values is None else rows_of[~torch.isfinite(values)]).unique()
        if batch.index is None or any(row >= len(batch.index) for row in rows.tolist()):  # images made on the way
            found += [f"row {i} of the batch" for i in rows.tolist()]
        else:
            found += [f"row {i}" for i in batch.index[rows % len(batch.index)].unique().tolist()]  # of all peers
    return found
