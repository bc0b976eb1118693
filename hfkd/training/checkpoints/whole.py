"""Atomic checkpoints: each is complete or absent, even if a job is killed or the disk is full."""

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

from hfkd.data.first_rows import map_style
from hfkd.training.checkpoints.manifest import MANIFEST, files_in, incomplete, write_manifest
from hfkd.training.host import Host
from hfkd.utils.files import REMEDIES, sync
from hfkd.utils.json_file import write_json
from hfkd.utils.ranks import of_each
from hfkd.utils.saved_weights import SAVED, list_weights
from hfkd.utils.setting_types import resume_choice

CARD = "README.md"
UNFINISHED = "_unfinished"  # a name that Trainer never uploads
OWN_UNFINISHED = re.compile(rf"(old-)?{PREFIX_CHECKPOINT_DIR}-\d+|model")
PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")  # the temporary files of `write_atomically`
# What Trainer reads besides the weights; without it a resumed run differs. FSDP and DeepSpeed write folders, such as
# optimizer_0 and global_step4.
STATE_FILES = {
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "learning rate schedule": ("scheduler.pt", "global_step*"),
    "random numbers": ("rng_state*.pth",),
}
# torch.save reports disk errors as RuntimeError: from its archive, its C++ stream, or opening the file
OF_THE_DISK = ("inline_container", "iostream", "Parent directory", "cannot be opened")
logger = logging.getLogger(__name__)


class WholeCheckpoints:
    """Writes a checkpoint into `output_dir/_unfinished`, and renames it when all of it is on disk.

    Trainer itself writes into `checkpoint-N` file by file, and deletes an old one file by file: if the job is killed in
    between, it leaves a folder that silently resumes with a new optimizer. `last_checkpoint` finds complete ones.
    Raises OSError naming a checkpoint that cannot be written, and removes what was written of it. `write` and `load`
    are the corresponding functions of Trainer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.writing = False
        self.start: str | None = None
        self._listed = False  # whether that checkpoint has a manifest

    def to_resume(self, wanted: str | bool | None) -> str | None:
        """`checkpoint_to_resume`. Raises ValueError on every rank if ranks find checkpoints of different steps.

        Each rank looks by itself, and what they exchange would be of different steps.
        """
        refused = None
        try:
            found = checkpoint_to_resume(wanted, self.host.args.output_dir)
        except ValueError as error:
            found, refused = None, error
        steps = of_each("none" if refused else f"step {_step_of(found)}")
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes would start at different checkpoints ({', '.join(steps)}): "
                f"{self.host.args.output_dir} has to be one folder for all of them, on a file system that all machines "
                "share; or copy its checkpoints to each machine"
            ) from refused
        if refused is not None:
            raise refused
        return found

    def start_from(self, checkpoint: str | None) -> None:
        """Delete unfinished files of an earlier process, and record where training starts. Called on every rank."""
        self.start = checkpoint
        self._listed = checkpoint is not None and (Path(checkpoint) / MANIFEST).exists()
        if self.host.args.should_save:
            remove_unfinished(self.host.args.output_dir)
        self.host.accelerator.wait_for_everyone()

    def say_earlier(self) -> None:
        """Warn of checkpoints that an earlier training has left in the folder of one that starts anew."""
        paths = _newest_first(self.host.args.output_dir) if self.host.args.should_save else []
        last = next((path for path in paths if (path / TRAINER_STATE_NAME).exists()), None)
        if last is not None:
            logger.warning(
                "%s is from an earlier training, and this one starts at step 0: until it has a checkpoint of a later "
                "step, resume_from_checkpoint=True goes on with the earlier one. Delete its checkpoints, or choose "
                "another output_dir, if this training may have to be resumed.",
                last,
            )

    def refuse_other_lengths(self, max_steps: int, steps_per_epoch: int) -> None:
        """Raise ValueError if training starts from a checkpoint of more steps than the run is to have, or of epochs of
        another length.
        """
        if self.start is not None:
            state = _state_of(self.start)
            refuse_shorter(self.start, state, max_steps, self.host.args)
            if map_style(self.host.train_dataset):  # a stream may be shorter than it says
                refuse_other_epochs(self.start, state, steps_per_epoch, self.host.args)

    def refuse_changed(self, checkpoint: str | None) -> None:
        """Raise ValueError if a checkpoint changed while it was read, such as when another process deleted it."""
        if checkpoint is None or not self._listed:
            return
        if fault := incomplete(checkpoint):
            raise ValueError(
                f"{checkpoint} was changed or deleted while it was being read ({fault}): resume from another "
                "checkpoint, in a folder to which no other process writes"
            )

    def folder(self, output_dir: str) -> str:
        return os.path.join(output_dir, UNFINISHED) if self.writing else output_dir

    def save(self, write: Callable[[], None], folder: str) -> str:
        """Write a checkpoint into `folder` and return its path."""
        host, state = self.host, self.host.state
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        final, part = os.path.join(folder, name), os.path.join(folder, UNFINISHED, name)
        with _named_errors(final, Path(folder) / UNFINISHED):
            self.writing = True
            try:
                write()
            finally:
                self.writing = False
            host.accelerator.wait_for_everyone()  # each process writes the state of its random generators
            # Trainer asks whether the folder exists, which another machine may not know of a new one.
            if of_each(state.best_model_checkpoint == part)[0]:
                state.best_model_checkpoint = final
            if host.args.should_save:
                write_json(os.path.join(part, TRAINER_STATE_NAME), state)  # Trainer writes bare NaN, which is not JSON
                _give_name(Path(part), Path(final))
                _rotate(folder, host.args.save_total_limit, {final, state.best_model_checkpoint})
        host.accelerator.wait_for_everyone()
        return final

    def delete_all_but_best(self, folder: str) -> None:
        """With `save_total_limit=1` the last checkpoint in `folder` is deleted at the end, if another is the best."""
        host, best = self.host, self.host.state.best_model_checkpoint
        if host.args.should_save and best is not None and host.args.save_total_limit == 1:
            _rotate(folder, 1, {best})

    def warn_without_best(self) -> None:
        """Warn if the best weights were to be loaded at the end, and no evaluation has made any the best."""
        args, state = self.host.args, self.host.state
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            logger.warning(
                "load_best_model_at_end=True, but there is no best checkpoint: %s. The student has the weights of the "
                "last step, %d.",
                f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')} was never a number"
                if any("eval_runtime" in entry for entry in state.log_history)
                else "there was no evaluation (see eval_delay)",
                state.global_step,
            )

    def save_model(self, write: Callable[[str | None], None], output_dir: str | None) -> None:
        """Write the student's files atomically: outside of a checkpoint, to another folder first."""
        if self.writing or not self.host.args.should_save:
            return write(output_dir)
        folder = Path(output_dir or self.host.args.output_dir or ".")
        part = folder / UNFINISHED / "model"
        with _named_errors(folder, folder / UNFINISHED):
            _remove(part)  # left over from a job that was killed here
            write(str(part))
            if (folder / CARD).exists():
                (part / CARD).unlink(missing_ok=True)  # PEFT's, a form to fill in
            saved = files_in(part)
            (folder / SAVED).unlink(missing_ok=True)  # it is written again once all files are in place
            for file in saved:
                sync(file)
                (folder / file.relative_to(part)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, folder / file.relative_to(part))
            list_weights(folder, [file.relative_to(part).as_posix() for file in saved])
            _remove(part)

    def forget_checksums(self) -> None:
        """Delete the checksums of an earlier student in `output_dir`, into which Trainer copies weights to upload."""
        if self.host.args.should_save:
            (Path(self.host.args.output_dir or ".") / SAVED).unlink(missing_ok=True)

    def warn_of_random_numbers(self, checkpoint: str | None) -> None:
        """Warn if the checkpoint was written by another number of processes and has no random state for this one."""
        if checkpoint is None or (Path(checkpoint) / self._random_numbers).exists():
            return
        if any(Path(checkpoint).glob("rng_state*.pth")):
            logger.warning(
                "%s was written by another number of processes and has no %s: random generators (for dropout, "
                "custom transforms) are not restored, so that a run that uses them differs from an uninterrupted one",
                checkpoint,
                self._random_numbers,
            )

    @property
    def _random_numbers(self) -> str:
        args = self.host.args
        return f"rng_state_{args.process_index}.pth" if args.world_size > 1 else "rng_state.pth"

    def load_scaler(self, load: Callable[[str | None], None], checkpoint: str | None) -> None:
        """Load the gradient scaler if this run has one; only runs in fp16 do, which Trainer does not check."""
        if self.host.accelerator.scaler is not None:
            load(checkpoint)
        elif checkpoint is not None and (Path(checkpoint) / SCALER_NAME).exists():
            logger.warning(
                "%s has the %s of an fp16 run, and this run is not in fp16: it is ignored", checkpoint, SCALER_NAME
            )


class OwnBest(TrainerCallback):
    """Looks for the best checkpoint of a resumed run in the folder it is resumed from, which may have been moved."""

    def __init__(self, whole: WholeCheckpoints) -> None:
        self.whole = whole

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        start = self.whole.start
        if start is None or not (Path(start) / TRAINER_STATE_NAME).is_file():
            return
        recorded = _state_of(start).best_model_checkpoint
        beside = Path(start).parent / Path(recorded or "").name
        if not recorded or os.path.realpath(recorded) == os.path.realpath(beside):
            return
        if incomplete(beside) is None:
            state.best_model_checkpoint = os.path.abspath(beside)
            logger.info("The best checkpoint is %s, which was at %s before", beside, recorded)
        elif state.best_model_checkpoint is not None and args.load_best_model_at_end:
            logger.warning("The best checkpoint of the resumed run is in another folder: %s", recorded)


class SaveAfterEvaluation(TrainerCallback):
    """Delays a checkpoint at an epoch's last step until the epoch has been evaluated.

    Trainer saves first: a job killed during that evaluation would resume after it, and never run it.
    """

    def __init__(self) -> None:
        self._due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._due = False  # left over from an interrupted attempt

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if control.should_save and (control.should_training_stop or float(state.epoch).is_integer()):
            self._due, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._due = False  # the step was evaluated, and is the best so far

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        control.should_save, self._due = control.should_save or self._due, False


def checkpoint_to_resume(wanted: str | bool | None, folder: str | Path | None) -> str | None:
    """Trainer's `resume_from_checkpoint` as the path of a complete checkpoint; True means the last one in `folder`.

    Every file's checksum is compared. Raises ValueError if there is none. A named checkpoint without a manifest
    (written by plain Trainer) is accepted. A warning names what is missing for an exact resume.
    """
    wanted = resume_choice(wanted)
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        last = last_checkpoint(folder, contents=True)
        if last is None:
            raise ValueError(
                f"No valid checkpoint found in output directory ({folder}): there is no complete checkpoint to "
                "resume from; start a new run without resume_from_checkpoint"
            )
        _warn_of_missing_state(last)
        return last
    fault = incomplete(wanted, contents=True)
    if fault is not None and ((Path(wanted) / MANIFEST).exists() or not (Path(wanted) / TRAINER_STATE_NAME).exists()):
        raise ValueError(
            f"Can't find a valid checkpoint at {wanted} (resume_from_checkpoint): it is not complete: {fault}; "
            "choose another one"
        )
    _warn_of_missing_state(wanted)
    return wanted


def _step_of(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else _state_of(checkpoint).global_step


def _state_of(checkpoint: str) -> TrainerState:
    return TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))


def _warn_of_missing_state(checkpoint: str) -> None:
    missing = [
        what for what, names in STATE_FILES.items() if not any(any(Path(checkpoint).glob(name)) for name in names)
    ]
    if missing:
        logger.warning(
            "%s has no state of the %s: the resumed run starts without it, and differs from an uninterrupted one",
            checkpoint,
            ", nor of the ".join(missing),
        )


def refuse_shorter(checkpoint: str, state: TrainerState, max_steps: int, args: Any) -> None:
    """Raise ValueError for a checkpoint of more steps than the run is to have: its student has trained for longer."""
    step = state.global_step
    if step > max_steps:
        raise ValueError(
            f"{checkpoint} was trained for {step} steps, but this run ends at step {max_steps} "
            f"(num_train_epochs={args.num_train_epochs}, max_steps={args.max_steps}): train for at least as many "
            "steps, or choose another output_dir"
        )


def refuse_other_epochs(checkpoint: str, state: TrainerState, steps_per_epoch: int, args: Any) -> None:
    """Raise ValueError for a checkpoint whose steps are other epochs with the batches of this run.

    Trainer counts the epochs that are done by steps: with larger batches the run would end too soon, without a word.
    """
    step, epoch = state.global_step, state.epoch
    if args.max_steps > 0 or args.ignore_data_skip or not epoch:  # which begins an epoch again at a later step
        return
    within = abs(epoch - round(epoch)) > 1e-6  # where the last step of an epoch has fewer batches, by up to a step
    if abs(epoch * steps_per_epoch - step) <= (1 if within else 0.5):
        return
    raise ValueError(
        f"{checkpoint} is at epoch {epoch:g} after {step} steps, which with the batches of this run would count as "
        f"{step / steps_per_epoch:g} epochs of num_train_epochs={args.num_train_epochs:g}: keep the product of "
        "per_device_train_batch_size, gradient_accumulation_steps and the number of processes, or set max_steps to the "
        "number of steps in all"
    )


def last_checkpoint(folder: str | Path | None, contents: bool = False) -> str | None:
    """The newest complete checkpoint in `folder`; others are skipped with a warning. contents: see `incomplete`."""
    for path in _newest_first(folder):
        fault = incomplete(path, contents)
        if fault is None:
            return str(path)
        logger.warning("%s is not complete and is skipped: %s", path, fault)
    return None


def _newest_first(folder: str | Path | None) -> list[Path]:
    """What is called a checkpoint in `folder`, by its step."""
    found = [p for p in Path(folder or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def remove_unfinished(folder: str | Path | None) -> None:
    """Delete what an interrupted process left unfinished in `folder`: only hfkd's file names, never through a link.

    Raises ValueError if the folder of unfinished files is a link.
    """
    folder = Path(folder or ".")
    left = folder / UNFINISHED
    if left.is_symlink():
        raise ValueError(
            f"{left} is a symbolic link, and checkpoints would be written to its target: remove it, or choose "
            "another output_dir"
        )
    ours = [path for path in left.glob("*") if OWN_UNFINISHED.fullmatch(path.name)]
    ours += [path for path in folder.glob(".*.part") if PART.fullmatch(path.name)]
    for path in ours:
        if not path.is_symlink():
            logger.warning("Deleting %s, which an interrupted job left unfinished", path)
            _remove(path)
    with suppress(OSError):
        left.rmdir()


def _give_name(part: Path, final: Path) -> None:
    write_manifest(part)
    if final.exists():  # from an earlier run that reached this step
        _discard(final)
    os.replace(part, final)
    with suppress(OSError):  # not every file system can sync folders
        sync(final.parent)
    with suppress(OSError):
        part.parent.rmdir()


def _rotate(folder: str, limit: int | None, kept: Collection[str | None]) -> None:
    """Trainer's rule, but a checkpoint is renamed before it is deleted, and the new one stays even if the clock is off.

    A folder of such a name without a trainer state belongs to the user and stays. kept: the new checkpoint and the best
    one, if there is one; a resumed run may have another path to its folder than the one that the best is recorded with.
    """
    found = [path for path in sort_checkpoints(folder, use_mtime=True) if (Path(path) / TRAINER_STATE_NAME).exists()]
    kept = {os.path.realpath(path) for path in kept if path}
    too_many = len(found) - max(limit, len(kept)) if limit and limit > 0 else 0
    for path in [path for path in found if os.path.realpath(path) not in kept][: max(too_many, 0)]:
        _discard(Path(path))


def _discard(checkpoint: Path) -> None:
    nameless = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    _remove(nameless)
    nameless.parent.mkdir(exist_ok=True)
    os.replace(checkpoint, nameless)
    _remove(nameless)


def _remove(path: Path) -> None:
    """Delete `path` (of a link only the link) and, if empty then, the folder of unfinished files that contains it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.parent.name == UNFINISHED:
        with suppress(OSError):
            path.parent.rmdir()


@contextmanager
def _named_errors(target: str | Path, unfinished: Path) -> Iterator[None]:
    """Turn a write error into an OSError that names `target`, and delete `unfinished`; other errors pass through."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        _remove(unfinished)
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OF_THE_DISK):
            raise  # such as a device out of memory
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        folder = isinstance(error, IsADirectoryError)
        remedy = REMEDIES[errno.EISDIR] if folder else "check that the disk is not full and the folder is writable"
        raise OSError(f"cannot write {target}: {reason}; {remedy}") from error
