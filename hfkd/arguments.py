"""DistillationArguments: every flag of TrainingArguments, plus the distillation settings."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, patch_environment
from huggingface_hub.constants import HF_HOME
from transformers import TrainingArguments

from hfkd.data.he_da_arguments import HighEnergyArguments
from hfkd.losses.base import in_words
from hfkd.losses.distillation import SLOTS, DistillationLoss
from hfkd.losses.temperatures import USUAL
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.tasks.choice import named_task
from hfkd.utils.argument_types import Count, NotNegative, Positive, fitting
from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.flags import flag
from hfkd.utils.launch import check_accumulation, check_world_size, computes_on_cpu
from hfkd.utils.learning_rate_flags import check_decay, check_schedule, check_warm_up, follow_metric
from hfkd.utils.metric_names import is_divergence
from hfkd.utils.names import check_names, publishable
from hfkd.utils.optimizers import optimizer_name, steps_in_backward
from hfkd.utils.parsing import parse as parse  # where scripts written for earlier versions import it from
from hfkd.utils.precision import chosen_precision, mixed_precision, warn_of_slow_bf16
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.setting_types import SUM, resume_choice

if TYPE_CHECKING:
    from hfkd.losses.slot_types import ObjectiveLike, TemperatureLike, WeightingLike
else:  # what a flag or a settings file may hold
    ObjectiveLike, TemperatureLike, WeightingLike = Annotated[str, SUM], str, str

logger = logging.getLogger(__name__)

# The arguments of the trainer that is at work, and its slots and weights in place of theirs.
IN_USE: ContextVar[tuple[Any, Mapping[str, Any]]] = ContextVar("IN_USE", default=(None, {}))


@dataclass
class EvaluationArguments:
    """Evaluation: what is measured in addition to the student's loss, and in which precision."""

    evaluate_teacher: bool = flag(
        True,
        "When training starts, evaluate the teacher on the evaluation set once and log "
        "teacher_accuracy; a low value reveals wrong inputs or weights. Language models: next-token accuracy "
        "on about 256 rows.",
    )
    evaluate_kl: bool = flag(False, "Run the teacher in evaluation too, and report eval_kl, KL(teacher || student).")
    float32_evaluation: bool = flag(
        True,
        "Evaluate without autocast, so that the reported figures are those of the saved weights (FSDP and "
        "DeepSpeed cast the weights themselves, and evaluate in their precision).",
    )


@dataclass
class DistillationArguments(HighEnergyArguments, OnPolicyArguments, EvaluationArguments, TrainingArguments):
    """TrainingArguments with the settings of distillation. Keyword arguments of `DistillationTrainer` take precedence.

    Defaults that differ from those of TrainingArguments: `bf16` is on where the device computes it natively,
    `remove_unused_columns` is off (the loss reads columns that the model does not name), `label_names` is ["labels"],
    and `logging_nan_inf_filter` is off, so that a NaN loss is logged (the filter also waits for the device at every
    step).
    """

    objective: ObjectiveLike = flag(
        "kd",
        "Distillation loss: kd, dkd(beta=8.0), ... (a name or a call), or a sum of terms: 'kd + 100 "
        "* fitnet(layer=2)'; in a settings file also a list of terms.",
    )
    temperature: TemperatureLike | None = flag(
        None,
        "Softmax temperature: a number, energy(ratio=0.2), gradation, ... Unset: 4, and 1 for language models.",
    )
    weighting: WeightingLike = flag(
        "uniform", "Weight of each item in the distillation loss: uniform, entropy, matched, averaged."
    )
    ce_weight: float = flag(0.1, "Weight of the cross-entropy on the labels.")
    kd_weight: float = flag(0.9, "Weight of the distillation loss; 0 trains on labels only.")
    task: str = flag(
        "auto",
        "Task of the student and the teacher: image_classification, sequence_classification, "
        "multi_label_classification, token_classification, masked_lm, causal_lm, seq2seq_lm, "
        "semantic_segmentation, object_detection. auto: inferred from the model's class in transformers, "
        "else from the arguments of its forward. If the model computes a loss itself, the task's loss on two "
        "rows must equal it.",
    )
    segmentation_stride: int | None = flag(
        None,
        "Semantic segmentation: train on every n-th pixel in each direction, to save time and "
        "memory; unset: on all pixels. Both networks' logits are resized to that grid. eval_loss is computed "
        "on the grid too, mean_iou on all pixels.",
    )
    loss_chunk_size: int = flag(
        0,
        "Compute a language model's loss over chunks of this many tokens, to save memory; 0: all tokens at once.",
    )
    bf16: bool | None = flag(  # type: ignore[assignment]
        None,
        "bfloat16 autocast. Unset: as set by accelerate launch, else on where the device computes it natively.",
    )
    fp16: bool | None = flag(  # type: ignore[assignment]
        None, "float16 autocast. Unset: as set by accelerate launch, else off."
    )
    channels_last: bool = flag(True, "Keep images and convolutions in channels_last memory format.")
    lr_decay_epochs: list[float] | None = flag(
        None,
        "Multiply the learning rate by lr_decay_factor after each of these epochs, instead of using lr_scheduler_type.",
    )
    lr_decay_factor: float = flag(0.1, "See lr_decay_epochs.")
    decay_bias_and_norm: bool = flag(
        False, "Apply weight_decay to biases and norm weights too, as the CIFAR papers do."
    )
    # TrainingArguments hides it in its own repr, of which a subclass that is a dataclass has another.
    hub_token: str | None = field(
        default=None, repr=False, metadata={"help": "Access token for the Hub. Unset: that of `hf auth login`."}
    )
    scan_cache_dir: str | None = flag(
        str(Path(HF_HOME) / "hfkd" / "scans"),
        "Folder in which teacher scans are cached for later runs; an empty string disables the cache.",
    )
    teacher_cache_dir: str | None = flag(
        None,
        "Store the teacher's outputs in this folder, for this run and later ones. Images: the logits "
        "of every view are stored as they are computed, with an error of at most 1/65,534 of a row's range "
        "(CIFAR-100 takes up to 1.81 GB). Instructions: the recipe stores the largest logits of each target "
        "token before training.",
    )
    teacher_cache_on_device: bool | None = flag(
        None,
        "Also keep the logits of teacher_cache_dir in device memory; by default on a GPU, if they "
        "take at most a quarter of its free memory.",
    )
    shard_teacher: bool = flag(
        False, "Shard the teacher with FSDP 2 too; otherwise every device holds the whole teacher."
    )
    keep_freed_memory: bool = flag(
        True, "On a CPU with glibc, keep freed memory for the next step instead of returning it to the system."
    )
    label_names: list[str] | None = flag(lambda: ["labels"], "Keys of the batch that hold labels.")
    remove_unused_columns: bool | None = flag(  # type: ignore[assignment]
        False, "Drop dataset columns that the model's forward does not name."
    )
    model_license: str | None = flag(None, "Licence to state in the model card, such as apache-2.0; unset: none.")
    logging_nan_inf_filter: bool = flag(
        False, "Hide NaN and inf losses from the log; costs a device sync at every step."
    )

    on_nan: Literal["stop", "skip", "ignore"] = flag(
        "stop",
        "What to do about NaN or inf in outputs, loss or gradient: stop with an error that says "
        "where; skip the optimizer step and count it (synchronizes with the device at every step); or ignore.",
    )

    def __post_init__(self) -> None:
        for name in ("output_dir", "scan_cache_dir", "teacher_cache_dir"):
            if isinstance(getattr(self, name), os.PathLike):
                setattr(self, name, os.fspath(getattr(self, name)))
        # Otherwise the ranks of a launch on CPUs would not form a process group.
        self.use_cpu = (computes_on_cpu() and not self.deepspeed) or self.use_cpu
        self._check_types()
        self.fp16, self.bf16 = chosen_precision(self.fp16, self.bf16, self.use_cpu)
        self._choose_compilation()
        check_decay(self.lr_decay_epochs, self.lr_decay_factor)
        self.check_high_energy()
        self.check_on_policy()
        refuse_without_effect(self)
        self._check_slots()
        if self.on_nan not in ("stop", "skip", "ignore"):
            raise ValueError(f"on_nan={self.on_nan!r} must be 'stop', 'skip' or 'ignore'")
        self._check_skipping()
        self.resume_from_checkpoint = resume_choice(self.resume_from_checkpoint)  # type: ignore[assignment]
        self.max_grad_norm = 0.0 if self.max_grad_norm is None else self.max_grad_norm  # no clipping
        self._check_numbers()
        if self.greater_is_better is None and is_divergence(self.metric_for_best_model or ""):
            self.greater_is_better = False  # Trainer takes what is not called a loss for a score
        check_names(self)
        if self.label_names is not None and "labels" not in self.label_names:
            raise ValueError(
                f"label_names={self.label_names} must contain 'labels': the loss is computed from batch['labels'] "
                "(collators rename a column 'label' to it); leave label_names out, or add 'labels' to it"
            )
        if self.loss_chunk_size < 0:
            raise ValueError(f"loss_chunk_size={self.loss_chunk_size} must be 0 (off) or a number of tokens")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} must be from 0 to below 1")
        # TrainingArguments would read it from the environment.
        with patch_environment(accelerate_mixed_precision=mixed_precision(self.fp16, self.bf16)):
            super().__post_init__()
        follow_metric(self)
        self._check_completions()
        check_warm_up(self, self.lr_decay_epochs is not None)
        if self.lr_decay_epochs is None:
            check_schedule(self)
        check_world_size(self.world_size)
        check_accumulation(self.gradient_accumulation_steps)
        warn_of_slow_bf16(self.bf16, self.use_cpu)

    def __getstate__(self) -> dict[str, Any]:
        """The state that Trainer pickles into `training_args.bin` and uploads with the weights: without secrets.

        The default scan_cache_dir, below the home folder, is left out: whoever loads it has one of their own.
        """
        return _without_default(publishable(vars(self)))

    def to_dict(self) -> dict[str, Any]:
        """Trainer's, for trackers, likewise: TensorBoard's files are uploaded too. Slots are described, for JSON."""
        return _without_default(publishable(super().to_dict())) | self._slots_in_words

    def described(self) -> Self:
        """A copy for files. Slots that are objects are described: lambdas cannot be pickled, others have weights."""
        return self._with(vars(self) | self._slots_in_words)

    @contextmanager
    def used_with(self, slots: Mapping[str, Any]) -> Iterator[None]:
        """Context in which `to_dict` and `described` tell of these slots and weights, which a trainer was given itself.

        Not stored here, as other trainers may share the arguments, and a change of them is looked for.
        """
        token = IN_USE.set((self, slots))
        try:
            yield
        finally:
            IN_USE.reset(token)

    @property
    def _slots_in_words(self) -> dict[str, Any]:
        whose, used = IN_USE.get()
        slots = {name: getattr(self, name) for name in SLOTS} | (dict(used) if whose is self else {})
        return {name: in_words(value) for name, value in slots.items()}

    def __copy__(self) -> Self:
        return self._with(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(copy.deepcopy(vars(self), memo))

    def _with(self, attributes: dict[str, Any]) -> Self:
        """A copy with these attributes: by default it would be made from the pickled state, and have no Hub token."""
        made = object.__new__(type(self))
        vars(made).update(attributes)
        return made

    @property
    def device(self) -> torch.device:
        """Trainer's, but without the index that the CPU of several processes has: torch.load does not know it."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def slot_temperature(self) -> Any:
        """`temperature`, or the usual default if unset; for language models the trainer then uses 1."""
        return USUAL if self.temperature is None else self.temperature

    @property
    def more_settings(self) -> dict[str, Any]:
        """Further settings that determine a run's result, if enabled: HE-DA and on-policy training."""
        return self.high_energy | self.written_responses

    @property
    def seed_of_data(self) -> int:
        """Seed for mixing and scanning, chosen as Trainer's sampler does: `data_seed` if given, else `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    def _check_numbers(self) -> None:
        """Check numbers that Trainer divides by, or checks only at the first step."""
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            fitting("DistillationArguments", name, getattr(self, name), NotNegative)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            fitting("DistillationArguments", name, getattr(self, name), Count)
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be 1 or more, or -1 to train for num_train_epochs")
        if self.max_steps < 1:
            fitting("DistillationArguments", "num_train_epochs", self.num_train_epochs, Positive)

    def _check_completions(self) -> None:
        if self.log_completions and self.logging_strategy == "no" and not self.logging_first_step:
            raise ValueError(
                "log_completions=True saves the responses of logged steps, but logging_strategy='no' logs none: choose "
                "'steps' or 'epoch', or leave log_completions out"
            )

    def _check_skipping(self) -> None:
        """Raise ValueError if optimizer steps cannot be skipped because weights change during the backward pass."""
        if self.on_nan != "skip":
            return
        if self.deepspeed:
            raise ValueError(
                "on_nan='skip' is not supported with DeepSpeed, which takes optimizer steps by itself; "
                "choose 'stop' or 'ignore'"
            )
        if steps_in_backward(self.optim):
            raise ValueError(
                f"on_nan='skip': optim={optimizer_name(self.optim)!r} changes weights while gradients are computed, "
                "before a step can be left out; choose 'stop' or 'ignore', or another optimizer"
            )

    def _check_slots(self) -> None:
        """Build slots and task once, so that a wrong one is reported before any network is loaded."""
        with kept_random_state():  # some slots have weights
            DistillationLoss(self.objective, self.slot_temperature, self.weighting, self.ce_weight, self.kd_weight)
        if self.task != "auto":
            named_task(self.task)

    def _check_types(self) -> None:
        """Check the types of hfkd's own flags and numbers: a string passed for a flag would count as True."""
        for cls in (HighEnergyArguments, OnPolicyArguments, EvaluationArguments, DistillationArguments):
            for name, kind in cls.__annotations__.items():
                if kind in (bool, bool | None, int, float):
                    fitting("DistillationArguments", name, getattr(self, name), kind)

    def _choose_compilation(self) -> None:
        """Set `torch_compile` if `accelerate launch` compiles, which it does whatever this is set to."""
        launched = TorchDynamoPlugin().backend
        if launched == DynamoBackend.NO or self.torch_compile:
            return
        self.torch_compile, self.torch_compile_backend = True, self.torch_compile_backend or launched.value.lower()
        logger.info("accelerate was launched with dynamo_backend=%s: torch_compile=True.", launched.value.lower())


def _without_default(settings: dict[str, Any]) -> dict[str, Any]:
    default = settings.get("scan_cache_dir") == DistillationArguments.scan_cache_dir
    return {name: value for name, value in settings.items() if not (default and name == "scan_cache_dir")}
