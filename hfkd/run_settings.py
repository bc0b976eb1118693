"""What decides the result of a run, by name, for results.json, the page and the card."""

from typing import TYPE_CHECKING, Any

from hfkd.high_energy import added_images

if TYPE_CHECKING:
    from hfkd.trainer import DistillationTrainer

TRAINING = (
    *("learning_rate", "num_train_epochs", "max_steps", "optim", "optim_args", "weight_decay", "max_grad_norm"),
    *("seed", "bf16"),
)


def run_settings(trainer: "DistillationTrainer") -> dict[str, Any]:
    """The networks, the slots and the training of `trainer`; of the accelerator what it does, whoever asked for it."""
    args, accelerator = trainer.args, trainer.accelerator
    networks = {"teacher": trainer.record.teacher, "student": trainer.record.student}
    training = {name: getattr(args, name) for name in TRAINING} | _schedule(args)
    launched = {
        "mixed_precision": str(accelerator.mixed_precision),
        "world_size": args.world_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    return networks | trainer.record.loss | training | launched | added_images(args, trainer.train_dataset)


def _schedule(args: Any) -> dict[str, Any]:
    """How the learning rate changes: by steps after epochs, or by one of Trainer's schedules."""
    if args.lr_decay_epochs is not None:
        how: dict[str, Any] = {name: getattr(args, name) for name in ("lr_decay_epochs", "lr_decay_factor")}
    else:
        how = {"lr_scheduler_type": str(args.lr_scheduler_type.value)}
        how |= {"lr_scheduler_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    return how | {"warmup_steps": args.warmup_steps}
