"""Flags for recipes that store the teacher's outputs once and then train from them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.losses.temperatures import OF_LANGUAGE, resolve_temperature
from hfkd.models.vocabulary import common_vocabulary
from hfkd.teachers.frozen import FrozenTeacher, place
from hfkd.teachers.source import model_source
from hfkd.teachers.token_cache.build import build_text_cache
from hfkd.teachers.token_cache.manifest import Manifest
from hfkd.teachers.token_cache.teacher import CachedTextTeacher
from hfkd.utils.flags import at_least_one, flag


@dataclass
class TeacherCacheArguments:
    """What is stored of a language-model teacher's outputs in `teacher_cache_dir`."""

    teacher_cache_k: int = flag(64, "Number of largest logits stored per target token.")
    teacher_cache_batch_size: int = flag(8, "Rows per forward pass of the teacher while storing.")

    teacher_cache_entropy_temperature: float = flag(
        3.0, "Softmax temperature of the stored entropies; must be that of the weighting."
    )
    teacher_cache_energy_temperature: float = flag(
        4.0, "Temperature of the stored energies; must be that of the temperature slot."
    )

    def __post_init__(self) -> None:
        at_least_one(self, "teacher_cache_k", "teacher_cache_batch_size")

    def teacher(
        self,
        folder: str | None,
        load: Callable[[], nn.Module],
        name: str,
        rows: Dataset,
        student: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        temperature: Any,
        mixed_precision: str | None = None,
        how: Sequence[Any] = (),
    ) -> nn.Module:
        """The teacher stored in `folder`, with a call of `load` only if needed; without a folder the live teacher.

        The teacher is loaded if files of the cache are missing or damaged, if the model files under `name` are not
        those that the cache was made from (samples of these are compared), or if `load` has other settings, `how`, such
        as dtype and quantisation: then its weights and a few rows are compared with the stored ones. `temperature` is
        the temperature slot of training, which determines the temperatures at which the bucket is stored. The same
        files under another path are the same teacher, as on another machine.
        `mixed_precision` is that of training; unset: that of accelerate's launcher. Raises ValueError for a folder with
        the outputs of another teacher, or stored with other values of these flags.
        """
        if not folder:
            return load()
        folder = os.path.expanduser(folder)
        manifest = Manifest.read(folder)
        files = model_source(name)
        source = f"{files} {list(how)}"  # random or quantised weights come from the same files
        moved = manifest is not None and files is not None and manifest.source == source
        if manifest is not None and manifest.name != name and not moved:
            raise ValueError(
                f"--teacher_cache_dir {folder} has the outputs of {manifest.name}, but the teacher is {name}: "
                "choose another folder, or delete that one"
            )
        if manifest is not None and manifest.captured:
            return CachedTextTeacher(folder)  # no teacher is available to rebuild it
        if manifest is not None:
            self._refuse_other(folder, manifest)
        if manifest is None or manifest.source != source or manifest.missing(folder):
            stored = name if manifest is None else manifest.name
            self._build(folder, load(), stored, source, rows, student, tokenizer, temperature, mixed_precision)
        return CachedTextTeacher(folder)

    def _refuse_other(self, folder: str, stored: Manifest) -> None:
        """Raise ValueError if flags differ from the stored settings, which training would use."""
        there = {
            "teacher_cache_k": stored.k,
            "teacher_cache_entropy_temperature": stored.entropy_temperature,
            "teacher_cache_energy_temperature": stored.energy_temperature,
        }
        for name, its in there.items():
            mine = getattr(self, name)
            if mine != its and not (name == "teacher_cache_k" and not stored.has_tail and mine > its):
                raise ValueError(
                    f"--{name} {mine}: --teacher_cache_dir {folder} was stored with {its}; pass --{name} {its}, "
                    "or choose another folder"
                )

    def _build(
        self,
        folder: str,
        teacher: nn.Module,
        name: str,
        source: str | None,
        rows: Dataset,
        student: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        temperature: Any,
        mixed_precision: str | None,
    ) -> None:
        # It uses the process group that TrainingArguments has created.
        accelerator = Accelerator(mixed_precision=mixed_precision)
        softened = resolve_temperature(OF_LANGUAGE if temperature is None else temperature)
        choices = getattr(softened, "choices", None)
        if choices is None:
            raise ValueError(
                f"--teacher_cache_dir: the temperatures of {temperature} are not known in advance: leave it out, "
                "to train with the live teacher"
            )
        build_text_cache(
            place(FrozenTeacher(teacher), accelerator),
            rows,
            folder,
            k=self.teacher_cache_k,
            temperatures=choices,
            entropy_temperature=self.teacher_cache_entropy_temperature,
            energy_temperature=self.teacher_cache_energy_temperature,
            num_classes=common_vocabulary(student, teacher, tokenizer),
            batch_size=self.teacher_cache_batch_size,
            accelerator=accelerator,
            name=name,
            source=source,
        )
