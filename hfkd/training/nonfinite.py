"""Detects NaN and infinity without waiting for the device, locates them, and keeps them out of checkpoints.

N items, B rows of a batch, C classes, vocabulary or hidden size.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss
from hfkd.training.averages import BatchAverage
from hfkd.training.given_loss import reads_temperature
from hfkd.training.host import Host
from hfkd.utils.buffers import KeptBuffers
from hfkd.utils.finite import input_sums, output_sums
from hfkd.utils.numbers import for_log
from hfkd.utils.ranks import of_each

logger = logging.getLogger(__name__)

NAMED_ROWS = 16
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# In order of computation: the first part that is not finite is the cause of the following ones.
PARTS = {
    "the inputs are": "check the data and the output of its transform",
    "the teacher's outputs are": "check its checkpoint and its precision",
    "the student's outputs are": "lower learning_rate, or clip the gradient with max_grad_norm",
    "the temperature that a slot returned is not above 0, or": "return a finite number above 0 for each item",
    "the weight that a slot returned is below 0, or": "return a finite number of 0 or more for each item",
    "the loss, computed from finite outputs, is": "check the labels and the slots of the loss",
    "the gradient, of a finite loss, is": "lower learning_rate, or train with bf16 instead of fp16",
}


@dataclass
class _Batch:
    """What is kept to locate non-finite rows later: inputs [B], student and teacher [N] are sums, finite if all values
    are.

    The loss, and the means of temperature and weight (None: no distillation), are of the whole batch.
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
    """An optimizer step not yet judged. `total` is NaN or infinite if anything in it was, on any process."""

    number: int
    batches: list[_Batch]
    total: Tensor
    ready: torch.cuda.Event | None = None


class NonFiniteWatch(TrainerCallback):
    """Checks the loss and the gradient norm of each optimizer step, over all processes.

    `stop` raises FloatingPointError with step, rows and part. On a GPU the result of a step is read while the next one
    runs, so that the host does not wait, and always before anything is logged, evaluated or saved; the student in
    memory may then have taken the bad step, but no checkpoint has. On a CPU it is read before the step is taken. `skip`
    always reads it before the step, which waits for the device, and skips the step on all processes: parameters,
    optimizer state and the student's buffers stay unchanged. `ignore` checks nothing.
    """

    def __init__(self, on_nan: str, accelerator: Accelerator) -> None:
        self.on_nan, self.accelerator = on_nan, accelerator
        self.lags = on_nan == "stop" and accelerator.device.type == "cuda"
        self.skipped = 0
        self.begun = 0  # the step of the checkpoint that training was resumed from
        self.taken = TakenSteps()
        self.buffers = KeptBuffers()
        self._outputs: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._batches: list[_Batch] = []
        self._on_trial: _Step | None = None

    def outputs(self, student: Tensor, teacher: Tensor | None, sample: Tensor) -> None:
        """Record logits or hidden states [N, C] of both networks (None: no teacher was run), and each item's row."""
        if self.on_nan != "ignore":
            self._outputs = output_sums(student), None if teacher is None else output_sums(teacher), sample

    def batch(self, inputs: Mapping[str, Any], loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Record the inputs of the batch whose outputs were recorded last, its loss, and the loss's parts."""
        if self._outputs is not None:
            student, teacher, sample = self._outputs
            chosen, index = (parts.get("temperature"), parts.get("weight")), inputs.get("index")
            sums = input_sums(inputs)
            self._batches.append(_Batch(sums, student, teacher, sample, loss.detach(), index, *chosen))
            self._outputs = None

    def leaves_out(self, number: int, gradient_norm: Tensor | float | None) -> bool:
        """Whether to skip optimizer step `number`, which is about to be taken. May raise, for it or the one before."""
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
        """Wait for the result of the last step, if it is pending."""
        step, self._on_trial = self._on_trial, None
        if step is not None:
            self._verdict(step)

    def _put_on_trial(self, number: int, gradient_norm: Tensor | float | None) -> _Step:
        losses = [batch.loss.float() for batch in self._batches]
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        # With an fp16 gradient scaler infinities are normal, and the scaler skips those steps itself.
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
            raise FloatingPointError(f"{found}. Pass on_nan='skip' to skip such steps, or 'ignore' to take them")
        self.skipped += 1
        logger.warning("%s. The step is skipped; %d so far.", found, self.skipped)
        return True

    def _what_broke(self, step: _Step) -> str:
        """The first non-finite part and its rows, on all processes; each process calls this for the same steps."""
        mine = [_broken_rows(step.batches, part) for part in range(len(PARTS))]
        everywhere = of_each(mine)
        for part, (name, remedy) in enumerate(PARTS.items()):
            rows = [row for process in everywhere for row in process[part]]
            if rows:
                more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
                return f"{name} NaN or infinite for {', '.join(rows[:NAMED_ROWS])}{more}: {remedy}"
        raise AssertionError("a gradient always has rows")

    def steps_over_own(self, steps: int) -> float:
        """The number of all `steps`, those before a resume too, over that of this training."""
        return steps / max(steps - self.begun, 1)

    def logged(self) -> dict[str, float]:
        """The number of skipped steps since training started, with on_nan='skip'."""
        return {"skipped_steps": self.skipped} if self.on_nan == "skip" else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._outputs, self._batches, self._on_trial = None, [], None  # left over from an interrupted attempt
        self.taken, self.begun = TakenSteps(), state.global_step
        self.skipped = next((e["skipped_steps"] for e in reversed(state.log_history) if "skipped_steps" in e), 0)
        if self.on_nan == "skip":
            self.buffers.keep(keywords["model"])

    # ---- nothing is logged, evaluated or saved before the step is judged ----

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.settle()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.settle()


class TakenSteps:
    """Corrects the mean loss for skipped steps: Trainer sums the loss and divides by the number of all steps."""

    def __init__(self) -> None:
        self._all, self._logged = [0, 0], [0, 0]  # all steps, and those taken
        self._sum: Tensor | None = None

    def count(self, taken: bool) -> None:
        for counts in (self._all, self._logged):
            counts[0] += 1
            counts[1] += taken

    def keep(self, loss: Tensor) -> None:
        """Store Trainer's running sum, after a step that is taken."""
        self._sum = loss.clone()

    def restore(self, loss: Tensor) -> None:
        """Reset the sum, in place, to its value before a skipped step."""
        loss.zero_() if self._sum is None else loss.copy_(self._sum)

    def ratio_since_logging(self) -> float:
        """The factor that corrects a mean over all steps since the last call."""
        counts, self._logged, self._sum = self._logged, [0, 0], None
        return _ratio(*counts)

    def ratio(self) -> float:
        """The factor that corrects a mean over all steps of this training."""
        return _ratio(*self._all)


def _ratio(steps: int, taken: int) -> float:
    """NaN if no step was taken: there is no loss then."""
    return steps / taken if taken else math.nan if steps else 1.0


class JudgedSteps:
    """Connects a trainer's optimizer steps with a `NonFiniteWatch`, and averages the logged parts of the loss.

    A skipped step is neither in the logged averages nor in the loss.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.watch = NonFiniteWatch(host.args.on_nan, host.accelerator)
        self.parts = BatchAverage()

    def add(self, parts: dict[str, Tensor], counts: Counts, loss: DistillationLoss) -> None:
        """Add `parts`: means over items, for terms with a value per sample over samples, for `ce` over labels.

        Without the temperature if nothing reads it, which then is a default without a meaning.
        """
        of_samples = {term.name for term in loss.terms if term.by_sample}
        unread = () if reads_temperature(loss, self.host.args) else ("temperature",)
        kinds: dict[Any, dict[str, Tensor]] = {}
        for name, mean in parts.items():
            if name in unread:
                continue
            kind = "labels" if name == "ce" else "samples" if name in of_samples else "items"
            kinds.setdefault(kind, {})[name] = mean
        for kind, means in kinds.items():
            self.parts.add(means, getattr(counts, kind))

    def gradient_norm(self, model: nn.Module) -> Tensor | None:
        """The gradient norm, if each process has the whole gradient; else None. Trainer would rewrite all gradients."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        accelerator = self.host.accelerator
        if accelerator.distributed_type not in WHOLE or accelerator.scaler is not None:
            return None
        if any(isinstance(gradient, DTensor) for gradient in gradients):
            return None
        return nn.utils.get_total_norm(gradients)

    def judge(self, model: nn.Module, norm: Any, total_loss: Tensor) -> None:
        """Called before a step is taken: skip it if needed. `total_loss`: Trainer's sum since it last logged."""
        watch = self.watch
        if watch.leaves_out(self.host.state.global_step + 1, norm):
            model.zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
            watch.buffers.restore(self.host.model)
            self.parts.forget()
            watch.taken.restore(total_loss)
        else:
            self.parts.keep()
            if self.host.args.on_nan == "skip":
                watch.buffers.keep(self.host.model)
                watch.taken.keep(total_loss)

    def add_to(self, logs: dict[str, float]) -> None:
        """Add the averages to the log of the training loss, and correct the loss for skipped steps."""
        if "loss" in logs:
            logs["loss"] *= self.watch.taken.ratio_since_logging()
            if self.host.is_in_train and not math.isfinite(logs["loss"]):
                self.host._tr_loss.zero_()  # Trainer subtracts the sum from itself, which would leave NaN for good
            logs |= for_log(self.parts.read(self.host.accelerator))
            logs |= self.watch.logged()


def _broken_rows(batches: list[_Batch], part: int) -> list[str]:
    found = []
    for batch in batches:
        of_batch = (batch.temperature, batch.weight, batch.loss)
        means = [None if mean is None else mean.expand(len(batch.sample)) for mean in of_batch]
        values = (batch.inputs, batch.teacher, batch.student, *means, None)[part]
        if values is None and part < len(PARTS) - 1:  # not computed in this batch
            continue
        rows_of = torch.arange(len(values), device=values.device) if values is not None and part == 0 else batch.sample
        rows = (rows_of if values is None else rows_of[~torch.isfinite(values)]).unique()
        if batch.index is None or any(row >= len(batch.index) for row in rows.tolist()):  # images added in training
            found += [f"row {i} of the batch" for i in rows.tolist()]
        else:
            found += [f"row {i}" for i in batch.index[rows % len(batch.index)].unique().tolist()]  # rows of all peers
    return found
