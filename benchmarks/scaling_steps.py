"""The training steps that scaling.py times: of images, and of a language model on random tokens."""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from datasets import Dataset
from image_step import THRESHOLDS, teacher_network, training_arguments
from text_step import RECIPE, gpt2
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from turns import Clock, on_one_gpu

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageDataArguments, num_labels
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.temperatures import Energy
from hfkd.models import image_classifier
from hfkd.utils.flags import flag

WARM_UP = 2  # steps of a turn that are not counted


@dataclass
class NetworkArguments:
    teacher_name: str = flag("cifar_wrn_16_2", "Teacher of images.")
    teacher_checkpoint: str | None = flag(None, "Weights of the teacher; random ones cost the same.")
    student_name: str = flag("cifar_resnet20", "Student of images.")
    text_teacher: str | None = flag(None, "WIDTHxLAYERS of a GPT-2. Unset: 192x4, on a GPU 1024x12.")
    text_student: str | None = flag(None, "WIDTHxLAYERS of a GPT-2. Unset: 128x2, on a GPU 512x8.")
    steps: int | None = flag(None, f"Steps of a turn; the first {WARM_UP} are not counted. Unset: 7, on a GPU 30.")

    def __post_init__(self) -> None:
        on_gpu = torch.cuda.is_available()
        self.text_teacher = self.text_teacher or ("1024x12" if on_gpu else "192x4")
        self.text_student = self.text_student or ("512x8" if on_gpu else "128x2")
        self.steps = self.steps or (30 if on_gpu else 7)


@dataclass
class Setting:
    """Shared by all steps of a run."""

    networks: NetworkArguments
    data: ImageDataArguments
    given: DistillationArguments

    @cached_property
    def images(self) -> Any:
        return self.data.load()[0]


@dataclass(frozen=True)
class ImageStep:
    """Energy KD with a live teacher, input pipeline included."""

    batch: int
    unit: ClassVar[str] = "images"

    @property
    def count(self) -> int:
        return self.batch

    def trainer(self, setting: Setting) -> DistillationTrainer:
        networks, classes = setting.networks, num_labels(setting.images)
        return DistillationTrainer(
            image_classifier(networks.student_name, classes),
            teacher_network(networks.teacher_name, classes, networks.teacher_checkpoint),
            training_arguments(setting.given, networks.steps, self.batch),
            train_dataset=setting.images,
            temperature=Energy(thresholds=THRESHOLDS),
        )


@dataclass(frozen=True)
class TextStep:
    """EA-KD on random tokens, the second half of each sequence targets."""

    batch: int
    length: int
    vocabulary: int
    unit: ClassVar[str] = "tokens"

    @property
    def count(self) -> int:
        return self.batch * self.length

    def trainer(self, setting: Setting) -> DistillationTrainer:
        networks, given = setting.networks, setting.given
        size = {"vocab_size": self.vocabulary, "n_positions": self.length, "bos_token_id": 0, "eos_token_id": 0}
        args = DistillationArguments(
            given.output_dir,
            per_device_train_batch_size=self.batch,
            max_steps=networks.steps,
            bf16=given.bf16,
            use_cpu=given.use_cpu,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        return DistillationTrainer(
            gpt2(networks.text_student, 0, **size),
            gpt2(networks.text_teacher, 1, **size),
            on_one_gpu(args),
            data_collator=TokenCollator(0),
            train_dataset=self.rows(networks.steps),
            **RECIPE,
        )

    def rows(self, steps: int) -> Dataset:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocabulary, (steps * self.batch, self.length), generator=generator).tolist()
        half = self.length // 2
        return Dataset.from_list([{"input_ids": row, "labels": [-100] * half + row[half:]} for row in ids])


Step = ImageStep | TextStep
KINDS = {step.unit: step for step in (ImageStep, TextStep)}


def seconds(step: Step, setting: Setting, cpu_time: bool = True) -> list[float]:
    """Seconds of each counted step of a short run."""
    clock = Clock(setting.networks.steps, WARM_UP, cpu_time)
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        setting.given.output_dir = folder
        trainer = step.trainer(setting)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return clock.seconds
