"""What DistillationTrainer makes of its arguments before it is a Trainer."""

import math
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.collate import ImageCollator
from hfkd.data.text_collate import TokenCollator
from hfkd.loss import DistillationLoss
from hfkd.models import InputSpec, image_processor, input_spec, record_statistics
from hfkd.teachers import LiveTeacher
from hfkd.teachers.scan import image_transform


class EpochViews(TrainerCallback):
    """Tells the training images' transform, if it is ours, which epoch's views to make."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        transform = image_transform(keywords["train_dataloader"].dataset)
        if transform is not None:
            transform.set_epoch(math.floor(round(state.epoch or 0.0, 6)))


def refuse_unsupported(loss: DistillationLoss, teacher: nn.Module | None, compute_loss_func: Any) -> None:
    """Raise ValueError for what would train something else than the caller thinks."""
    if teacher is None and loss.kd_weight:
        raise ValueError(
            f"kd_weight={loss.kd_weight} needs a teacher: pass teacher=, or kd_weight=0 and ce_weight=1 to train on "
            "the labels alone"
        )
    if compute_loss_func is not None:
        raise ValueError("compute_loss_func would not be called: give your loss as objective=, one number per item")


def default_collator(processing_class: Any) -> ImageCollator | TokenCollator:
    """Tokens when the processing class is a tokenizer, else images."""
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return TokenCollator(processing_class)
    return ImageCollator(processing_class if isinstance(processing_class, BaseImageProcessor) else None)


def with_adapters(model: nn.Module, peft_config: Any) -> nn.Module:
    """The student with PEFT adapters, which alone will train."""
    from peft import get_peft_model  # needed by those who ask for it only

    return get_peft_model(model, peft_config)


def live_teacher(teacher: nn.Module, student: nn.Module, train_dataset: Any) -> LiveTeacher:
    """The frozen teacher, told how the training images are normalised: as their transform says, else the student."""
    if isinstance(teacher, LiveTeacher):
        return teacher
    transform = image_transform(train_dataset)
    return LiveTeacher(teacher, InputSpec(transform.mean, transform.std, None) if transform else input_spec(student))


def record_inputs(student: nn.Module, train_dataset: Any) -> BaseImageProcessor | None:
    """Let what is saved say how its images were prepared: in a timm model's config, else by the processor returned."""
    transform = image_transform(train_dataset)
    if transform is None:
        return None
    height, width = train_dataset[0]["pixel_values"].shape[-2:]
    if record_statistics(student, transform.mean, transform.std, (height, width)):
        return None
    return image_processor(transform.mean, transform.std, (height, width))
