"""DistillationTrainer: the Hugging Face Trainer with the distillation loss."""

import copy
import inspect
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hfkd.arguments import DistillationArguments
from hfkd.data.collate import views_as_rows
from hfkd.data.he_da import original_images
from hfkd.data.resident import as_collator_takes_it
from hfkd.data.streams import WITHOUT_WORKERS, WholeStream, due_at_epochs, even_stream, read_by_each_rank
from hfkd.data.target_collator import with_targets
from hfkd.evaluation.metrics import Running, check_counted, in_any_way, own_metrics, reads_logits
from hfkd.losses.slot_types import ObjectiveLike, TemperatureLike, WeightingLike
from hfkd.models.calling import by_name, gathered, logits_first, main_input_named
from hfkd.models.checkpoints import naming_unreadable
from hfkd.models.kept_config import KeptConfig
from hfkd.reports.card import write_card
from hfkd.reports.evaluations import EvaluationMarks
from hfkd.reports.hub import explained, upload_again
from hfkd.reports.teacher_accuracy import TeacherAccuracy
from hfkd.tasks.by_name import networks_by_name, tokenizer_of_name
from hfkd.tasks.unlabelled import unlabelled
from hfkd.teachers import TeacherScan
from hfkd.training import loss_parameters, run_identity
from hfkd.training.built_from import BuiltFrom
from hfkd.training.checkpoints.callback_states import CallbackStates
from hfkd.training.checkpoints.optimizer_state import as_laid_out, show_result
from hfkd.training.checkpoints.preemption import Preemption
from hfkd.training.checkpoints.tensors import TensorCheckpoints
from hfkd.training.checkpoints.whole import OwnBest, SaveAfterEvaluation, WholeCheckpoints
from hfkd.training.epoch_length import EpochLength
from hfkd.training.evaluated_means import EvaluatedMeans
from hfkd.training.evaluation_loaders import EvaluationLoaders, read_whole
from hfkd.training.first_batch import KeptFirst, own_loader
from hfkd.training.forward.choice import AnyForward
from hfkd.training.forward.dense import ChunkedForward
from hfkd.training.forward.he_da import with_he_da
from hfkd.training.forward.micro_batch import MicroBatch
from hfkd.training.forward.returned_outputs import returned_outputs, smoothed
from hfkd.training.found_batch_size import attempt
from hfkd.training.given_collator import tokenizer_in
from hfkd.training.given_loss import chosen_loss, slots_in_use
from hfkd.training.given_teacher import by_row, cached_teacher
from hfkd.training.item_counts import step_counts
from hfkd.training.layer_norms import layer_norms_in_float32
from hfkd.training.lock import locked
from hfkd.training.lr_schedule import Schedule, at_first_rate
from hfkd.training.made_optimizer import MadeOptimizer
from hfkd.training.map_predictions import OfOwnSize
from hfkd.training.model_init import Anew, seeded, student_of
from hfkd.training.nonfinite import JudgedSteps
from hfkd.training.on_policy.steps import WrittenSteps
from hfkd.training.overridden_loss import (
    refuse_dropped_count,
    refuse_old_methods,
    refuse_popped_labels,
    refuse_replaced_loss,
)
from hfkd.training.own_accelerator import OwnAccelerator, leave_state
from hfkd.training.own_attributes import refuse_own_names, refuse_replaced
from hfkd.training.passes import EpochViews, in_passes
from hfkd.training.private_api import FIRST_STEP, NOISE
from hfkd.training.run_settings import BatchSizeInUse, compared_settings, run_settings
from hfkd.training.same_rows import count_rows_once
from hfkd.training.same_start import refuse_other_lengths, refuse_other_start
from hfkd.training.sampling import by_epoch, tell_epoch, with_lengths
from hfkd.training.search import default_objective
from hfkd.training.set_too_late import RefuseChanged, refuse_changed, refuse_other_teacher
from hfkd.training.setup import Setup
from hfkd.training.statistics import scan_of
from hfkd.training.trainer_arguments import in_trainers_order, own_arguments
from hfkd.training.validation.checked_batches import NOTHING_TO_SCORE, CheckedCollator
from hfkd.training.validation.label_maps import check_other_set
from hfkd.training.validation.normalisation import receiving
from hfkd.training.validation.random_rows import warn_of_random_rows, warn_of_rows_again
from hfkd.training.validation.recorded_inputs import record_inputs
from hfkd.training.validation.teacher_probe import checked_probe, probed
from hfkd.training.validation.together import refuse_keywords
from hfkd.training.weight_decay import without_norms
from hfkd.training.wrapping import OwnPreparation, say_unsaved
from hfkd.utils.cpu_memory import keep_freed_memory
from hfkd.utils.json_file import write_json
from hfkd.utils.kept_weights import kept_weights
from hfkd.utils.learning_rate_flags import follows_metric
from hfkd.utils.output_folder import refuse_networks
from hfkd.utils.prepared import without_autocast
from hfkd.utils.setting_types import resume_choice
from hfkd.utils.temporary_settings import setting

logger = logging.getLogger(__name__)

Network = nn.Module | str | os.PathLike[str]  # itself, or its name


class DistillationTrainer(Trainer):
    """Trainer that distils `teacher` into `model`, with a temperature and a weight for each sample.

        DistillationTrainer(model, teacher, args, train_dataset=..., eval_dataset=..., weighting="entropy")

    `objective`, `temperature`, `weighting`, `ce_weight`, `kd_weight` have the same meaning as in
    `DistillationArguments` and take precedence over them. `teacher` is any network that returns logits (wrap it in a
    `FrozenTeacher` to say how its inputs are normalised), or a list of networks, which the objectives `average` and
    `inverse_entropy` combine (others get their mean logits), or a dict of networks, of which each row names its own in
    the column `teacher`; with None and `kd_weight=0` the student trains on the labels alone. The task is inferred from
    the model's class (or set by `task` in the arguments). Rows of the datasets have `pixel_values` and `labels`, or for
    language models `input_ids` and `labels`; a row may pack several documents if its `position_ids` restart at each.
    Raw texts need a `processing_class`. `peft_config` trains adapters; `teacher_processing_class` is the tokenizer of a
    language-model teacher. All other arguments are Trainer's. `eval_loss` is the student's cross-entropy, which does
    not need the teacher; `evaluate_kl` adds `eval_kl`. If the temperature needs the teacher's energies over the
    training set, the teacher scans it when training starts.
    """

    # The loss is divided by the number of items of the whole accumulated batch here, not by Trainer. (For earlier
    # versions of transformers see `__init__`.)
    loss_is_scaled_for_ga = True
    args: DistillationArguments
    accelerator = cast(Any, OwnAccelerator())
    # Further entries of the model card, such as `dataset_name`.
    details: Mapping[str, Any] = MappingProxyType({})
    # While it trains: the training loader whose first batch was checked, if any, and the size of batches then.
    first: KeptFirst | None = None
    first_size: int | None = None
    batches_in_step = 0  # of the current optimizer step
    warned_of_count = False

    @in_trainers_order
    def __init__(
        self,
        model: Network | None = None,
        teacher: Network | Sequence[Network] | Mapping[Any, Network] | None = None,
        args: TrainingArguments | None = None,
        *,
        peft_config: Any = None,
        teacher_processing_class: Any = None,
        objective: ObjectiveLike | None = None,
        temperature: TemperatureLike | None = None,
        weighting: WeightingLike | None = None,
        ce_weight: float | None = None,
        kd_weight: float | None = None,
        model_init: Callable[..., nn.Module] | None = None,
        **trainer_keywords: Any,
    ) -> None:
        refuse_own_names(self, DistillationTrainer)
        slots = {"objective": objective, "temperature": temperature, "weighting": weighting}
        slots |= {"ce_weight": ce_weight, "kd_weight": kd_weight}
        own_args = own_arguments(args, slots)
        refuse_keywords(trainer_keywords)
        refuse_old_methods(self)
        loss = chosen_loss(own_args, **slots)
        model = student_of(model, model_init, own_args, trainer_keywords)
        trainer_keywords["processing_class"] = trainer_keywords.get("processing_class") or tokenizer_of_name(model)
        student, teacher = networks_by_name(model, teacher, own_args.task)
        teacher = by_row(teacher)
        own = {"peft_config": peft_config, "teacher_processing_class": teacher_processing_class}
        self.anew = Anew(teacher, slots, own | trainer_keywords) if model_init is not None else None
        self.given_slots = slots
        setup = Setup(student, teacher, own_args, loss, **own, **trainer_keywords)
        with setup.unhooked_after_error():
            self._take(setup)
            check_counted(setup.keywords.get("compute_metrics"), setup.classes)
            several = not self.task.one_item_a_row
            self.own_metrics = own_metrics(self.task.scored_by, several, own_args, setup.keywords)
            setup.keywords.update(in_any_way(setup.keywords | self.own_metrics, several, own_args))
            leave_state()
            # The distillation loss smooths the labels itself.
            with loss_parameters.used_by_ddp(loss, own_args), setting(own_args, label_smoothing_factor=0.0):
                super().__init__(model=setup.model, args=own_args, data_collator=setup.collator, **setup.keywords)
            self.config.leave()
            count_rows_once(self)
            # What versions without `loss_is_scaled_for_ga` ask in its place.
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga is not False
            self.model_init = cast(Any, model_init)
            # Made absolute, so that the run keeps its folder if the program changes the working directory.
            self.run_folder = self.args.output_dir = os.path.abspath(self.args.output_dir or ".")
            self._compose()
            self._place(setup)

    def _take(self, setup: Setup) -> None:
        """Copy what `setup` determined."""
        self.call, self.task, self.num_classes = setup.call, setup.task, setup.num_classes
        self.image_inputs, self.received, self.class_names = setup.image_inputs, setup.received, setup.class_names
        self.labels, self.empty_rows, self.packing = setup.labels, setup.empty_rows, setup.packing
        self.record, self.bounds, self.pins_memory = setup.record, setup.bounds, setup.pins_memory
        self.channels_last = setup.channels_last
        self.config = KeptConfig(setup.model)  # before Trainer changes it

    def _compose(self) -> None:
        """Create the parts that the overridden methods of Trainer delegate to, and the callbacks."""
        host = self._host
        self.files, self.whole = TensorCheckpoints(host), WholeCheckpoints(host)
        self.judged, self.schedule, self.marks = JudgedSteps(host), Schedule(host), EvaluationMarks(host)
        self.evaluation_loaders, self.epoch_length = EvaluationLoaders(host), EpochLength(host)
        self.evaluated = EvaluatedMeans(host)
        # Those passed by the caller; Trainer creates its own later.
        self.callers_optimizer, self.callers_scheduler = self.optimizer, self.lr_scheduler
        self.scan_result: TeacherScan | None = None
        self.unhook: Callable[[], Any] = lambda: None
        own = (
            BatchSizeInUse(host),
            *([] if (asked := self.pop_callback(JITCheckpointCallback)) is None else [Preemption(asked)]),
            SaveAfterEvaluation(),
            OwnBest(self.whole),
            CallbackStates(self.whole),
            self.judged.watch,
            self.judged.parts,
            EpochViews(),
        )
        self.made_optimizer, self.preparation = MadeOptimizer(host), OwnPreparation(host)
        checks = RefuseChanged(host), loss_parameters.CheckTrained(host), self.made_optimizer, self.preparation
        for callback in (*own, *checks, TeacherAccuracy(host)):
            self.add_callback(callback)

    @property
    def _host(self) -> Any:
        """This trainer, for its parts: they do not keep it in memory, with its optimizer and stored logits, once it is
        deleted, or replaced by that of a cell that is run again.
        """
        return weakref.proxy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy whose parts have the copy in place of this trainer: `_host` is copied by this method too."""
        if id(self) not in memo:
            made = memo[id(self)] = object.__new__(type(self))
            vars(made).update(copy.deepcopy(vars(self), memo))
        return memo[id(self)]

    def _place(self, setup: Setup) -> None:
        """Move loss and teacher to the device on which Trainer's constructor has placed the student."""
        step, loss, teacher = setup.step, setup.loss, setup.teacher
        if isinstance(step, ChunkedForward):
            step.autocast = self.accelerator.autocast
        step.watch = self.judged.watch
        self.step: AnyForward = step
        self.setup = setup
        self.distillation_loss = loss.to(self.args.device)
        self._place_inner()
        plain = not (setup.waits or setup.inner.wanted or loss_parameters.learns(loss))
        if self.args.torch_compile and self.task.one_item_a_row and plain:
            # Fuses about seventy small operations into a few. No CUDA graphs: logged values outlive the step.
            loss.compile(backend=self.args.torch_compile_backend or "inductor")
        self.teacher: Any = None if teacher is None else teacher.placed(self.accelerator, self.args.shard_teacher)
        self.written = WrittenSteps(self._host) if self.args.writes else None
        self.cached_teacher: Any = cached_teacher(self.teacher, self.train_dataset, loss, self.args, self.accelerator)
        if self.optimizer is not None:
            as_laid_out(self.optimizer)  # moments of weights that were converted to channels_last
        self.built = BuiltFrom(self._host)

    def _place_inner(self) -> None:
        """Connect the hooks on inner layers, whose outputs the loss reads."""
        inner, loss = self.setup.inner, self.setup.loss
        self.unhook()  # remove the hooks of an earlier student
        self.unhook = weakref.finalize(self, inner.remove)
        if inner.wanted:
            loss.autocast = self.accelerator.autocast

    @property
    def training_collator(self) -> Any:
        """The data_collator, wrapped if the training rows have no labels."""
        if self.distillation_loss.labelled:
            return self.data_collator
        assert self.model is not None
        return unlabelled(self.data_collator, self.task, self.model)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the result, for results.json and the report."""
        return run_settings(self)

    def _slots_in_use(self) -> AbstractContextManager[None]:
        """Context in which the arguments describe this trainer's own slots and weights, for trackers and files."""
        return self.args.used_with(slots_in_use(self.given_slots, self.distillation_loss, self.args))

    # ---- the loss ----------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        refuse_popped_labels(self, inputs)
        inputs = self.as_networks_take_it(inputs, model.training)
        if not model.training:
            loss, output = self.evaluated.add(self.evaluated_network(model), inputs)
            return (loss, self._outputs(output)) if return_outputs else loss
        if num_items_in_batch is None and self.is_in_train and self.batches_in_step > 1:
            refuse_dropped_count(self, DistillationTrainer.compute_loss)
        teacher = self.cached_teacher or self.teacher
        smoother = self.label_smoother  # set by a subclass: label_smoothing_factor is applied by the distillation loss
        watched = returned_outputs(self.step, model, return_outputs or smoother is not None)
        own_text = self.written is not None and self.written.by_student
        smoother = None if own_text else smoother  # responses generated by the student have no labels
        self.distillation_loss.label_term = smoother is None and not own_text
        with self._frozen_teacher(), watched as (step, outputs):
            place = self.args.seed, self.state.global_step
            batch = MicroBatch(inputs, num_items_in_batch, self.schedule.progress, *place)
            loss, parts, counts = step(model, teacher, batch)
        labelled = counts.labels if self.task.complete else self.task.count_labels(inputs)
        if smoother is not None:
            mean = smoothed(smoother, by_name(outputs[0]), inputs["labels"], self.task)
            loss = loss + self.distillation_loss.of_labels(mean, labelled, num_items_in_batch)
        if (nothing := loss_parameters.touched(self.distillation_loss, model)) is not None:
            loss = loss + nothing
        measured = {k: v for k, v in parts.items() if not (own_text and k == "ce")}
        self.judged.add(measured, replace(counts, labels=labelled), self.distillation_loss)
        self.empty_rows.look(inputs["labels"], inputs.get("host_targets"), counts.labels)
        self.judged.watch.batch(inputs, loss, parts)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Gradients are averaged over the ranks, and the loss is already divided by the items of all of them.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, by_name(outputs[0])) if return_outputs else loss

    def _frozen_teacher(self) -> AbstractContextManager[None]:
        """Context in which the teacher's networks are frozen; their previous state is restored at the end."""
        return nullcontext() if self.teacher is None else self.teacher.frozen()

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """As in Trainer, but rows without labels are passed to the network in the same way as rows with labels."""
        if self.task.predicts:
            batch = self.as_networks_take_it(self._prepare_inputs(inputs), False)
            batch, output = self.evaluated.add_kl(self.evaluated_network(model), batch)
            return None, *((None, None) if prediction_loss_only else self.task.predictions(batch, output))
        loss, logits, labels = self._predicted(model, inputs, prediction_loss_only, ignore_keys)
        logits, preprocess = gathered(logits), cast(Any, self.preprocess_logits_for_metrics)
        return loss, logits, preprocess.padded_labels(labels) if isinstance(preprocess, OfOwnSize) else labels

    def _predicted(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None
    ) -> tuple[Tensor | None, Any, Any]:
        if self.label_names and all(inputs.get(name) is not None for name in self.label_names):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        network = self.evaluated_network(model)

        def by_call(**inputs: Any) -> Any:
            return self._outputs(self.call.output(network, self.as_networks_take_it(inputs, False)))

        return super().prediction_step(cast(nn.Module, by_call), inputs, prediction_loss_only, ignore_keys)

    def _outputs(self, output: Any) -> Any:
        """A network's outputs by name, in its order; the logits are the first for hfkd's metrics, which read these."""
        ours = reads_logits(self.compute_metrics, self.preprocess_logits_for_metrics)
        return logits_first(by_name(output)) if ours else by_name(output)

    def evaluated_network(self, model: nn.Module) -> Any:
        """Student or teacher without the autocast that Accelerate wraps around its forward, if `float32_evaluation`.

        Weights that Trainer has rounded for the evaluation keep it, as they take no float32 images.
        """
        if self.is_fsdp_enabled:  # calling the inner forward would bypass the gathering of the sharded weights
            return model
        if not self.args.float32_evaluation or self._rounds_weights:
            return model
        return without_autocast(self.accelerator.unwrap_model(model, keep_torch_compile=False)) or model

    @property
    def _rounds_weights(self) -> bool:
        """Whether Trainer casts the student for an evaluation now, as it does outside of training."""
        return (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train

    def as_networks_take_it(self, inputs: Mapping[str, Any], training: bool) -> dict[str, Any]:
        inputs = self.call.without_labels(inputs, self.label_names)
        inputs = views_as_rows(inputs) if self.task.views else inputs
        if self.packing is not None:
            self.packing(with_targets(inputs))
        if isinstance(labels := inputs.get("labels"), Tensor):
            inputs["labels"] = self.labels(labels, int(self.state.epoch or 0) if training else None)
        images = inputs.get("pixel_values")
        if self.channels_last and images is not None and images.ndim == 4:
            return {**inputs, "pixel_values": images.contiguous(memory_format=torch.channels_last)}
        return inputs

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As in Trainer, but whole groups alone; of generated responses, these are counted."""
        batches = self.epoch_length.whole_group(list(islice(epoch_iterator, num_batches)), num_batches)
        if self.written is not None:
            batches = self.written(batches, self.state.global_step)
        self.batches_in_step = len(batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """As in Trainer, but counts the task's items."""
        return step_counts(self, batch_samples, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = with_lengths(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return by_epoch(super()._get_train_sampler(rows), self.args.seed_of_data)

    def _get_dataloader(self, dataset: Any, description: str, *arguments: Any, **keywords: Any) -> DataLoader:
        """As in Trainer, with batches checked on the host; rows for prediction may have the label -100 (none)."""
        self.data_collator = self.setup.take_collator(self.data_collator)
        collate, pinned = self.data_collator, self.pins_memory and self.args.dataloader_pin_memory
        used = self.training_collator if description == "Training" else collate
        used = as_collator_takes_it(self.task.for_prediction(used) if description == "test" else used, dataset)
        no_label = {"test": None, "Training": self.setup.no_label}.get(description, NOTHING_TO_SCORE)
        if description == "Training":  # the dataset may have been replaced since the trainer was built
            self.setup.look_for_labels(dataset)
        else:
            check_other_set(dataset, self.setup.data, self.class_names, collate, description == "test")
        self.data_collator = CheckedCollator(used, self.bounds, dataset, no_label)
        try:
            # The collator drops unused columns, see `chosen_collator`: Trainer would drop them before a transform runs.
            own = read_by_each_rank(dataset, self.task.one_item_a_row, self.accelerator)
            seeded_order = setting(self.accelerator.dataloader_config, data_seed=self.args.seed_of_data)
            settings: dict[str, Any] = {"dataloader_pin_memory": pinned, "remove_unused_columns": False}
            if description != "Training":  # every row is scored, in order, as ranks drop repeated rows by place,
                settings |= {"dataloader_drop_last": False, "dataloader_in_order": True}
            if description == "test":  # and who predicts gets them in their order
                settings |= {"train_sampling_strategy": "sequential"}
            scored = description != "Training"
            with own, seeded_order:
                rows = even_stream(dataset, self.accelerator, scored, due_at_epochs(self.args))
                counted = scored and isinstance(rows, WholeStream)
                with setting(self.args, **settings, **(WITHOUT_WORKERS if counted else {})):
                    loader = super()._get_dataloader(rows, description, *arguments, **keywords)
            return rows.count_for(loader) if counted else loader
        finally:
            self.data_collator = collate

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self.evaluation_loaders.made_for(eval_dataset):
            return super().get_eval_dataloader(eval_dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        refuse_replaced(self)
        with self.marks.evaluating(eval_dataset):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.judged.add_to(logs)
        if self.written is not None and "loss" in logs:
            logs |= self.written.logged()
        with self._slots_in_use():  # a tracker may begin here
            super().log(logs, start_time)
        self.marks.mark(self.state.log_history[-1])

    @contextmanager
    def _evaluation(self, dataset: Any, predicts: bool) -> Iterator[dict[str, float]]:
        """Context of Trainer's loop over `dataset`; the dict that it yields has a `Running`'s scores at its end."""
        compared, metric = self.teacher if self.args.evaluate_kl else None, self.compute_metrics
        with ExitStack() as stack:
            stack.enter_context(self._frozen_teacher())
            stack.enter_context(self.config.in_use())
            stack.enter_context(receiving(compared, self.image_inputs, dataset))
            stack.enter_context(main_input_named(self.model, self.call))
            if self._wants_whole_logits(predicts):
                stack.enter_context(setting(self, preprocess_logits_for_metrics=None))
            if self.task.by_map and self.accelerator.num_processes > 1:
                own = OfOwnSize(self.preprocess_logits_for_metrics, self.accelerator)
                stack.enter_context(setting(self, preprocess_logits_for_metrics=own))
            if self._rounds_weights and not self.is_fsdp_enabled:
                stack.enter_context(kept_weights(cast(nn.Module, self.model)))
            if not isinstance(metric, Running):
                yield {}
                return
            if metric.in_batches:
                stack.enter_context(setting(self.args, batch_eval_metrics=True))
            yield stack.enter_context(metric.one_evaluation())

    def _wants_whole_logits(self, predicts: bool) -> bool:
        """Whether predictions are not to be cut to the best classes: in predict(), or for a metric set since."""
        ours = self.own_metrics.get("preprocess_logits_for_metrics")
        if ours is None or self.preprocess_logits_for_metrics is not ours:
            return False
        return predicts or self.compute_metrics is not self.own_metrics["compute_metrics"]

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, with a loss that counts every row exactly once on any number of ranks."""
        self.preparation.for_evaluation()
        with self.evaluated.one_evaluation(), read_whole(dataloader, self.accelerator):
            with self._evaluation(getattr(dataloader, "dataset", None), description == "Prediction") as scores:
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            self.preparation.done()
            if output.metrics is not None:
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
                self.evaluated.put_into(output.metrics, metric_key_prefix)
        return output

    # ---- the teacher scan --------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        refuse_replaced(self)
        if self.model_init is not None:
            refuse_other_teacher(self)  # here, as another trainer would be built around the first one
            self._start_anew(trial)
        refuse_changed(self)
        if self.model_init is None:  # which has an optimizer made for each student
            self.made_optimizer.renew(resumed=resume_choice(resume_from_checkpoint) not in (None, False))
        self.built.renew()
        refuse_networks(self.args.output_dir, {"student": self.model, "teacher": self.teacher}, self.processing_class)
        with locked(self.args.output_dir or ".") if self.args.should_save else nullcontext():
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _start_anew(self, trial: Any) -> None:
        """Create a student with `model_init`, and rebuild all that depends on it with this trial's arguments."""
        if self.anew is None:
            raise ValueError(
                "model_init was set after the trainer was built: pass it to the trainer's constructor, without a model"
            )
        before = {name: getattr(self.args, name) for name in self.anew.slots}
        self._hp_search_setup(trial)
        self.anew.refuse_hidden(before, self.args)
        student = seeded(self.args, partial(super().call_model_init, trial))
        self.anew.keep(student)
        now = {"train_dataset": original_images(self.train_dataset), "eval_dataset": self.eval_dataset}
        if self.data_collator is not self.setup.collator:  # set since
            self.anew.keywords["data_collator"] = self.data_collator
        keywords = self.anew.keywords | now | {"processing_class": self.processing_class}
        loss = chosen_loss(self.args, **self.anew.fresh_slots())
        setup = Setup(student, self.anew.teacher, self.args, loss, searching=trial is not None, **keywords)
        of_training = self.config.of_training  # by Trainer's constructor
        self._take(setup)
        self.config.of_training = of_training
        self.data_collator, self.train_dataset = setup.collator, now["train_dataset"]
        self.model = self.model_wrapped = setup.model
        self.anew.keep(setup.model)
        self.optimizer = self.lr_scheduler = None  # of the training before; Trainer makes others
        self._place(setup)

    def hyperparameter_search(self, *given: Any, **keywords: Any) -> Any:
        """Trainer's; without `compute_objective` see `hfkd.training.search.default_objective`."""
        asked = inspect.signature(Trainer.hyperparameter_search).bind(self, *given, **keywords)
        asked.apply_defaults()
        if asked.arguments["compute_objective"] is None:
            asked.arguments["compute_objective"] = default_objective(
                self.eval_dataset, bool(self.own_metrics), not self.task.predicts, asked.arguments["direction"]
            )
        return super().hyperparameter_search(*asked.args[1:], **asked.kwargs)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The student created for this training; the random state is what calling `model_init` here would leave."""
        made = None if self.anew is None else self.anew.kept()
        return super().call_model_init(trial) if made is None else made

    def _train(self, resume_from_checkpoint: Any, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        checkpoint = self.whole.to_resume(resume_from_checkpoint)
        self.record.refuse_checkpoint(checkpoint)
        say_unsaved(self)
        first, size = self._first_batch(resumed=checkpoint is not None), self._train_batch_size
        if trial is None:  # trials have their own
            self._identify_training(checkpoint)
        refuse_other_start(self)
        self.whole.start_from(checkpoint)
        self.marks.own_set = self.eval_dataset
        if checkpoint is None:
            self.files.say_unresumed()
            if trial is None:
                self.whole.say_earlier()
        else:
            warn_of_random_rows(self.train_dataset)
            warn_of_rows_again(self.args)
        self.step, self.train_dataset = with_he_da(self.args, self.step, self.train_dataset, self.scan_training_set)
        self.built.rows = self.train_dataset
        self.fit_slots(checkpoint)
        record_inputs(self)
        if self.written is not None:
            self.written.statistics.forget()  # of an interrupted attempt
        # A resumed run may still be refused: the record in its folder is rewritten with the next checkpoint.
        resumed = checkpoint and run_identity.read(self.args.output_dir)
        if self.args.should_save and trial is None and not resumed:  # each trial has a folder of its own
            self.record.write(self.args.output_dir, self.distillation_loss)
        if self.args.keep_freed_memory and self.args.device.type == "cpu":
            keep_freed_memory()
        assert self.model is not None
        try:
            own_scheduler = None if self._created_lr_scheduler else self.lr_scheduler
            loss_parameters.join(self.distillation_loss, self.optimizer, own_scheduler)
            # DeepSpeed resumes from the state dict.
            hidden = not self.is_deepspeed_enabled
            attached = loss_parameters.attached(self.distillation_loss, self.model, hidden)
            norms = layer_norms_in_float32(self.model, self.args)
            known = setting(self, first=first, first_size=size)
            with self._frozen_teacher(), self.config.in_use(), norms, attached, known, self._slots_in_use():
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.is_in_train = False  # after an error or an interrupt Trainer leaves it True
            if (noise := getattr(self, NOISE, None)) is not None:
                noise.remove()  # after an error Trainer leaves it there, and the next training adds another
            if self.cached_teacher is not None:
                self.cached_teacher.flush()

    def _identify_training(self, checkpoint: str | None) -> None:
        """Record the settings as they are now; refuse the folder, or the checkpoint, of another run.

        train() again, without a checkpoint, goes on in the folder of the training before with any settings.
        """
        folder = os.path.abspath(self.args.output_dir or ".")
        if folder != self.run_folder:  # set since
            self.record.refuse_other(folder)
        again = folder == self.run_folder and self.record.training is not None
        record = self.record.training_as(self.settings | compared_settings(self), self.args)
        if checkpoint or not again:
            record.check_training(folder, checkpoint)
        self.record = record  # once it is not refused, or the next call would take this one for a training
        self.run_folder = self.args.output_dir = folder

    def _inner_training_loop(self, batch_size: int | None = None, *arguments: Any, **keywords: Any) -> TrainOutput:
        """As in Trainer; called with each smaller size by `auto_find_batch_size`, or with that of a checkpoint."""
        first = self.first
        if batch_size is not None and batch_size != self.first_size:
            self.setup.check_batch_size(batch_size)
            self._train_batch_size = batch_size
            first = None if first is None else first.anew(self._training_loader())
        self.preparation.for_training()
        with attempt(self), nullcontext() if first is None else first.given_to(self):
            return super()._inner_training_loop(batch_size, *arguments, **keywords)

    def _training_loader(self) -> Any:
        return in_passes(self.get_train_dataloader(), self.args.gradient_accumulation_steps)

    def _first_batch(self, resumed: bool) -> KeptFirst | None:
        """For a stream or a user's own loader: the training loader, after its first batch was checked; else None."""
        own = own_loader(self)
        if not own and (self.train_dataset is None or not self.setup.rows_come_later):
            return None
        first, waited = KeptFirst(self._training_loader(), resumed), self.setup.waits
        self.setup.look_at(first)
        if waited:
            self._place_inner()
        self.labels, loss = self.setup.labels, self.distillation_loss.to(self.args.device)
        if loss_parameters.learns(loss) and self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = False  # see `used_by_ddp`
        return first

    def fit_slots(self, checkpoint: str | None = None) -> None:
        """Set the temperature's thresholds: those of `checkpoint`, or those of a scan of the training set.

        Raises ValueError if the teacher or the rows are not those of `checkpoint`.
        """
        slot, found = self.distillation_loss.unfitted, None
        probe = checked_probe(self, checkpoint)  # before thresholds are taken from the checkpoint, and kept
        earlier = (
            None if slot is None else run_identity.earlier_thresholds(checkpoint, slot, not self.task.one_item_a_row)
        )
        if slot is not None and earlier is not None:
            slot.restore(earlier)
        elif slot is not None:
            found = self.scan_training_set(energy_temperature=slot.energy_temperature, level=slot.level)
            slot.fit(found.energy[~found.energy.isnan()])  # rows without a target have no energy
        if slot is not None:
            logger.info("Energy thresholds: %s", slot.thresholds_or_none)
        self.record = probed(self, probe, found)

    def scan_training_set(self, **keywords: Any) -> TeacherScan:
        """Call `hfkd.teachers.scan` with this trainer's teacher, data, ranks and cache; kept as `scan_result`."""
        self.scan_result = scan_of(self, **keywords)
        return self.scan_result

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate for tokens; 0 for images, where it means nothing and visits all parameters each step."""
        return 0 if self.call.takes_images else super().floating_point_ops(inputs)

    # ---- steps, rates ------------------------------------------------------------------------------------------

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(*arguments, **keywords)
        if made:
            loss_parameters.regroup(self.distillation_loss, optimizer)
        if made and self.is_in_train:
            self.made_optimizer.remember()
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_bias_and_norm:
            return [name for name, _ in model.named_parameters()]
        return without_norms(super().get_decay_parameter_names(model), model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        made = self.schedule.make(num_training_steps, optimizer) if self.lr_scheduler is None else None
        if follows_metric(self.args) and self.callers_optimizer is None:
            at_first_rate(optimizer)  # other schedules begin with it
        if made is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler, self._created_lr_scheduler = made, True  # type: ignore[assignment]
        return made

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        values = super().set_initial_training_values(args, dataloader)
        steps_per_epoch, max_steps = values[1], values[6]
        refuse_other_lengths(self.args, steps_per_epoch, max_steps)
        self.whole.refuse_other_lengths(max_steps, steps_per_epoch)
        if self.distillation_loss.kd_weight:
            run_identity.check_undistilled(self.whole.start, max_steps)
        self.schedule.start(steps_per_epoch, max_steps, dataloader)
        return values

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """As in Trainer, but a run resumed after its last step takes no further step; Trainer would take one more."""
        if isinstance(keywords["train_dataloader"], KeptFirst):
            keywords |= keywords["train_dataloader"].of_epoch(keywords)
        self.files.begun()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        tell_epoch(keywords["train_dataloader"], keywords["epoch"])
        self.epoch_length.begin(keywords)
        super()._run_epoch(*arguments, **keywords)
        self.epoch_length.end()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        refuse_replaced_loss(self, DistillationTrainer)
        whole = self.judged.gradient_norm(model) if grad_norm is None else grad_norm
        norm = super()._get_grad_norm(model, whole)
        self.judged.judge(model, norm, self._tr_loss)
        return norm

    def _finalize_training(self, trial: Any, *arguments: Any, **keywords: Any) -> Any:
        """As in Trainer, but `train_loss` is the mean over the steps taken, without those skipped by `on_nan`.

        Trainer takes what has not been logged from each rank alone.
        """
        show_result(self.optimizer)
        self._tr_loss = self.accelerator.reduce(self._tr_loss, reduction="mean")
        ratio = self.judged.watch.taken.ratio()
        if not hasattr(self, FIRST_STEP):  # earlier versions divide by the steps before a resume too
            ratio *= self.judged.watch.steps_over_own(self.state.global_step)
        self._total_loss_scalar *= ratio
        self._tr_loss *= ratio
        with setting(self.args, save_total_limit=None):  # Trainer would delete every folder of a checkpoint's name
            output = super()._finalize_training(trial, *arguments, **keywords)
        self.whole.warn_without_best()
        self.whole.delete_all_but_best(self._get_output_dir(trial))
        return output

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return self.whole.folder(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.judged.watch.settle()
        self.built.say_other_teacher()
        show_result(self.optimizer)
        final = self.whole.save(partial(super()._save_checkpoint, model, trial), self._get_output_dir(trial))
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in Trainer, but the best evaluation is saved between two checkpoints too if it is to be loaded."""
        found = super()._determine_best_metric(metrics, trial)
        if found and self.args.load_best_model_at_end:
            self.control.should_save = True
        return found

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.whole.writing:  # a background upload needs a folder that is not renamed
            self.whole.forget_checksums()
            with setting(self, args=self.args.described()):
                super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        show_result(self.optimizer)  # in a callback, or after an interrupted training
        if not _internal_call:
            say_unsaved(self)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        trainers = super()._save

        def whole(folder: str | None, state: Any) -> None:
            self.whole.save_model(lambda place: trainers(place, state), folder)

        with self._slots_in_use():
            shown = {"processing_class": self.saved_processor, "args": self.args.described()}
        with self.config.as_given(), setting(self, **shown):
            self.files.save(whole, output_dir, state_dict)

    @property
    def saved_processor(self) -> Any:
        """What is saved with the student to prepare its inputs: as in Trainer, else the tokenizer of the collator."""
        given = self.processing_class
        return tokenizer_in(self.data_collator) if given is None else given

    def save_state(self) -> None:
        """As in Trainer, but as standard JSON (without bare NaN)."""
        if self.is_world_process_zero():
            write_json(os.path.join(self.args.output_dir or ".", TRAINER_STATE_NAME), self.state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.files.load(partial(super()._load_from_checkpoint, resume_from_checkpoint, model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.files.load_best(super()._load_best_model)
        self.is_in_train = False  # the weights are no longer those of the last step, which on_train_end may evaluate

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.files.load_optimizer(
            partial(super()._load_optimizer_and_scheduler, checkpoint), checkpoint, super().get_decay_parameter_names
        )

    def _load_scaler(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            self.whole.load_scaler(super()._load_scaler, checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_rng_state(checkpoint)
        self.whole.warn_of_random_numbers(checkpoint)
        self.whole.refuse_changed(checkpoint)  # called after the last file is read

    # ---- the Hub -----------------------------------------------------------------------------------------------

    @property
    def own_set(self) -> Any:
        return self.marks.own_set

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """Write the model card into `output_dir`; same arguments as in Trainer, see `hfkd.reports.card.write_card`."""
        given = inspect.signature(Trainer.create_model_card).bind(self, *arguments, **keywords).arguments
        del given["self"]
        if self.is_world_process_zero():
            write_card(self, **given)

    def init_hf_repo(self, *arguments: Any, **keywords: Any) -> None:
        with explained("creating the repository", "Log in with `hf auth login`, or train without push_to_hub."):
            super().init_hf_repo(*arguments, **keywords)

    def push_to_hub(self, *arguments: Any, **keywords: Any) -> Any:
        folder, given = self.args.output_dir, inspect.signature(Trainer.push_to_hub).bind(self, *arguments, **keywords)
        branch = given.arguments.get("revision") or self.args.hub_revision
        again = upload_again(folder, self.hub_model_id or self.args.hub_model_id, branch)
        with explained(f"uploading {folder}", again):
            return super().push_to_hub(*arguments, **keywords)
