"""What a run is, kept beside its weights: a folder never mixes two runs, and a resumed one keeps its thresholds."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import epoch_transform
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import Fitted, Level
from hfkd.teachers import Teacher
from hfkd.teachers.fingerprint import changed_setting, configuration, weights_fingerprint
from hfkd.training.checkpoints.whole import last_checkpoint
from hfkd.training.data_fingerprint import comparable, data_hash
from hfkd.training.run_settings import versions
from hfkd.training.student_layers import changed_layers, student_config, student_layers
from hfkd.utils.command import without_addresses
from hfkd.utils.files import write_atomically

logger = logging.getLogger(__name__)

FILE = "distillation.json"
# Of a trainer's settings, those that decide its result beside networks, slots and data.
TRAINING = (
    "learning_rate",
    "weight_decay",
    "optim",
    "optim_args",
    "batch_size",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "lr_decay_epochs",
    "lr_decay_factor",
    "warmup_steps",
    "lr_scheduler_kwargs",
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "decay_bias_and_norm", "neftune_noise_alpha"),
    *("mixed_precision", "weights", "dropout", "segmentation_stride", "split_batches", "even_batches"),
)
# Those that a folder may hold another value of: nothing to refuse a run for, but said where it is resumed.
SAID = ("device", "versions", "evaluation_rows", "collator")
SOMETIMES = ("lr_scheduler_type", "lr_decay_epochs", "lr_decay_factor")  # a run has either kind of schedule
OTHER_BATCHES = (
    " The rows of the epoch that it stopped in are counted in batches of the new size: some come twice in it, or not "
    "at all."
)
OTHER_EVALUATION = " Its best checkpoint, and the epochs in results.json, compare numbers of both."
# Which rows a step has: those of another order are not those that a resumed run has yet to learn.
ORDER = ("data_seed", "train_sampling_strategy", "dataloader_drop_last", "use_seedable_sampler")


@dataclass(frozen=True)
class RunRecord:
    """loss: its slots as built, before any fitting. thresholds: what the teacher scan found, once it has.

    data: how many training rows, and what is made of them; None for a trainer without any, which is not compared.
    threshold_level: whether the scan was of samples or of items; None where a version wrote it that knew samples alone.
    training: the optimizer, its schedule and the batch size, once training starts; a resumed run may change them.
    order: what decides which rows a step has, which it may not. teacher_config: the teacher's settings that may change
    its outputs. probe: energies of a few rows (`Probe`). rows: a hash of the training rows, labels and all, or of a
    sample (`data_hash`). student_config, student_layers: what decides the student's outputs beside its weights.
    """

    student: str
    teacher: str | None
    loss: dict[str, Any]
    seed: int
    thresholds: list[float] | None = None
    data: str | None = None
    threshold_level: Level | None = None
    training: dict[str, Any] | None = None
    teacher_config: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    rows: str | None = None
    order: dict[str, Any] | None = None
    student_config: dict[str, Any] | None = None
    student_layers: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        student: nn.Module,
        teacher: Teacher | None,
        loss: DistillationLoss,
        seed: int,
        more: Mapping[str, Any] | None = None,
        dataset: Any = None,
    ) -> "RunRecord":
        """`more`: what else decides the run, recorded beside the slots."""
        known, config = None if teacher is None else repr(teacher), None
        if teacher is not None and teacher.networks:
            config = configuration(teacher)
            names = " + ".join(map(network, teacher.networks))
            known = names.removesuffix(")") + f", weights {weights_fingerprint(teacher)[:8]})"
        # A lambda's repr holds its address, which no two runs share.
        slots = {k: without_addresses(v) if isinstance(v, str) else v for k, v in loss.describe().items()}
        decided = slots | dict(more or {})
        return cls(
            network(student),
            known,
            decided,
            seed,
            data=rows_of(dataset),
            teacher_config=config,
            rows=data_hash(dataset),
            student_config=student_config(student),
            student_layers=student_layers(student),
        )

    def of_rows(self, dataset: Any) -> "RunRecord":
        """The same of other training rows."""
        return replace(self, data=rows_of(dataset), rows=data_hash(dataset))

    def write(self, folder: str | Path | None, loss: DistillationLoss) -> None:
        slot = loss.temperature
        thresholds = list(slot.thresholds_or_none or ()) or None if isinstance(slot, Fitted) else None
        payload = asdict(self) | {"thresholds": thresholds, "threshold_level": slot.level if thresholds else None}
        write_atomically(Path(folder or ".") / FILE, json.dumps(payload, indent=2).encode())

    def refuse_other(self, folder: str | Path | None) -> None:
        """Raise ValueError if `folder` already holds a run that is not this one."""
        folder = folder or "."
        other = read(folder) or read(last_checkpoint(folder))
        if other is not None and (difference := self._difference(other)):
            raise ValueError(f"{folder} holds another run: {difference}; choose another output_dir, or delete that one")

    def refuse_checkpoint(self, checkpoint: str | None) -> None:
        """Raise ValueError for a checkpoint, wherever it lies, of another run; one of plain Trainer's is taken."""
        other = read(checkpoint)
        if other is not None and (difference := self._difference(other)):
            raise ValueError(
                f"resume_from_checkpoint={checkpoint} is of another run: {difference}; name one of this run, or start "
                "anew, with the student loaded from there if that is meant"
            )

    def training_as(self, settings: Mapping[str, Any], args: DistillationArguments) -> "RunRecord":
        """This record with what `settings`, those of the trainer, and its arguments say about its training."""
        training = {name: settings[name] for name in (*TRAINING, *SAID) if name in settings}
        order = {name: settings.get(name, getattr(args, name, None)) for name in ORDER}
        order["data_seed"] = args.seed_of_data
        return replace(self, training=json.loads(json.dumps(training)), order=json.loads(json.dumps(order)))

    def check_training(self, folder: str | Path | None, checkpoint: str | None) -> None:
        """Raise ValueError if `folder` holds a run that was trained otherwise and is not resumed.

        One that is resumed from `checkpoint` may be trained otherwise from there on, which is said in the log, but for
        the order of its rows.
        """
        folder = folder or "."
        other = read(checkpoint) if checkpoint else read(folder) or read(last_checkpoint(folder))
        compared = TRAINING if checkpoint is None else (*TRAINING, *SAID)
        names = _different(compared, other.training, self.training) if other else []
        order = _different(ORDER, other.order, self.order) if other else []
        if other is None or not (names or order):
            return
        records = ((record.training or {}) | (record.order or {}) for record in (other, self))
        was, now = (", ".join(f"{name}={record.get(name)}" for name in order or names) for record in records)
        if checkpoint is None:
            raise ValueError(
                f"{folder} holds a run with {was}, and this one, which does not resume it, has {now}: choose another "
                "output_dir, delete that one, or resume it with resume_from_checkpoint=True"
            )
        if order:
            raise ValueError(
                f"{checkpoint} is of a run with {was}, and this one has {now}: the rows that are left of its epoch "
                f"would be others, some would come twice and some not at all; pass {was}, or choose another output_dir"
            )
        logger.warning(
            "The run in %s was trained with %s; it is resumed with %s. The optimizer and its schedule "
            "go on as they were stored.%s%s",
            checkpoint,
            was,
            now,
            OTHER_BATCHES if "batch_size" in names else "",
            OTHER_EVALUATION if "evaluation_rows" in names else "",
        )

    def _difference(self, other: "RunRecord") -> str | None:
        there, here = other._named(), self._named()
        if self.data and other.data:
            there["data"], here["data"] = other.data, self.data
        same_way = self.rows and other.rows and comparable(self.rows, other.rows)
        if same_way and self.rows != other.rows and there == here:
            return "it has been trained on other rows, or other labels of them, as many as these"
        different = next((name for name in here | there if there.get(name) != here.get(name)), None)
        if different is None:
            return (
                changed_setting(other.teacher_config or {}, self.teacher_config or {}, "teacher's config")
                or changed_setting(other.student_config or {}, self.student_config or {}, "student's config")
                or self._other_layers(other)
            )
        return f"its {different} is {there.get(different)}, this one's is {here.get(different)}"

    def _other_layers(self, other: "RunRecord") -> str | None:
        """Another version of a library may call the same layers by other names."""
        same_versions = (other.training or {}).get("versions") in (None, versions())
        if not other.student_layers or not self.student_layers or not same_versions:
            return None
        return changed_layers(other.student_layers, self.student_layers)

    def _named(self) -> dict[str, Any]:
        return {"student": self.student, "teacher": self.teacher} | self.loss | {"seed": self.seed}


def _different(names: Sequence[str], there: dict[str, Any] | None, here: dict[str, Any] | None) -> list[str]:
    """Which of these settings two records have different values of; none where one has no record of them."""
    if not there or not here:
        return []
    known = [name for name in names if name in SOMETIMES or name in there]  # an earlier version recorded fewer
    return [name for name in known if there.get(name) != here.get(name)]


def read(folder: str | Path | None) -> RunRecord | None:
    """The record in `folder`, or None where there is none that can be read."""
    if folder is None or not (Path(folder) / FILE).is_file():  # a pipe of that name would be waited for
        return None
    try:
        record = RunRecord(**json.loads((Path(folder) / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if isinstance(record.loss, dict) else None


def earlier_thresholds(folder: str | Path | None, slot: Fitted, tokens: bool) -> tuple[float, ...] | None:
    """What a run's scan found for `slot`, from the record in a checkpoint; None where it is to be scanned (again)."""
    record = read(folder)
    if record is None or record.thresholds is None:
        return None
    if tokens and slot.level != (record.threshold_level or "sample"):
        logger.warning(
            "The thresholds in %s were fitted at level=%r (earlier versions knew 'sample' alone), and this temperature "
            "compares energies at level=%r with them: they are fitted anew. Steps up to here were trained with others.",
            Path(folder or ".") / FILE,
            record.threshold_level or "sample",
            slot.level,
        )
        return None
    return tuple(record.thresholds)


def rows_of(dataset: Any) -> str | None:
    """A training set in a line: its length, where it has one, and its transform, where it is one of ours."""
    if dataset is None:
        return None
    rows = f"{len(dataset):,} rows" if has_length(dataset) else "a stream"
    transform = epoch_transform(dataset)
    return rows if transform is None else f"{rows}, {transform!r}"


def network(model: nn.Module) -> str:
    """A network in a line: architecture and size."""
    inner = getattr(model, "config", None)
    name = getattr(inner, "architecture", None) or getattr(inner, "name_or_path", None) or type(model).__name__
    name = Path(name).name if Path(name).exists() else name  # a record may be published, a machine's folders not
    return f"{name} ({sum(p.numel() for p in model.parameters()):,} parameters)"
