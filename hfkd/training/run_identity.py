"""The record of a run, stored with its weights: a folder never mixes two runs, and a resumed one keeps thresholds."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import epoch_transform
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import Fitted, Level
from hfkd.teachers import Teacher, TeacherByRow
from hfkd.teachers.fingerprint import changed_setting, configuration, weights_fingerprint
from hfkd.training.checkpoints.whole import last_checkpoint
from hfkd.training.data_fingerprint import comparable, data_hash
from hfkd.training.run_settings import versions
from hfkd.training.student_layers import changed_layers, student_config, student_layers
from hfkd.utils import formats
from hfkd.utils.command import without_addresses
from hfkd.utils.files import write_atomically
from hfkd.utils.saved_weights import MANIFEST

logger = logging.getLogger(__name__)

FILE = "distillation.json"
# What a run leaves, beside its record, of which a later one would be another: weights, checkpoints, results, responses.
LEFT = ("checkpoint-*", "*.safetensors", "*.bin", "*results.json", "trainer_state.json", "completions")
OTHER_VERSION = "resume the run with the version that it was started with, or choose another output_dir"
# Settings that determine the result besides networks, slots and data.
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
# Settings that may differ from the folder's record: not refused, but logged when a run is resumed.
SAID = ("device", "versions", "hfkd", "evaluation_rows", "collator")
SOMETIMES = ("lr_scheduler_type", "lr_decay_epochs", "lr_decay_factor")  # a run has one of the two kinds of schedule
SCHEDULE = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps")
NEW_SCHEDULE = (
    " What the schedule computes from the step (lr_scheduler_type, its warm-up and length) is that of the new settings "
    "from here on, at the stored learning rate."
)
OTHER_BATCHES = (
    " Epochs, and the position in the current one, are counted in batches of the new size: some rows come twice, or "
    "not at all."
)
OTHER_EVALUATION = " The best checkpoint, and the epochs in results.json, compare values of both evaluation sets."
WEIGHTS = ", weights "
SEEN = (
    " (the hash is of the weights, the size and normalisation of the teacher's images, and the choice of its classes)"
)
# Settings that determine the order of rows, which must not change in a resumed run.
ORDER = ("data_seed", "train_sampling_strategy", "dataloader_drop_last", "use_seedable_sampler")


@dataclass(frozen=True)
class RunRecord:
    """loss: the slots as built, before fitting. thresholds: those found by the teacher scan, once it has run.

    data: number and transform of the training rows; None, and not compared, for a trainer without any. threshold_level:
    whether samples or items were scanned; None in records of versions that only scanned samples. training: the
    optimizer, its schedule and the batch size, once training starts; a resumed run may change them. order: settings
    that determine the order of rows, which a resumed run may not change. teacher_config: settings of the teacher that
    may change its outputs. probe: energies of a few rows (`Probe`). rows: a hash of the training rows including labels,
    or of a sample (`data_hash`). student_config, student_layers: what determines the student's outputs besides its
    weights.
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
        """`more`: further settings that determine the run, recorded with the slots."""
        known, config = None if teacher is None else repr(teacher), None
        if teacher is not None and teacher.networks:
            known, config = teacher_networks(teacher), configuration(teacher)
        # A lambda's repr has its address, which differs between runs.
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

    def of_teacher(self, teacher: Teacher) -> "RunRecord":
        """The same with the weights that the teacher's networks have now."""
        return replace(self, teacher=teacher_networks(teacher))

    def write(self, folder: str | Path | None, loss: DistillationLoss) -> None:
        slot = loss.temperature
        thresholds = list(slot.thresholds_or_none or ()) or None if isinstance(slot, Fitted) else None
        fitted = {"thresholds": thresholds, "threshold_level": slot.level if thresholds else None}
        payload = formats.with_version(asdict(self) | fitted, formats.RUN)
        write_atomically(Path(folder or ".") / FILE, json.dumps(payload, indent=2).encode())

    def refuse_other(self, folder: str | Path | None) -> None:
        """Raise ValueError if `folder` has another run."""
        other = left_in(folder)
        if other is not None and (difference := self._difference(other)):
            raise ValueError(
                f"{folder} contains another run: {difference}; choose another output_dir, or delete that run"
            )

    def refuse_checkpoint(self, checkpoint: str | None) -> None:
        """Raise ValueError for a checkpoint of another run, in any folder; one written by plain Trainer is accepted."""
        other = read(checkpoint)
        if other is not None and (difference := self._difference(other)):
            raise ValueError(
                f"resume_from_checkpoint={checkpoint} is from another run: {difference}; pass a checkpoint of "
                "this run, or start a new run, with the student loaded from that checkpoint if intended"
            )

    def training_as(self, settings: Mapping[str, Any], args: DistillationArguments) -> "RunRecord":
        """This record with the entries on training, from the trainer's `settings` and arguments."""
        training = {name: settings[name] for name in (*TRAINING, *SAID) if name in settings}
        order = {name: settings.get(name, getattr(args, name, None)) for name in ORDER}
        order["data_seed"] = args.seed_of_data
        return replace(self, training=json.loads(json.dumps(training)), order=json.loads(json.dumps(order)))

    def check_training(self, folder: str | Path | None, checkpoint: str | None) -> None:
        """Raise ValueError if `folder` has a run with other training settings that is not resumed.

        A run resumed from `checkpoint` may continue with other settings, which is logged, except for the order of its
        rows.
        """
        folder = folder or "."
        other = read(checkpoint) if checkpoint else left_in(folder)
        compared = TRAINING if checkpoint is None else (*TRAINING, *SAID)
        names = _different(compared, other.training, self.training) if other else []
        order = _different(ORDER, other.order, self.order) if other else []
        if other is None or not (names or order):
            return
        records = ((record.training or {}) | (record.order or {}) for record in (other, self))
        was, now = (", ".join(f"{name}={record.get(name)}" for name in order or names) for record in records)
        if checkpoint is None:
            raise ValueError(
                f"{folder} contains a run with {was}, and this run, which does not resume it, has {now}: choose "
                "another output_dir, delete that run, or resume it with resume_from_checkpoint=True"
            )
        if order:
            raise ValueError(
                f"{checkpoint} is from a run with {was}, and this run has {now}: the rest of the epoch would be "
                f"in another order, so that some rows would come twice and some not at all; pass {was}, or choose "
                "another output_dir"
            )
        logger.warning(
            "The run in %s was trained with %s; it is resumed with %s. The optimizer continues from its stored "
            "state.%s%s%s",
            checkpoint,
            was,
            now,
            NEW_SCHEDULE if {*names} & {*SCHEDULE} else "",
            OTHER_BATCHES if "batch_size" in names else "",
            OTHER_EVALUATION if "evaluation_rows" in names else "",
        )

    def _difference(self, other: "RunRecord") -> str | None:
        there, here = other._named(), self._named()
        if self.data and other.data:
            there["data"], here["data"] = other.data, self.data
        same_way = self.rows and other.rows and comparable(self.rows, other.rows)
        if same_way and self.rows != other.rows and there == here:
            return "it was trained on as many rows, but with other contents or labels"
        different = next((name for name in here | there if there.get(name) != here.get(name)), None)
        if different is None:
            return (
                changed_setting(other.teacher_config or {}, self.teacher_config or {}, "teacher's config")
                or changed_setting(other.student_config or {}, self.student_config or {}, "student's config")
                or self._other_layers(other)
            )
        both = there.get(different), here.get(different)
        seen = different == "teacher" and len({str(one).split(WEIGHTS)[0] for one in both}) == 1
        whose = f"its {different} is {both[0]}, that of this run is {both[1]}"
        if seen and not _of_these_versions(other):
            whose += f", whose layers {(other.training or {})['versions']} may have described otherwise"
        return whose + (SEEN if seen else "")

    def _other_layers(self, other: "RunRecord") -> str | None:
        """Compare layers, for equal library versions: another version may describe the same layers differently."""
        if not other.student_layers or not self.student_layers or not _of_these_versions(other):
            return None
        return changed_layers(other.student_layers, self.student_layers)

    def _named(self) -> dict[str, Any]:
        return {"student": self.student, "teacher": self.teacher} | self.loss | {"seed": self.seed}


def _of_these_versions(record: RunRecord) -> bool:
    """Whether a record is of a run with these versions of torch and transformers, or does not say."""
    return (record.training or {}).get("versions") in (None, versions())


def _different(names: Sequence[str], there: dict[str, Any] | None, here: dict[str, Any] | None) -> list[str]:
    """The settings in which two records differ; none if one of them has no such entries."""
    if not there or not here:
        return []
    known = [name for name in names if name in SOMETIMES or name in there]  # an earlier version recorded fewer
    return [name for name in known if there.get(name) != here.get(name)]


def read(folder: str | Path | None) -> RunRecord | None:
    """The record in `folder`, or None if there is no readable one. ValueError for one of another version."""
    if folder is None or not (Path(folder) / FILE).is_file():  # reading a named pipe would block
        return None
    try:
        found = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    formats.refuse_other_version(Path(folder) / FILE, found, formats.RUN, OTHER_VERSION)
    known = {one.name: found[one.name] for one in fields(RunRecord) if one.name in found}
    try:
        record = RunRecord(**known)  # without entries that a later version of hfkd has added
    except TypeError:
        return None
    return record if isinstance(record.loss, dict) else None


def left_in(folder: str | Path | None) -> RunRecord | None:
    """The record of the run in `folder`; None for one that ended before it left anything but its record.

    Such a run cannot be resumed, and a new one, with the setting for which it was stopped, mixes with nothing of it.
    """
    folder = Path(folder or ".")
    if not any(any(folder.glob(pattern)) for pattern in LEFT):
        return None
    return read(folder) or read(last_checkpoint(folder))


def check_undistilled(checkpoint: str | None, max_steps: int) -> None:
    """Warn of a checkpoint without a record, as plain Trainer writes: its steps were trained without the teacher.

    One of a student that FSDP saves in shards has none either, but the manifest of hfkd's checkpoints.

    Raises ValueError if the run ends with these steps, so that no step would be distilled.
    """
    if checkpoint is None or read(checkpoint) is not None or (Path(checkpoint) / MANIFEST).exists():
        return
    done = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    unknown = f"{checkpoint} has no record of a distillation ({FILE}), as if plain Trainer had written it"
    if done >= max_steps:
        raise ValueError(
            f"{unknown}, and this run ends at its step {done}, so that no step would be trained with the teacher: "
            "leave resume_from_checkpoint out and choose another output_dir, or train for more steps"
        )
    logger.warning(
        "%s: its %d steps count as trained, and the teacher has a part in the other %d alone. To distil in all steps, "
        "leave resume_from_checkpoint out and choose another output_dir.",
        unknown,
        done,
        max_steps - done,
    )


def earlier_thresholds(folder: str | Path | None, slot: Fitted, tokens: bool) -> tuple[float, ...] | None:
    """The thresholds found for `slot`, from the record in a checkpoint; None if a (new) scan is needed."""
    record = read(folder)
    if record is None or record.thresholds is None:
        return None
    if tokens and slot.level != (record.threshold_level or "sample"):
        logger.warning(
            "The thresholds in %s were fitted at level=%r (the only one in earlier versions is 'sample'), but "
            "this temperature compares energies at level=%r: they are fitted again. Earlier steps of this run "
            "were trained with other thresholds.",
            Path(folder or ".") / FILE,
            record.threshold_level or "sample",
            slot.level,
        )
        return None
    return tuple(record.thresholds)


def rows_of(dataset: Any) -> str | None:
    """A training set in one line: its length, if it has one, and its transform, if it is hfkd's."""
    if dataset is None:
        return None
    rows = f"{len(dataset):,} rows" if has_length(dataset) else "a stream"
    transform = epoch_transform(dataset)
    return rows if transform is None else f"{rows}, {transform!r}"


def teacher_networks(teacher: Teacher) -> str:
    """The networks of a teacher in one line, with a hash of their weights."""
    if isinstance(teacher, TeacherByRow):
        names = ", ".join(f"{name}: {network(one)}" for name, one in zip(teacher.names, teacher.networks, strict=True))
    else:
        names = " + ".join(map(network, teacher.networks))
    return names.removesuffix(")") + f"{WEIGHTS}{weights_fingerprint(teacher)[:8]})"


def network(model: nn.Module) -> str:
    """A network in one line: architecture and size."""
    inner = getattr(model, "config", None)
    name = getattr(inner, "architecture", None) or getattr(inner, "name_or_path", None) or type(model).__name__
    name = Path(name).name if Path(name).exists() else name  # records may be published; local paths must not be
    return f"{name} ({sum(map(_size, model.parameters())):,} parameters)"


def _size(parameter: nn.Parameter) -> int:
    """The number of weights; bitsandbytes stores those in 4 bits two to a byte, and their shape apart."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(parameter.shape if state is None else state.shape)
