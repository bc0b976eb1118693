"""Checkpoints that are there whole or not at all, whenever a job is killed or a disk is full."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState
from transformers.trainer import SCALER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from hfkd.training.checkpoints.manifest import MANIFEST, files_in, incomplete, write_manifest
from hfkd.training.host import Host
from hfkd.utils.files import REMEDIES, sync
from hfkd.utils.json_file import write_json
from hfkd.utils.saved_weights import SAVED, list_weights
from hfkd.utils.setting_types import resume_choice

UNFINISHED = "_unfinished"  # a name that Trainer never uploads
OWN_UNFINISHED = re.compile(rf"(old-)?{PREFIX_CHECKPOINT_DIR}-\d+|model")
PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")  # as `write_atomically` names what it has not finished
# What Trainer reads beside the weights: without it a resumed run is another one.
# FSDP and DeepSpeed have folders of their own, optimizer_0 and global_step4.
STATE_FILES = {
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "learning rate schedule": ("scheduler.pt", "global_step*"),
    "random numbers": ("rng_state*.pth",),
}
# torch.save tells of a disk by a RuntimeError: from its archive, its C++ stream, or opening the file
OF_THE_DISK = ("inline_container", "iostream", "Parent directory", "cannot be opened")
logger = logging.getLogger(__name__)


class WholeCheckpoints:
    """Writes a checkpoint into `output_dir/_unfinished`, and gives it its name when all of it is on disk.

    Trainer itself writes into `checkpoint-N` file by file, and deletes an old one file by file: a kill between two
    files leaves a folder that resumes with a fresh optimizer and says nothing. `last_checkpoint` finds whole ones.
    Raises OSError naming the checkpoint when it cannot be written; nothing of it is left.
    `write`, `load`: what Trainer itself does.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.writing = False
        self.start: str | None = None
        self._listed = False  # whether that checkpoint has a list of its files

    def start_from(self, checkpoint: str | None) -> None:
        """Delete what an earlier process left unfinished, and know where training starts. Every rank calls it."""
        self.start = checkpoint
        self._listed = checkpoint is not None and (Path(checkpoint) / MANIFEST).exists()
        if self.host.args.should_save:
            remove_unfinished(self.host.args.output_dir)
        self.host.accelerator.wait_for_everyone()

    def refuse_shorter(self, max_steps: int) -> None:
        """Raise ValueError where training starts from a checkpoint of more steps than it is to have."""
        if self.start is not None:
            refuse_shorter(self.start, max_steps, self.host.args)

    def refuse_changed(self, checkpoint: str | None) -> None:
        """Raise ValueError where a checkpoint lost a file while it was read: another process has rotated it away."""
        if checkpoint is None or not self._listed:
            return
        if fault := incomplete(checkpoint):
            raise ValueError(
                f"{checkpoint} was changed or deleted while it was read ({fault}): resume from another checkpoint, "
                "in a folder that no other process writes to"
            )

    def folder(self, output_dir: str) -> str:
        return os.path.join(output_dir, UNFINISHED) if self.writing else output_dir

    def save(self, write: Callable[[], None], folder: str) -> str:
        """A checkpoint below `folder`. Returns its path."""
        host, state = self.host, self.host.state
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        final, part = os.path.join(folder, name), os.path.join(folder, UNFINISHED, name)
        with _named_errors(final, Path(folder) / UNFINISHED):
            self.writing = True
            try:
                write()
            finally:
                self.writing = False
            host.accelerator.wait_for_everyone()  # each process writes the state of its own random numbers
            if state.best_model_checkpoint == part:
                state.best_model_checkpoint = final
            if host.args.should_save:
                write_json(os.path.join(part, TRAINER_STATE_NAME), state)  # Trainer's own has bare NaN
                _give_name(Path(part), Path(final))
                _rotate(folder, host.args.save_total_limit, {final, state.best_model_checkpoint})
        host.accelerator.wait_for_everyone()
        return final

    def save_model(self, write: Callable[[str | None], None], output_dir: str | None) -> None:
        """The student's files, each whole: written elsewhere first where they are not part of a checkpoint."""
        if self.writing or not self.host.args.should_save:
            return write(output_dir)
        folder = Path(output_dir or self.host.args.output_dir or ".")
        part = folder / UNFINISHED / "model"
        with _named_errors(folder, folder / UNFINISHED):
            _remove(part)  # what a job that was killed here had written
            write(str(part))
            saved = files_in(part)
            (folder / SAVED).unlink(missing_ok=True)  # until all of what it lists is in its place
            for file in saved:
                sync(file)
                (folder / file.relative_to(part)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, folder / file.relative_to(part))
            list_weights(folder, [file.relative_to(part).as_posix() for file in saved])
            _remove(part)

    def warn_of_random_numbers(self, checkpoint: str | None) -> None:
        """Say so where the checkpoint was written by another number of processes, and has no state of this one's."""
        if checkpoint is None or (Path(checkpoint) / self._random_numbers).exists():
            return
        if any(Path(checkpoint).glob("rng_state*.pth")):
            logger.warning(
                "%s was written by another number of processes and has no %s: random numbers (dropout, transforms of "
                "your own) start anew, and the run differs from one that was never stopped where it draws any",
                checkpoint,
                self._random_numbers,
            )

    @property
    def _random_numbers(self) -> str:
        args = self.host.args
        return f"rng_state_{args.process_index}.pth" if args.world_size > 1 else "rng_state.pth"

    def load_scaler(self, load: Callable[[str | None], None], checkpoint: str | None) -> None:
        """Trainer does not ask whether this run has a scaler; one in another precision than fp16 has none."""
        if self.host.accelerator.scaler is not None:
            load(checkpoint)
        elif checkpoint is not None and (Path(checkpoint) / SCALER_NAME).exists():
            logger.warning("%s holds the %s of a run in fp16, and this one is not: it is left", checkpoint, SCALER_NAME)


class OwnBest(TrainerCallback):
    """The best checkpoint of a resumed run is the one beside it: the path in its state is of before it was moved."""

    def __init__(self, whole: WholeCheckpoints) -> None:
        self.whole = whole

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        start = self.whole.start
        if start is None or not (Path(start) / TRAINER_STATE_NAME).is_file():
            return
        recorded = TrainerState.load_from_json(os.path.join(start, TRAINER_STATE_NAME)).best_model_checkpoint
        beside = Path(start).parent / Path(recorded or "").name
        if not recorded or os.path.realpath(recorded) == os.path.realpath(beside):
            return
        if incomplete(beside) is None:
            state.best_model_checkpoint = str(beside)
            logger.info("The best checkpoint is %s, which was in %s", beside, recorded)
        elif state.best_model_checkpoint is not None and args.load_best_model_at_end:
            logger.warning("The best checkpoint of the resumed run is in another folder: %s", recorded)


class SaveAfterEvaluation(TrainerCallback):
    """Puts off a checkpoint at an epoch's last step until the epoch's evaluation is in it.

    Trainer saves first: a job killed while it evaluates would resume behind the evaluation and never do it.
    """

    def __init__(self) -> None:
        self._due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._due = False  # whatever an attempt that was stopped had put off

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if control.should_save and (control.should_training_stop or float(state.epoch).is_integer()):
            self._due, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        control.should_save, self._due = control.should_save or self._due, False


def checkpoint_to_resume(wanted: str | bool | None, folder: str | Path | None) -> str | None:
    """Trainer's `resume_from_checkpoint` as a path, whole; True is the last whole checkpoint of `folder`.

    Every file's checksum is compared. Raises ValueError where there is none. A named checkpoint without a list of its
    files (plain Trainer's) is taken; whichever it is, a warning says what it lacks to go on as if never stopped.
    """
    wanted = resume_choice(wanted)
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        last = last_checkpoint(folder, contents=True)
        if last is None:
            raise ValueError(
                f"No valid checkpoint found in output directory ({folder}): there is no complete checkpoint to resume "
                "from; start anew without resume_from_checkpoint"
            )
        _warn_of_missing_state(last)
        return last
    fault = incomplete(wanted, contents=True)
    if fault is not None and ((Path(wanted) / MANIFEST).exists() or not (Path(wanted) / TRAINER_STATE_NAME).exists()):
        raise ValueError(
            f"Can't find a valid checkpoint at {wanted} (resume_from_checkpoint), it is no complete one: {fault}; name "
            "another one"
        )
    _warn_of_missing_state(wanted)
    return wanted


def _warn_of_missing_state(checkpoint: str) -> None:
    missing = [
        what for what, names in STATE_FILES.items() if not any(any(Path(checkpoint).glob(name)) for name in names)
    ]
    if missing:
        logger.warning(
            "%s holds no state of the %s: the resumed run starts these anew, and differs from one that was never "
            "stopped",
            checkpoint,
            ", nor of the ".join(missing),
        )


def refuse_shorter(checkpoint: str, max_steps: int, args: Any) -> None:
    """Raise ValueError for a checkpoint of more steps than the run is to have: its student has learned for longer."""
    step = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
    if step > max_steps:
        raise ValueError(
            f"{checkpoint} has been trained for {step} steps, and this run ends at step {max_steps} "
            f"(num_train_epochs={args.num_train_epochs}, max_steps={args.max_steps}): train for as long at least, or "
            "choose another output_dir"
        )


def last_checkpoint(folder: str | Path | None, contents: bool = False) -> str | None:
    """The newest whole checkpoint in `folder`; others are passed over with a message. contents: see `incomplete`."""
    found = [p for p in Path(folder or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        fault = incomplete(path, contents)
        if fault is None:
            return str(path)
        logger.warning("%s is not complete and is passed over: %s", path, fault)
    return None


def remove_unfinished(folder: str | Path | None) -> None:
    """Delete what an earlier process was writing into `folder` when it was stopped: its own names, and through no link.

    Raises ValueError where the folder of unfinished things is a link.
    """
    folder = Path(folder or ".")
    left = folder / UNFINISHED
    if left.is_symlink():
        raise ValueError(
            f"{left} is a link, and checkpoints are written there: remove it, or choose another output_dir"
        )
    ours = [path for path in left.glob("*") if OWN_UNFINISHED.fullmatch(path.name)]
    ours += [path for path in folder.glob(".*.part") if PART.fullmatch(path.name)]
    for path in ours:
        if not path.is_symlink():
            logger.warning("%s was left half done by a job that was stopped, and is deleted", path)
            _remove(path)
    with suppress(OSError):
        left.rmdir()


def _give_name(part: Path, final: Path) -> None:
    write_manifest(part)
    if final.exists():  # of an earlier run, which got this far
        _discard(final)
    os.replace(part, final)
    with suppress(OSError):  # not every file system syncs folders
        sync(final.parent)
    with suppress(OSError):
        part.parent.rmdir()


def _rotate(folder: str, limit: int | None, kept: Collection[str | None]) -> None:
    """Trainer's rule, but a checkpoint that goes loses its name first, and the new one stays, whatever the clock says.

    A folder of such a name without a training's state is somebody's own. kept: the new one and the best one, if there
    is one.
    """
    found = [path for path in sort_checkpoints(folder, use_mtime=True) if (Path(path) / TRAINER_STATE_NAME).exists()]
    kept = {str(Path(path)) for path in kept if path}
    too_many = len(found) - max(limit, len(kept)) if limit and limit > 0 else 0
    for path in [path for path in found if path not in kept][: max(too_many, 0)]:
        _discard(Path(path))


def _discard(checkpoint: Path) -> None:
    nameless = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    _remove(nameless)
    nameless.parent.mkdir(exist_ok=True)
    os.replace(checkpoint, nameless)
    _remove(nameless)


def _remove(path: Path) -> None:
    """`path` and, if it is empty then, the folder of unfinished things it lies in. Of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.parent.name == UNFINISHED:
        with suppress(OSError):
            path.parent.rmdir()


@contextmanager
def _named_errors(target: str | Path, unfinished: Path) -> Iterator[None]:
    """What cannot be written is an OSError that names `target`, any other error itself; `unfinished` is emptied."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        _remove(unfinished)
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OF_THE_DISK):
            raise  # such as a device out of memory
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        folder = isinstance(error, IsADirectoryError)
        remedy = REMEDIES[errno.EISDIR] if folder else "is the disk full, or the folder not writable?"
        raise OSError(f"cannot write {target}: {reason}; {remedy}") from error
