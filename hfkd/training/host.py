"""The attributes of the trainer that checks, checkpoints and reports use."""

from collections.abc import Mapping
from typing import Any, Protocol

from accelerate import Accelerator
from transformers import TrainerState

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.tasks.base import Task


class Host(Protocol):
    """Protocol of `DistillationTrainer`, for modules that must not import the trainer."""

    args: DistillationArguments
    accelerator: Accelerator
    state: TrainerState
    model: Any
    teacher: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    processing_class: Any
    hub_model_id: Any
    details: Mapping[str, Any]
    call: Call
    task: Task
    num_classes: int | None
    class_names: Any
    image_inputs: Any  # `ImageInputs`, None for tokens
    received: Any
    distillation_loss: DistillationLoss
    record: Any  # its `RunRecord`
    judged: Any  # its `JudgedSteps`
    schedule: Any  # its `Schedule`
    is_in_train: bool
    optimizer: Any
    lr_scheduler: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    callback_handler: Any
    callers_optimizer: Any
    callers_scheduler: Any
    optimizer_cls_and_kwargs: Any
    _train_batch_size: int
    _tr_loss: Any  # the sum of the losses since the last log

    @property
    def own_set(self) -> Any:
        """The evaluation set at the start of training."""

    @property
    def training_collator(self) -> Any:
        """The collator for training rows, which may have no labels."""

    @property
    def saved_processor(self) -> Any:
        """The processing_class, or else the collator's tokenizer, that is saved with the student."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def log(self, logs: dict[str, float]) -> None: ...

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any: ...

    def as_networks_take_it(self, inputs: Mapping[str, Any], training: bool) -> dict[str, Any]: ...

    def evaluated_network(self, model: Any) -> Any: ...

    def _prepare_inputs(self, inputs: Any) -> Any: ...

    def get_tp_size(self) -> int: ...

    def is_world_process_zero(self) -> bool: ...
