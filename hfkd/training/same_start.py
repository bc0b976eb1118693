"""Compares what the processes of a run begin with.

They meet in every step, and each takes its share of the rows: one that has other rows or another number of them would
leave the others waiting, or train on something else, without a word. What differs is raised on all. (For checkpoints
see `WholeCheckpoints.to_resume`.)
"""

import logging
from typing import Any

from hfkd.arguments import DistillationArguments
from hfkd.data.streams import due_at_epochs
from hfkd.training.first_batch import own_loader
from hfkd.training.lock import NOBODY, owner_of
from hfkd.training.run_identity import TRAINING
from hfkd.utils.command import without_addresses
from hfkd.utils.ranks import of_each

ROWS = "train_dataset"
SHARED = (
    "pass the same path to all processes (a time in it may differ), on a file system that all machines share, or set "
    "save_on_each_node=True"
)
logger = logging.getLogger(__name__)


def refuse_other_start(trainer: Any) -> None:
    """Raise ValueError if processes have other training rows or settings, or need a folder that they do not have."""
    owner = NOBODY if trainer.args.save_on_each_node else owner_of(trainer.args.output_dir or ".")
    (first, its), *others = of_each((_begun_with(trainer), owner))
    for rank, (other, _) in enumerate(others, 1):
        name = next((name for name in first if other.get(name) != first[name]), None)
        if name == ROWS:
            raise ValueError(
                f"rank {rank} has other training rows ({other[ROWS]}) than rank 0 ({first[ROWS]}). Each process takes "
                "its share of them, so that some would never be read: pass all rows to every process, without sharding "
                "them before, and split or shuffle them with a seed"
            )
        if name is not None:
            raise ValueError(
                f"rank {rank} has {name}={other.get(name)} and rank 0 {name}={first[name]}, but the processes of a run "
                "take the same steps: give all the same settings"
            )
    apart = [rank for rank, (_, other) in enumerate(others, 1) if other != its]
    if apart and its != NOBODY:
        _say_apart(trainer, apart[0])


def _begun_with(trainer: Any) -> dict[str, Any]:
    record, config = trainer.record, trainer.accelerator.dataloader_config
    shared = not (own_loader(trainer) or config.dispatch_batches)  # each process reads them by itself
    rows = {ROWS: ", ".join(map(str, filter(None, (record.data, record.rows))))} if shared else {}
    training = {name: value for name, value in (record.training or {}).items() if name in TRAINING}
    settings = {name: without_addresses(v) if isinstance(v, str) else v for name, v in training.items()}
    return {"seed": record.seed, **settings, **(record.order or {}), **rows}


def _say_apart(trainer: Any, rank: int) -> None:
    """Raise ValueError, or warn, that a process does not have the folder of checkpoints."""
    args = trainer.args
    apart = f"output_dir={args.output_dir} of rank {rank} is not the folder of rank 0, to which checkpoints are written"
    if args.load_best_model_at_end:
        raise ValueError(f"{apart}, so that it could not load the best one (load_best_model_at_end): {SHARED}")
    if args.save_strategy != "no" and trainer.is_world_process_zero():
        logger.warning("%s: they lack its random state, and it cannot resume from them. To resume, %s.", apart, SHARED)


def refuse_other_lengths(args: DistillationArguments, steps_per_epoch: int, max_steps: int) -> None:
    """Raise ValueError if processes would take another number of steps, or end their epochs at other ones."""
    epochs = due_at_epochs(args)
    first, *others = of_each((max_steps, steps_per_epoch if epochs else None))
    for rank, other in enumerate(others, 1):
        if other != first:
            each, mine = (f"{a} steps" + (f", {b} an epoch" if b else "") for a, b in (other, first))
            raise ValueError(
                f"the training loader of rank {rank} gives {each}, and that of rank 0 {mine}, so that one would wait "
                "for the other for ever: let each process have as many batches, or set max_steps, and evaluate, log "
                "and save by steps"
            )
