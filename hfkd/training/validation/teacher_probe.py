"""Stores the energies of a few rows with a run, so that a resumed run can check that teacher and rows are unchanged.

This finds changes that fingerprints miss: an edited forward or transform, replaced image files, other rows.
"""

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hfkd.data.first_rows import map_style
from hfkd.data.he_da import original_images
from hfkd.losses.temperatures import Fitted
from hfkd.teachers import TeacherScan
from hfkd.teachers.agreement import PROBED, disagreement, everywhere, spread_rows, tolerance
from hfkd.teachers.row_reader import RowReader
from hfkd.teachers.statistics import seen
from hfkd.training.host import Host
from hfkd.training.run_identity import FILE, RunRecord, read
from hfkd.training.statistics import scan_of

logger = logging.getLogger(__name__)

ENERGY_TEMPERATURE = 4.0  # if no slot has one


@dataclass(frozen=True)
class Probe:
    """The energies of some rows at one temperature, with device and precision, which determine the tolerance."""

    rows: list[int]
    energies: list[float]
    energy_temperature: float
    device: str
    precision: str

    @classmethod
    def of(cls, trainer: Host, scan: TeacherScan | None) -> "Probe | None":
        """From the scan used to fit thresholds, else from a few rows if the run saves checkpoints; else None."""
        reader = None if scan else _reader(trainer, _temperature(trainer))
        if scan is None and (reader is None or trainer.args.save_strategy == "no"):
            return None
        rows = spread_rows(len(scan.rows.energy) if scan else len(original_images(trainer.train_dataset)))
        found = None if reader is None else reader.means(rows)
        energies = scan.rows.energy[rows] if scan else None if found is None else found[0][:, 0]
        if energies is None:
            return None
        known = [(row, energy) for row, energy in zip(rows, energies.tolist(), strict=True) if math.isfinite(energy)]
        device, precision = trainer.args.device.type, str(trainer.accelerator.mixed_precision)
        numbers, values = [row for row, _ in known], [energy for _, energy in known]
        return cls(numbers, values, _temperature(trainer), device, precision)

    def check(self, trainer: Host, file: Path) -> None:
        """Raise ValueError, on all ranks, unless the trainer's teacher and rows reproduce these energies."""
        fault = self._fault(trainer) if self.rows else None
        if not everywhere(fault is None, trainer.accelerator):
            raise ValueError(
                f"{file} is from a run with another teacher or other training rows: {fault or 'on another rank'}; "
                "resume with the original teacher and rows, or choose another output_dir"
            )

    def _fault(self, trainer: Host) -> str | None:
        dataset = original_images(trainer.train_dataset)
        if not map_style(dataset):
            return None
        if len(dataset) <= max(self.rows):
            return f"it had a row {max(self.rows)}, but there are only {len(dataset)} rows now"
        stored = torch.tensor(self.energies)[:, None]
        if trainer.teacher is not None and not trainer.teacher.networks:
            rows: Any = dataset
            found = scan_of(trainer, [rows[row] for row in self.rows], energy_temperature=self.energy_temperature)
            return disagreement(["energy"], self.rows, stored, found.energy[:, None], torch.full((len(stored),), 1e-4))
        reader = _reader(trainer, self.energy_temperature)
        live = None if reader is None else reader.means(self.rows)
        if reader is None or live is None:
            return None
        devices = reader.device.type, self.device
        share = max(tolerance(reader.teacher, precision, *devices) for precision in (reader.precision, self.precision))
        return disagreement(["energy"], self.rows, stored, live[0][:, :1], live[1] * share)


def checked_probe(trainer: Host, checkpoint: str | None) -> Probe | None:
    """The probe of `checkpoint`, after checking it; None if there is none."""
    earlier = read(checkpoint)
    values = None if earlier is None else earlier.probe
    try:
        probe = None if values is None else Probe(**values)
    except TypeError:  # written by another version
        probe = None
    if probe is not None:
        probe.check(trainer, Path(checkpoint or ".") / FILE)
    return probe


def probed(trainer: Host, probe: Probe | None, scan: TeacherScan | None) -> RunRecord:
    """The trainer's record with `probe`, or with a new one."""
    if probe is None:
        probe = Probe.of(trainer, scan)
        if probe is not None and scan is None:
            _warn_of_thresholds(trainer.distillation_loss.temperature, probe.energies)
    return replace(trainer.record, probe=None if probe is None else asdict(probe))


def _warn_of_thresholds(slot: Any, energies: list[float]) -> None:
    """Warn if given (not fitted) thresholds have all probed rows on one side."""
    thresholds = slot.thresholds_or_none if isinstance(slot, Fitted) and slot.level == "sample" else None
    if not thresholds or len(energies) < PROBED:
        return
    side = "below" if max(energies) < min(thresholds) else "above" if min(energies) > max(thresholds) else None
    if side is not None:
        logger.warning(
            "The teacher's energies of %d training rows run from %.4g to %.4g, all %s the given thresholds %s: "
            "check that these are for this teacher and this energy_temperature (%g).",
            len(energies), min(energies), max(energies), side, thresholds, slot.energy_temperature,
        )  # fmt: skip


def _temperature(trainer: Host) -> float:
    slot = trainer.distillation_loss.temperature
    return slot.energy_temperature if isinstance(slot, Fitted) else ENERGY_TEMPERATURE


def _reader(trainer: Host, energy_temperature: float) -> RowReader | None:
    """None without a live teacher that is used, and for a stream, whose rows can be read only once.

    Also None if the teacher's inputs depend on the student (`Task.follows_student`).
    """
    dataset = trainer.train_dataset
    if trainer.task.follows_student:
        return None
    if trainer.teacher is None or not trainer.teacher.networks or not trainer.distillation_loss.kd_weight:
        return None
    if not map_style(dataset):
        return None
    return RowReader(
        trainer.teacher,
        seen(original_images(dataset), "train"),
        trainer.training_collator,
        trainer.task,
        # No more rows at a time than a step has, whose memory is there; of a vocabulary, whose logits take much, one.
        1 if trainer.task.vocabulary else min(PROBED, trainer.args.per_device_train_batch_size),
        energy_temperature,
        entropy_temperature=3.0,
        num_classes=trainer.num_classes,
        precision=str(trainer.accelerator.mixed_precision),
    )
