"""Builds and checks the parts of a trainer in named steps, before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import refuse_streams
from hfkd.data.first_rows import first_rows, map_style, sets_by_name
from hfkd.data.resident import pins_memory
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call, bare, output_head
from hfkd.models.feature_capture import LOGITS, read_within
from hfkd.models.peers import networks_of
from hfkd.models.positions import said_limit
from hfkd.models.sharing import refuse_shared
from hfkd.models.vocabulary import common_vocabulary
from hfkd.tasks.causal_lm import CausalLM
from hfkd.tasks.choice import chosen_task
from hfkd.tasks.media import unread_media
from hfkd.tasks.packing import packing_check, refuse_packed_rows
from hfkd.tasks.teacher_prompt import TeacherPromptLM, with_teacher_prompts
from hfkd.tasks.tokens import PerToken
from hfkd.tasks.two_tokenizers import across_tokenizers, at_odds, teachers_tokens
from hfkd.tasks.unlabelled import has_labels, unlabelled
from hfkd.teachers import Teacher, TeacherByRow
from hfkd.teachers.statistics import refuse_unknown
from hfkd.teachers.tokenizer import check_teacher_tokenizers, known_tokenizer
from hfkd.training import loss_parameters
from hfkd.training.built_objectives import Builder, is_built
from hfkd.training.first_batch import KeptFirst, as_is, few_rows
from hfkd.training.forward.choice import Chosen, choose_forward
from hfkd.training.forward.features import InnerFeatures
from hfkd.training.forward.he_da import refuse_he_da
from hfkd.training.forward.target_tokens import TargetForward
from hfkd.training.given_collator import chosen_collator, tokenizer_of_rows
from hfkd.training.given_loss import suit_temperature
from hfkd.training.given_teacher import as_teacher, teacher_networks
from hfkd.training.lr_schedule import refuse_unknown_epochs
from hfkd.training.run_identity import RunRecord
from hfkd.training.validation.adapter_base import adapted_layers, refuse_left_adapters
from hfkd.training.validation.batches import (
    refuse_few_classes,
    refuse_no_batch,
    refuse_odd_rest,
    refuse_single_row,
    refuse_small_batches,
    refuse_uneven_batches,
)
from hfkd.training.validation.checked_batches import NOTHING_TO_SCORE, Bounds, CheckedCollator
from hfkd.training.validation.datasets import (
    check_datasets,
    probed_dataset,
    refuse_columns,
    say_left_out,
    texts_alone,
)
from hfkd.training.validation.features import refuse_features
from hfkd.training.validation.label_maps import check_label_names
from hfkd.training.validation.labels import (
    EmptyRows,
    LabelWatch,
    complete,
    may_be_unlabelled,
    refuse_none_labelled,
    refuse_smoothing,
    refuse_unlabelled,
    why_labelled,
)
from hfkd.training.validation.layout import lays_out
from hfkd.training.validation.narrow_maps import refusing_narrow_maps
from hfkd.training.validation.networks import as_networks_get, batch_of, check_batch, check_networks
from hfkd.training.validation.normalisation import ImageInputs, normalisation, refuse_other_normalisation
from hfkd.training.validation.on_policy import refuse_on_policy, refuse_prompts_to_write, warn_of_other_ends
from hfkd.training.validation.optimizer_settings import check_optimizer_settings
from hfkd.training.validation.padding import refuse_other_padding
from hfkd.training.validation.parallelism import refuse_parallelism
from hfkd.training.validation.random_evaluation import warn_of_random_evaluation, warn_of_random_images
from hfkd.training.validation.recorded_inputs import check_processor
from hfkd.training.validation.row_teachers import check_row_teachers
from hfkd.training.validation.slots import slot_check
from hfkd.training.validation.sounds import warn_of_other_sounds
from hfkd.training.validation.spread_teacher import refuse_spread_teacher
from hfkd.training.validation.student import check_student, refuse_prompts
from hfkd.training.validation.together import refuse_peers_of, refuse_teacher_cache, refuse_unsupported
from hfkd.training.validation.token_types import check_token_types
from hfkd.utils.compiled import eagerly
from hfkd.utils.memory_format import lay_out, of_images
from hfkd.utils.prepared import unprepared
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.temporary_settings import setting


class Setup:
    """Networks, data, loss and forward pass of one trainer. Each step raises ValueError for unsuitable input.

    keywords: Trainer's own. data_collator is replaced by the one that is used. searching: whether this is for a trial
    of a hyperparameter search, which has its own folder.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Any,
        args: DistillationArguments,
        loss: DistillationLoss,
        searching: bool = False,
        **keywords: Any,
    ) -> None:
        self.args, self.loss, self.keywords, self.searching = args, loss, keywords, searching
        self.data = {name: keywords.get(name) for name in ("train_dataset", "eval_dataset")}
        self.processing_class = keywords.get("processing_class")
        self.teacher_tokenizer = keywords.pop("teacher_processing_class", None)
        self.networks = tuple(teacher_networks(teacher))  # none for a stored teacher
        with eagerly((model, *self.networks)):
            self.take_networks(model, teacher, keywords.pop("peft_config", None))
            self.choose_task(stored=teacher is not None and not self.networks)
            self.take_data()
            self.take_teacher(teacher)
            self.compare_tokenizers()
            self.try_networks()
            self.take_cache()
            self.choose_forward()
            self.identify()
            self.lay_out()
            self.build_objectives()
            self.take_parameters()

    @property
    def rows(self) -> Any:
        return self.data["train_dataset"]

    def take_networks(self, model: nn.Module, teacher: Any, peft_config: Any) -> None:
        refuse_unsupported(self.loss, model, teacher, self.args, self.keywords)
        for network in (model, bare(model), *self.networks):
            unprepared(network)
        refuse_parallelism(self.args, model, self.networks)
        self.trains = self.rows is not None
        check_optimizer_settings(self.args, self.keywords, self.trains)
        refuse_features(self.loss, model, teacher, self.args)
        refuse_shared(model, self.networks, peft_config)
        self.model = model if peft_config is None else _with_adapters(model, peft_config, self.networks)
        check_student(self.saved_student, self.args, self.keywords.get("optimizers"), self.trains)

    def check_trained(self) -> None:
        """The checks of a student that trains after all, in a trainer that was built without rows."""
        if not self.trains:
            check_optimizer_settings(self.args, self.keywords, trains=True)
            check_student(self.saved_student, self.args, self.keywords.get("optimizers"), trains=True)
            self.trains = True  # once it is not refused

    def choose_task(self, stored: bool) -> None:
        """stored: whether there is a teacher without networks."""
        students, rows, call = networks_of(self.model), probed_dataset(self.data), Call.of(self.model)
        self.call = call.for_text() if call.takes_images and texts_alone(rows) else call
        self.task = chosen_task(self.args.task, students, self.networks, rows)
        refuse_peers_of(self.model, self.task)
        self.take_tokenizers()
        self.task.configure(self.args)
        suit_temperature(self.loss, self.task)
        self.task.check_networks(students, self.networks, stored)
        self.task.check_loss(self.loss)
        if isinstance(self.task, PerToken):
            refuse_prompts("student", self.model)
            for network in self.networks:
                refuse_prompts("teacher", network)
        refuse_smoothing(self.loss, self.task)

    @property
    def saved_student(self) -> Any:
        """The student as it is saved: without the wrapper of `torch.compile`."""
        return extract_model_from_parallel(self.model, keep_torch_compile=False)

    def take_tokenizers(self) -> None:
        """Switch to the task for two tokenizers, if these are known to differ and the objective supports it; or to that
        for two prompts, if the rows have some for the teacher."""
        tokenizers = self.processing_class, known_tokenizer(self.teacher_tokenizer, self.networks)
        task = across_tokenizers(self.task, self.loss, self.args, tokenizers, (self.model, self.networks))
        asked = self.loss.kd_weight or self.args.evaluate_kl or self.args.seq_kd
        late = teachers_tokens(task, tokenizers, self.rows) if asked else {}
        one = not at_odds(*tokenizers)
        self.task = with_teacher_prompts(task, self.loss, self.args, self.networks, self.data) if one else task
        self.refused_columns = late if self.task is task else {}

    def take_data(self) -> None:
        given = self.keywords.pop("data_collator", None)
        if type(self.task) in (CausalLM, TeacherPromptLM):
            self.refused_columns = self.refused_columns | unread_media(self.model)
        if given is None:
            self.tokenise()
        self.collator = self.chosen(given)
        if given is None and isinstance(self.collator, TokenCollator):
            self.collator.labels_from_tokens = bool(self.loss.ce_weight)
        check_datasets(self.data, self.collator, self.task)
        self.loss.labelled = self.rows is None or has_labels(self.rows, self.collator)
        refuse_unlabelled(self.loss, self.task, next(iter(first_rows(self.rows)), None))
        if may_be_unlabelled(self.loss, self.task, self.rows):
            self.loss.labelled = False  # labels that rows do have are kept: they mark the positions that are items
        self.no_label = why_labelled(self.loss, self.task, self.args)
        refuse_none_labelled(self.loss, self.rows, self.task)
        self.look_for_labels(self.rows)
        refuse_no_batch(self.args, self.rows)
        refuse_uneven_batches(self.args, self.data)
        if given is not None:
            refuse_odd_rest(self.args, self.data, self.collator)
        say_left_out(self.rows, self.collator, self.call, self._labels)
        refuse_unknown_epochs(self.loss, self.args, self.rows)
        if self.loss.unfitted is not None and self.rows is not None:
            refuse_streams(self.rows)

    def look_for_labels(self, rows: Any) -> None:
        """Record whether every training row has a label, or is refused without one."""
        self.task.complete = self.no_label is not None or complete(rows, self.task)

    def chosen(self, given: Any) -> Any:
        """The collator built from the user's `given` one, or from None; batches keep what a network takes."""
        networks = *networks_of(self.model), *self.networks
        collate = chosen_collator(given, self.processing_class, self.call, networks, self.task, self.args)
        if self.refused_columns and isinstance(collate, TokenCollator):
            collate = copy(collate)
            collate.refused = self.refused_columns
        return collate

    def take_collator(self, given: Any) -> Any:
        """The collator built from one that the user has set on the trainer after its construction."""
        if given is not self.collator:
            made = self.chosen(given)
            self.collator = made if self.teacher is None else self.teacher.collator(made)
        return self.collator

    def tokenise(self) -> None:
        """Tokenise rows of raw text, if the task supports it."""
        limits = [said_limit(network) for network in (self.model, *self.networks)]
        limit, words = min((one for one in limits if one is not None), default=None), self.processing_class
        for name, rows in self.data.items():
            for one in sets_by_name(rows).values():
                refuse_columns(self.refused_columns, one)
            if isinstance(rows, dict):
                self.data[name] = {part: self.task.tokenised(its, words, limit) for part, its in rows.items()}
            else:
                self.data[name] = self.task.tokenised(rows, words, limit)
            if name in self.keywords:
                self.keywords[name] = self.data[name]

    @property
    def _labels(self) -> Sequence[str]:
        return self.args.label_names or ()

    def take_teacher(self, teacher: Any) -> None:
        """Wrap the teacher, with the normalisation of its images."""
        images = self.call.takes_images and not (self.task.vocabulary or self.task.normalises)
        self.image_inputs = (
            ImageInputs.between(self.model, teacher, self.collator, self.processing_class) if images else None
        )
        self.received = normalisation(self.image_inputs, self.data)
        warn_of_random_evaluation(self.data)
        if images:
            warn_of_random_images(self.data["eval_dataset"], self.collator)
        if self.loss.kd_weight:
            warn_of_other_sounds(self.processing_class, self.networks)
        self.teacher: Teacher | None = None if teacher is None else as_teacher(teacher, self.received)
        refuse_teacher_cache(self.args, self.loss, self.task, self.networks)
        if isinstance(self.teacher, TeacherByRow):
            check_row_teachers(self.teacher, self.args, self.loss, self.task, self.data)
            self.collator = self.teacher.collator(self.collator)
        refuse_spread_teacher(self.args, self.loss, self.teacher)

    def compare_tokenizers(self) -> None:
        """Check that student and teacher read the same tokens, and find the vocabulary that they have in common."""
        self.num_classes: int | None = None
        for one in self.teacher.members if self.teacher and self.task.vocabulary else ():
            one.take_as_given()
        reads = "input_ids" in (self.call.keywords or ())  # true of text classifiers too
        one_tokenizer = bool(self.networks) and not self.task.own_tokens
        if one_tokenizer and reads:
            tokenizers = self.processing_class, self.teacher_tokenizer
            check_teacher_tokenizers(*tokenizers, self.networks, bool(self.loss.kd_weight))
        if reads and not self.task.by_target:  # a causal language model's batches say the positions
            refuse_other_padding((self.model, *self.networks), self.processing_class)
            self.look_for_token_types()
        if one_tokenizer and self.task.vocabulary:
            sizes = [common_vocabulary(self.model, one, self.processing_class) for one in self.networks]
            self.num_classes = min((one for one in sizes if one is not None), default=None)
            if isinstance(self.teacher, TeacherByRow):
                self.teacher.vocabulary = self.num_classes

    def look_for_token_types(self) -> None:
        rows = first_rows(self.rows)
        if rows and self.networks and self.loss.kd_weight:
            words = tokenizer_of_rows(self.processing_class, self.collator)
            check_token_types(self.networks, self.collator(rows), words)

    @property
    def live(self) -> Any:
        """The teacher, if it runs networks; None for a stored one."""
        return self.teacher if self.networks else None

    def try_networks(self) -> None:
        """Run both networks on the first rows, and compare the names of their classes."""
        args, task, data, collator = self.args, self.task, self.data, self.collator
        self.slots, rows = slot_check(self.loss, task, self.num_classes, args.loss_chunk_size), probed_dataset(data)
        self.looked_at = collator if self.loss.labelled else unlabelled(collator, task, self.model)
        scored, look = data["eval_dataset"] if data["train_dataset"] is not None else None, self.looked_at
        parts = (self.model, self.call, self.live, rows, look, task, self.slots, self._labels)
        with nullcontext() if self.rows is None else refusing_narrow_maps(self.model, args):
            found = check_networks(*parts, scored, NOTHING_TO_SCORE if self.rows is None else self.no_label)
        self.classes = self.num_classes or found
        if self.classes is not None:
            refuse_few_classes(self.loss, task, self.classes)
        self.labels, self.empty_rows = LabelWatch(task, found), EmptyRows(task)
        self.class_names = None if task.vocabulary else check_label_names(data, collator, self.model, self.live)
        check_processor(
            self.processing_class, self.saved_student, data, self.received, self.image_inputs, task, self.call
        )
        refuse_single_row(self.model, self.call, args, self.rows, look)
        checked = (self.model, *self.networks), args, self.loss, data, collator
        self.packing = packing_check(*checked) if task.by_target else None

    def take_rows(self, rows: Any, scored: Any) -> Any:
        """Training rows in place of those that the trainer was built with; what their classes are called.

        ValueError where something was made for the rows before.
        """
        if self.loss.requirements.rows:
            raise ValueError(
                "train_dataset has been set to other rows after the trainer was built, and "
                f"{self.loss.objective!r} is made from those that it was built with: build another trainer"
            )
        if self.waits and map_style(rows):
            raise ValueError(
                f"train_dataset has been set after the trainer was built, and {self.loss.objective!r} is built from "
                "its rows: build another trainer, with train_dataset="
            )
        self.check_trained()
        self.check_rows(rows)
        self.data = {"train_dataset": rows, "eval_dataset": scored}
        refuse_other_normalisation(self.received, normalisation(self.image_inputs, self.data))
        return None if self.task.vocabulary else check_label_names(self.data, self.collator, self.model, self.live)

    def check_rows(self, rows: Any) -> None:
        """The checks of the first training rows, for rows that have been set after the trainer was built."""
        look = self.collator if self.loss.labelled else unlabelled(self.collator, self.task, self.model)
        with kept_random_state():
            refuse_none_labelled(self.loss, rows, self.task)
            check_datasets({"train_dataset": rows}, look, self.task)
            if first := first_rows(rows):
                batch = batch_of(first, look, self.call, self.task, self._labels)
                self.task.check_rows(first, batch)
                replace(self.builder, rows=rows).index_of_rows(self.loss, batch)
            if self.task.by_target:
                refuse_packed_rows(self.loss, rows, self.collator)

    def take_cache(self) -> None:
        """Check that a stored teacher suits this run."""
        teacher = self.teacher
        if teacher is None or self.networks:
            return
        if self.loss.unfitted is not None and type(teacher).known is Teacher.known:
            refuse_unknown(teacher)
        self.num_classes = teacher.check_use(
            self.loss, self.args, self.model, self.processing_class, self.rows, self.task
        )
        self.classes = self.num_classes or self.classes
        self.collator = teacher.collator(self.collator)

    def choose_forward(self) -> None:
        refuse_small_batches(self.loss, self.args, self.task)
        self.step: Chosen = choose_forward(self.model, self.teacher, self.task, self.loss, self.args, self.num_classes)
        refuse_he_da(self.args, self.step, self.rows)
        refuse_on_policy(self.args, self.loss, self.task, self.call, self.model, self.teacher)
        words = tokenizer_of_rows(self.processing_class, self.collator)
        warn_of_other_ends(self.args, self.model, self.teacher, words)
        refuse_prompts_to_write(self.args, (self.model, *self.networks), self.rows, self.collator)

    def check_batch_size(self, size: int) -> None:
        """Raise ValueError if batches of a size that `auto_find_batch_size` has found do not do."""
        with setting(self.args, per_device_train_batch_size=size // max(self.args.n_gpu, 1)):
            refuse_small_batches(self.loss, self.args, self.task)
            refuse_single_row(self.model, self.call, self.args, self.rows, self.looked_at)

    def identify(self) -> None:
        """Create the run's record, and refuse the folder of another run."""
        self.record = RunRecord.of(
            self.model, self.teacher, self.loss, self.args.seed, self.args.more_settings, self.rows
        )
        if not self.searching:
            self.record.refuse_other(self.args.output_dir)

    def lay_out(self) -> None:
        """Choose memory formats and pinned memory."""
        self.channels_last = lays_out(self.model, self.args)
        if self.channels_last:
            lay_out(of_images([self.model]), torch.channels_last)
            if self.teacher is not None:
                self.teacher.channels_last()
        self.pins_memory = pins_memory(self.data, self.collator, self.args.device, self.args.dataloader_num_workers)
        self.bounds = Bounds.of(self.model, self.networks, self.task, self.classes)

    def build_objectives(self) -> None:
        """Build connectors and place the hooks for them, once the networks will not be changed any more."""
        parts = (self.model, self.call, self.live, self.task, self.args, self.rows, self.looked_at, tuple(self._labels))
        self.builder = Builder(*parts)
        batch = self.builder.first_batch()
        self.waits = batch is None and is_built(self.loss)
        self.inner = InnerFeatures()
        if batch is not None:
            self.build_from(batch)

    def build_from(self, batch: dict[str, Any]) -> None:
        self.inner = self.builder.build(self.loss, self.classes, batch)
        self.step.inner = self.inner
        if isinstance(self.step, TargetForward) and self.reads_heads():
            self.step.heads_on_targets = False

    def reads_heads(self) -> bool:
        """Whether a slot reads a network's logits, or a layer in its output head, for all positions."""
        needs, captures = self.loss.requirements, (self.inner.student, self.inner.teacher)
        return LOGITS in needs.features or any(
            one is not None and read_within(one.network, one.keys, output_head(one.network)) for one in captures
        )

    def take_parameters(self) -> None:
        """Create the trainable parameters of the loss, and add them to the caller's optimizer."""
        if self.classes is None and self.rows_come_later:
            return
        with self.unhooked_after_error():
            loss_parameters.prepare(self.loss, self.classes, self.args)
            loss_parameters.join(self.loss, *self.keywords.get("optimizers") or (None, None))

    @contextmanager
    def unhooked_after_error(self) -> Iterator[None]:
        """Context of what follows once objectives are built. After an error there is no trainer to remove their hooks,
        which would stay on the networks and, those on attentions, keep these in memory.
        """
        try:
            yield
        except BaseException:
            self.inner.remove()
            raise

    @property
    def rows_come_later(self) -> bool:
        """Whether training rows are first read when training starts: for a stream or a user's own loader."""
        return not map_style(self.rows)

    def look_at(self, first: KeptFirst) -> None:
        """Run the checks on the first batch that could not run on rows when the trainer was built."""
        self.check_trained()
        batch = first.batch
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"the training loader's first batch is a {type(batch).__name__}: yield dicts with the argument "
                "names of the networks' forward, such as {'pixel_values': images, 'labels': labels}"
            )
        if not isinstance(batch.get("labels"), Tensor):
            self.loss.labelled = False
            refuse_unlabelled(self.loss, self.task, batch)
            first.ready = unlabelled(dict, self.task, self.model)
        batch = first.made_ready(batch)
        few = as_networks_get(few_rows(batch), self.call, self.task, self._labels)
        parts = (self.model, self.call, self.live, few, self.task, self.slots)
        with eagerly((self.model, *self.networks)), refusing_narrow_maps(self.model, self.args):
            found = check_batch(*parts, no_label=self.no_label)
        refuse_few_classes(self.loss, self.task, self.num_classes or found)
        bounds = Bounds.of(self.model, self.networks, self.task, self.num_classes or found)
        first.check = CheckedCollator(as_is, bounds, self.rows, self.no_label)
        first.check(batch)
        self.look_for_labels(None)
        if not self.rows_come_later:
            return
        self.classes = self.num_classes or found
        self.labels, self.bounds = LabelWatch(self.task, found), bounds
        if self.waits:
            with eagerly((self.model, *self.networks)):
                self.build_from(few)
        else:
            self.builder.index_of_rows(self.loss, few)
        self.take_parameters()
        self.waits = False  # once nothing is refused, which would remove the hooks


def _with_adapters(model: nn.Module, peft_config: Any, teachers: Sequence[nn.Module]) -> nn.Module:
    """The student with PEFT adapters; only these will train, and what else the configuration says (`bias`)."""
    from peft import get_peft_model  # optional dependency

    before = adapted_layers(model)
    adapted = get_peft_model(model, peft_config)
    refuse_left_adapters(before, adapted)
    refuse_shared(adapted, teachers)
    return adapted
