"""Builds objectives on inner layers before training, from the shapes of the networks' layers.

B rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import first_epoch
from hfkd.data.first_rows import first_rows, map_style
from hfkd.losses.base import requirements_of
from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.objective_values import check_objectives, reads_logits_alone
from hfkd.losses.outputs import Outputs
from hfkd.losses.slot_values import is_ours
from hfkd.models.calling import Call, logits_of
from hfkd.models.feature_capture import LOGITS, FeatureCapture, Probe, frames_of, in_decoder, refuse_other_head
from hfkd.models.running import stage_runner
from hfkd.tasks.base import Task
from hfkd.tasks.proof import untouched
from hfkd.teachers import FrozenTeacher
from hfkd.training.forward.features import InnerFeatures, of_outputs
from hfkd.training.forward.micro_batch import MicroBatch
from hfkd.training.loss_parameters import built_anew
from hfkd.training.validation.label_values import stored_labels
from hfkd.training.validation.layout import refuse_unsafe_parts
from hfkd.training.validation.networks import as_networks_get, batch_of, on_device_of
from hfkd.training.validation.row_index import row_index
from hfkd.utils.random_state import kept_random_state

Found = tuple[Tensor, dict[str, Any]]  # a network's logits and captured features


@dataclass
class Builder:
    """Inputs for building objectives: the networks as they will train, the rows, and the collator."""

    student: nn.Module
    call: Call
    teacher: FrozenTeacher | None
    task: Task
    args: DistillationArguments
    rows: Any
    collate: Callable[..., Any]
    labels: tuple[str, ...] = ()

    def first_batch(self) -> dict[str, Any] | None:
        """A batch of the first rows; None without rows, and for a stream, whose rows can be read only once."""
        rows = first_rows(self.rows)
        return batch_of(rows, self.collate, self.call, self.task, self.labels) if rows else None

    def index_of_rows(self, loss: DistillationLoss, batch: Mapping[str, Any]) -> Tensor | None:
        """`row_index`, if a slot requires the index of its rows."""
        slot = next((slot for slot in loss.slots if requirements_of(slot).index), None) if loss.distils else None
        return None if slot is None else row_index(slot, self.rows, batch)

    def build(self, loss: DistillationLoss, num_classes: int | None, batch: dict[str, Any]) -> InnerFeatures:
        """Call `Objective.build` with a fixed seed; returns the captured features of both networks for later steps.

        batch: as passed to the networks; it determines the shapes. Raises ValueError for layers that do not exist or do
        not match.
        """
        if not is_built(loss):
            self.index_of_rows(loss, batch)  # refused without one
            return InnerFeatures()
        assert num_classes is not None
        assert self.teacher is not None
        needs, batch, network = loss.requirements, self.task.probe(batch), self.teacher.networks[0]
        student = FeatureCapture(self.student, needs.student, "student")
        teacher = FeatureCapture(network, needs.teacher, "teacher")
        try:
            mine, its = self.of_student(student, batch), self.of_teacher(self.teacher, teacher, batch)
            context = BuildContext(
                _context(student, mine),
                _context(teacher, its, _order(self.teacher)),
                num_classes,
                len(self.rows) if has_length(self.rows) else None,
                stored_labels(self.rows, self.task),
                lambda visit: self.scan(teacher, visit),
                self.args.seed,
                self.index_of_rows(loss, batch) if has_length(self.rows) else None,
            )
            with kept_random_state():
                torch.manual_seed(self.args.seed)
                loss.objective.build(context)
            built_anew(loss.objective)
            self.index_of_rows(loss, batch)  # of a stream too, where the objective is built for one
            refuse_unsafe_parts(loss, self.args)
            decoder_mask = self.task.decoder_mask if context.student.in_decoder else None
            masks: dict[str, Any] = {"decoder_mask": decoder_mask, "frames": frames_of(self.student)}
            inner = InnerFeatures(student, teacher, fixed=needs.fixed, **masks)
            self.check(loss, num_classes, batch, inner, (mine, its))
        except BaseException:
            student.remove()
            teacher.remove()
            raise
        return inner if needs.features else InnerFeatures()

    def check(
        self,
        loss: DistillationLoss,
        num_classes: int,
        batch: Mapping[str, Any],
        inner: InnerFeatures,
        found: tuple[Found, Found],
    ) -> None:
        """`check_objectives` of those on inner layers, where both networks are on one device."""
        terms = [term for term in loss.terms if not reads_logits_alone(term.objective)]
        devices = {logits.device for logits, _ in found} | {parameter.device for parameter in loss.parameters()}
        if len(devices) > 1 or self.task.follows_student or all(is_ours(term.objective) for term in terms):
            return
        batch = on_device_of(self.student, batch)
        common = num_classes if self.task.vocabulary else None
        mine, its = (logits[..., :common] for logits, _ in found)
        items = MicroBatch(batch, seed=self.args.seed).placed(self.task.items(batch, mine, its))
        check_objectives(terms, loss.seen(inner.joined(items, batch, *found)), loss)

    @torch.no_grad()
    def of_student(self, capture: FeatureCapture, batch: Mapping[str, Any]) -> Found:
        inputs = on_device_of(self.student, batch)
        with untouched(self.student):
            output, found = Probe(capture).run(lambda: self.call.output(self.student, inputs))
        logits = logits_of(output)
        refuse_other_head(capture, found, logits)
        return logits, found

    @torch.no_grad()
    def of_teacher(self, teacher: FrozenTeacher, capture: FeatureCapture, batch: Mapping[str, Any]) -> Found:
        inputs = on_device_of(teacher, batch)
        with untouched(capture.network):
            logits, found = Probe(capture).run(lambda: teacher(**inputs))
        refuse_other_head(capture, found, logits, _order(teacher))
        return logits, found

    def scan(self, capture: FeatureCapture, visit: Callable[[Any], None]) -> None:
        """See `BuildContext.scan`; runs on the training device, on every rank, with the loader's workers and a progress
        bar: it may be a pass over ImageNet. Raises ValueError for a stream.
        """
        if not map_style(self.rows):
            raise ValueError(
                "the objective reads the teacher's features of all training rows before training, and a stream, "
                "or a custom loader without a train_dataset, may be endless: pass a map-style train_dataset"
            )
        assert self.teacher is not None
        teacher = self.teacher.to(self.args.device)
        with torch.no_grad(), kept_random_state(), teacher.frozen():
            for batch in self._batches():
                logits, found = capture.run(lambda inputs=batch: teacher(**inputs))  # type: ignore[misc]
                visit(of_outputs(capture, logits, found))

    def _batches(self) -> Iterator[dict[str, Any]]:
        workers, quiet = self.args.dataloader_num_workers, self.args.disable_tqdm or self.args.process_index > 0
        loader = DataLoader(
            self.rows, self.args.per_device_eval_batch_size, num_workers=workers, collate_fn=self.collate
        )
        with first_epoch(self.rows):  # in which a run that has been trained before on these rows would not be
            for given in tqdm(loader, desc="Reading the teacher's features", disable=quiet, leave=False):
                yield send_to_device(as_networks_get(given, self.call, self.task, self.labels), self.args.device)


def is_built(loss: DistillationLoss) -> bool:
    """Whether an objective of `loss` is built from the networks or reads their layers."""
    return bool(loss.requirements.features or (loss.distils and loss.builds))


def _order(teacher: FrozenTeacher) -> tuple[int, ...] | None:
    return None if teacher.order is None else tuple(teacher.order.tolist())


def _context(capture: FeatureCapture, ran: Found, order: tuple[int, ...] | None = None) -> NetworkContext:
    logits, found = ran
    features: Mapping[str, Any] = Outputs(logits, {**found, LOGITS: logits}).features
    shapes = {key: tuple(features[key].shape[1:]) for key in capture.keys}
    groups = {key: several for key, several in capture.groups.items() if several != (key,)}
    network, stages = capture.network, stage_runner(capture.network)
    return NetworkContext(shapes, capture.modules, network, groups, order, stages, in_decoder(network, capture.keys))
