"""DistillationTrainer: the Hugging Face Trainer with the one equation as its loss."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hfkd.arguments import DistillationArguments
from hfkd.data.collate import views_as_rows
from hfkd.data.epochs import refuse_streams
from hfkd.data.target_collator import with_targets
from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss, cross_entropy
from hfkd.losses.logits import KD
from hfkd.models.calling import Call, by_name, logits_of
from hfkd.models.peers import networks_of
from hfkd.models.sharing import refuse_shared
from hfkd.models.vocabulary import common_vocabulary
from hfkd.reports.hub import HubTrainer
from hfkd.reports.teacher_accuracy import TeacherAccuracy
from hfkd.tasks.choice import chosen_task
from hfkd.teachers import CachedTextTeacher, LiveTeacher, TeacherScan, place
from hfkd.teachers.tokenizer import check_teacher_tokenizers
from hfkd.training import loss_parameters, run_identity
from hfkd.training.averages import RowAverage
from hfkd.training.checkpoints.optimizer_state import as_laid_out
from hfkd.training.checkpoints.tensors import TensorCheckpoints
from hfkd.training.checkpoints.whole import checkpoint_to_resume
from hfkd.training.forward.choice import AnyStep, Chosen, choose_step
from hfkd.training.forward.dense import ChunkedStep
from hfkd.training.forward.he_da import refuse_he_da, with_he_da
from hfkd.training.forward.returned_outputs import returned_outputs
from hfkd.training.lr_schedule import ScheduledTrainer, refuse_unknown_epochs
from hfkd.training.nonfinite import WatchedTrainer
from hfkd.training.preparation import (
    EpochViews,
    cached_teacher,
    chosen_loss,
    live_teacher,
    packing_check,
    pins_memory,
    refuse_unsaved,
    refuse_unsupported,
    setting,
    teacher_networks,
    with_adapters,
)
from hfkd.training.run_identity import RunRecord
from hfkd.training.run_settings import run_settings
from hfkd.training.statistics import scan_of
from hfkd.training.validation.batches import refuse_no_batch, refuse_small_batches
from hfkd.training.validation.cached import check_cached
from hfkd.training.validation.checked_batches import Bounds, CheckedBatches
from hfkd.training.validation.label_maps import check_label_names
from hfkd.training.validation.labels import EmptyRows, LabelWatch
from hfkd.training.validation.networks import check_datasets, check_networks, probed_dataset, say_left_out
from hfkd.training.validation.normalisation import ImageInputs, normalisation, receiving
from hfkd.training.validation.random_rows import warn_of_random_rows
from hfkd.training.validation.recorded_inputs import check_processor, record_inputs
from hfkd.training.validation.slots import slot_check
from hfkd.training.validation.teacher_probe import probed
from hfkd.utils.cpu_memory import keep_freed_memory
from hfkd.utils.output_folder import refuse_networks

logger = logging.getLogger(__name__)


class DistillationTrainer(HubTrainer, ScheduledTrainer, CheckedBatches, TensorCheckpoints, WatchedTrainer):
    """Trainer that distils `teacher` into `model`, choosing per sample how hard to soften and how much to learn.

        DistillationTrainer(model, teacher, args, train_dataset=..., eval_dataset=..., weighting="entropy")

    `objective`, `temperature`, `weighting`, `ce_weight`, `kd_weight` say the same as in `DistillationArguments`, and
    win over them. `teacher` is any network that gives logits (a `LiveTeacher` to say how its inputs are normalised), or
    a list of them, which the objectives `average` and `inverse_entropy` combine (others see their mean logits);
    None, with `kd_weight=0`, trains on the labels alone. Rows of the datasets have `pixel_values` and `labels`, or for
    language models `input_ids` and `labels`, and several documents where `position_ids` start again. `peft_config`
    trains adapters; `teacher_processing_class` is a language teacher's tokenizer. Everything else is Trainer's.
    `eval_loss` is the student's cross-entropy, for which the teacher does not run; `evaluate_kl` adds `eval_kl`. A
    temperature that needs the teacher's energies over the training set has them scanned when training starts.
    """

    # The loss is divided by the items of the whole accumulated batch, here and not by Trainer.
    loss_is_scaled_for_ga = True
    args: DistillationArguments

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        args: DistillationArguments | None = None,
        *,
        peft_config: Any = None,
        teacher_processing_class: Any = None,
        objective: Any = None,
        temperature: Any = None,
        weighting: Any = None,
        ce_weight: float | None = None,
        kd_weight: float | None = None,
        **trainer_keywords: Any,
    ) -> None:
        args = args or DistillationArguments(output_dir="distilled")
        slots = {"objective": objective, "temperature": temperature, "weighting": weighting}
        loss = chosen_loss(args, ce_weight=ce_weight, kd_weight=kd_weight, **slots)
        refuse_unsupported(loss, model, teacher, args, trainer_keywords.get("compute_loss_func"))
        data = {k: trainer_keywords.get(k) for k in ("train_dataset", "eval_dataset")}
        processing_class = trainer_keywords.get("processing_class")
        refuse_shared(model, teacher_networks(teacher), adapters=peft_config is not None)
        model = model if peft_config is None else with_adapters(model, peft_config)
        refuse_unsaved(model)
        self.call = Call.of(model)
        cached = teacher if isinstance(teacher, CachedTextTeacher) else None
        self.task = task = chosen_task(args.task, networks_of(model), teacher_networks(teacher))
        wanted = (*(self.call.keywords or ()), *(args.label_names or ()))
        given = trainer_keywords.pop("data_collator", None)
        collator = task.collator(self.call, processing_class, wanted) if given is None else task.ready(given)
        check_datasets(data, collator)
        refuse_no_batch(args, data)
        images = self.call.takes_images and not task.vocabulary
        self.image_inputs = ImageInputs.between(model, teacher, collator, processing_class) if images else None
        self.received = normalisation(self.image_inputs, data)
        live = None if teacher is None or cached else live_teacher(teacher, self.received)
        refuse_unknown_epochs(loss, args, data["train_dataset"])
        if loss.unfitted is not None and data["train_dataset"] is not None:
            refuse_streams(data["train_dataset"])
        labels = args.label_names or ()
        say_left_out(data["train_dataset"], collator, self.call, labels)
        self.num_classes = (
            common_vocabulary(model, live.networks[0], processing_class) if task.vocabulary and live else None
        )
        if task.vocabulary and live and loss.kd_weight:
            check_teacher_tokenizers(processing_class, teacher_processing_class, live.networks)
        slots_of, rows = slot_check(loss, task, self.num_classes), probed_dataset(data)
        classes = check_networks(model, self.call, live, rows, collator, task, slots_of, labels)
        self.labels, self.empty_rows = LabelWatch(task, classes), EmptyRows(task)
        self.class_names = None if task.vocabulary else check_label_names(data, collator, model, live)
        check_processor(processing_class, model, data["train_dataset"], self.received)
        self.packing = packing_check(model, live, args, data, collator) if task.by_target else None
        if cached:
            self.num_classes = check_cached(cached, loss, args, model, processing_class, data["train_dataset"], task)
            collator = cached.collator(collator)
        refuse_small_batches(loss, args, task)
        step = choose_step(model, live, task, loss, args, self.num_classes)
        refuse_he_da(args, step, data["train_dataset"])
        self.record = RunRecord.of(model, live or cached, loss, args.seed, args.high_energy, data["train_dataset"])
        self.record.refuse_other(args.output_dir)
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
            if live is not None:
                live.channels_last()
        loss_parameters.prepare(loss, self.num_classes or classes, args)
        loss_parameters.join(loss, *trainer_keywords.get("optimizers") or (None, None))
        self.pins_memory = pins_memory(data, args)
        self.bounds = Bounds.of(model, live.networks if live else (), task, self.num_classes or classes)
        with loss_parameters.used_by_ddp(loss, args):
            super().__init__(model=model, args=args, data_collator=collator, **trainer_keywords)
        self._place(step, loss, live, cached)
        self.scan_result: TeacherScan | None = None
        self._evaluated = RowAverage()
        if self.optimizer is not None:
            as_laid_out(self.optimizer)  # moments of weights that have become channels_last above
        self.add_callback(EpochViews())
        self.add_callback(loss_parameters.CheckTrained(loss))
        self.add_callback(TeacherAccuracy(self))

    def _place(
        self, step: Chosen, loss: DistillationLoss, live: LiveTeacher | None, cached: CachedTextTeacher | None
    ) -> None:
        """Put what trains the student where Trainer's constructor has put the student itself."""
        if isinstance(step, ChunkedStep):
            step.autocast = self.accelerator.autocast
        step.watch = self.faults
        self.step: AnyStep = step
        self._live = live
        self.distillation_loss = loss.to(self.args.device)
        if self.args.torch_compile and self.task.one_item_a_row and not loss_parameters.learns(loss):
            # Seventy small operations become a few. Not by CUDA graphs: what is logged outlives the step.
            loss.compile(backend=self.args.torch_compile_backend or "inductor")
        placed = None if live is None else place(live, self.accelerator)
        self.teacher: Any = cached if placed is None else placed
        self.cached_teacher: Any = cached_teacher(placed, self.train_dataset, loss, self.args, self.accelerator)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for results.json and the page."""
        return run_settings(self)

    # ---- the loss ----------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = self.as_networks_take_it(inputs, model.training)
        if not model.training:
            loss, outputs = self._evaluate_batch(model, inputs)
            return (loss, outputs) if return_outputs else loss
        teacher = self.cached_teacher or self.teacher
        watched = returned_outputs(self.step, model, return_outputs)
        with self._frozen_teacher(), watched as (step, outputs):
            loss, parts, num_items = step(model, teacher, inputs, num_items_in_batch, self.progress)
        self._trained.add(parts, num_items)
        self.empty_rows.look(inputs["labels"], inputs.get("host_targets"), num_items)
        self.faults.batch(inputs, loss, parts)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Gradients are averaged over the ranks, and the loss is already divided by the items of all of them.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, by_name(outputs[0])) if return_outputs else loss

    def _frozen_teacher(self) -> AbstractContextManager[None]:
        """Within it the teacher's networks are frozen; afterwards they are their owner's, as they were."""
        return nullcontext() if self._live is None else self._live.frozen()

    @torch.no_grad()
    def _evaluate_batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """The cross-entropy, and the student's outputs by name."""
        output = self.call.output(self.evaluated_network(model), inputs)
        logits = logits_of(output)
        cut, taught = slice(self.num_classes), logits
        if self.args.evaluate_kl and self.teacher is not None:
            taught = self.evaluated_network(self.teacher)(**inputs)
        items = self.task.items(inputs, logits[..., cut], taught[..., cut])
        values = {"loss": cross_entropy(items.student.logits, items.labels)}
        if taught is not logits:
            values["kl"] = KD(scale="none")(items, torch.ones_like(values["loss"]))
        self._evaluated.add(values, items, self.accelerator)
        return values["loss"].sum() / max(len(items), 1), by_name(output)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Trainer's, whose rows without labels reach the network as those with labels do."""
        if self.label_names and all(inputs.get(name) is not None for name in self.label_names):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        network = self.evaluated_network(model)

        def by_call(**inputs: Any) -> Any:
            return by_name(self.call.output(network, self.as_networks_take_it(inputs, False)))

        return super().prediction_step(cast(nn.Module, by_call), inputs, prediction_loss_only, ignore_keys)

    def evaluated_network(self, model: nn.Module) -> Any:
        """Student or teacher without the autocast that Accelerate put around its forward, unless that is wanted."""
        if self.is_fsdp_enabled:  # calling the inner forward would pass by the gathering of its weights
            return model
        forward = vars(self.accelerator.unwrap_model(model)).get("_original_forward")
        return forward if forward is not None and self.args.float32_evaluation else model

    def as_networks_take_it(self, inputs: Mapping[str, Any], training: bool) -> dict[str, Any]:
        inputs = views_as_rows(self.call.without_labels(inputs, self.label_names))
        if self.packing is not None:
            self.packing(with_targets(inputs))
        if isinstance(labels := inputs.get("labels"), Tensor):
            inputs["labels"] = self.labels(labels, int(self.state.epoch or 0) if training else None)
        images = inputs.get("pixel_values")
        if self.args.channels_last and images is not None and images.ndim == 4:
            return {**inputs, "pixel_values": images.contiguous(memory_format=torch.channels_last)}
        return inputs

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Trainer's count, in the task's items: images and not label elements, targets and not positions.

        `Counts` of items and samples where the objective gives a number for each sample.
        """
        if not batch_samples:
            return None
        items = self._over_ranks(sum(self.task.count(batch) for batch in batch_samples), device)
        if not self.distillation_loss.by_sample:
            return items
        samples = self._over_ranks(sum(self.task.count_samples(batch) for batch in batch_samples), device)
        return Counts(items, items, samples)

    def _over_ranks(self, count: Any, device: torch.device) -> Any:
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            here = count if isinstance(count, Tensor) else torch.full((), count, device=device)  # a copy would wait
            count = self.accelerator.reduce(here, reduction="sum")
        return count / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def _get_dataloader(self, *arguments: Any, **keywords: Any) -> DataLoader:
        with setting(self.args, dataloader_pin_memory=self.pins_memory and self.args.dataloader_pin_memory):
            return super()._get_dataloader(*arguments, **keywords)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, with a loss that counts every row once whatever the number of ranks."""
        self._evaluated = RowAverage(finite_only=self.args.logging_nan_inf_filter)
        compared = self.teacher if self.args.evaluate_kl else None
        with self._frozen_teacher(), receiving(compared, self.image_inputs, dataloader.dataset):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if output.metrics is not None:
            output.metrics.update(
                {f"{metric_key_prefix}_{name}": value for name, value in self._evaluated.read().items()}
            )
        return output

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(*arguments, **keywords)
        if made:
            loss_parameters.regroup(self.distillation_loss, optimizer)
        return optimizer

    # ---- the teacher scan --------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        refuse_networks(self.args.output_dir, {"student": self.model, "teacher": self.teacher}, self.processing_class)
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        self.record.refuse_checkpoint(checkpoint)
        if self.record.training is None and trial is None:  # train() again goes on, and each trial has its own settings
            self.record = self.record.training_as(self.settings)
            self.record.check_training(self.args.output_dir, checkpoint)
        self.start_from(checkpoint)
        if checkpoint is not None:
            warn_of_random_rows(self.train_dataset)
        self.step, self.train_dataset = with_he_da(self.args, self.step, self.train_dataset, self.scan_training_set)
        self.fit_slots(checkpoint)
        record_inputs(self)
        # A resumed run may still be refused: its folder's record is renewed with what is saved next.
        if self.args.should_save and not (checkpoint and run_identity.read(self.args.output_dir)):
            self.record.write(self.args.output_dir, self.distillation_loss)
        if self.args.keep_freed_memory and self.args.device.type == "cpu":
            keep_freed_memory()
        assert self.model is not None
        try:
            own_scheduler = None if self._created_lr_scheduler else self.lr_scheduler
            loss_parameters.join(self.distillation_loss, self.optimizer, own_scheduler)
            with self._frozen_teacher(), loss_parameters.attached(self.distillation_loss, self.model):
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            if self.cached_teacher is not None:
                self.cached_teacher.flush()

    def fit_slots(self, checkpoint: str | None = None) -> None:
        """Give the temperature its thresholds: those of `checkpoint`, or of a scan of the training set.

        Raises ValueError when the teacher or the rows are not those of `checkpoint`.
        """
        slot, found = self.distillation_loss.unfitted, None
        earlier = (
            None if slot is None else run_identity.earlier_thresholds(checkpoint, slot, not self.task.one_item_a_row)
        )
        if slot is not None and earlier is not None:
            slot.restore(earlier)
        elif slot is not None:
            found = self.scan_training_set(energy_temperature=slot.energy_temperature, level=slot.level)
            slot.fit(found.energy[~found.energy.isnan()])  # rows without a target have none
        if slot is not None:
            logger.info("Energy thresholds: %s", slot.thresholds_or_none)
        self.record = probed(self, checkpoint, found)

    def scan_training_set(self, **keywords: Any) -> TeacherScan:
        """`hfkd.teachers.scan` with this trainer's teacher, data, ranks and cache; kept as `scan_result`."""
        self.scan_result = scan_of(self, **keywords)
        return self.scan_result

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate for tokens; none for images, where it means nothing and walks all parameters each step."""
        return 0 if self.call.takes_images else super().floating_point_ops(inputs)
