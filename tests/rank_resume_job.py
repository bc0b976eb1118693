"""A run on any number of ranks, from a checkpoint or the start: what it began with, its rows, its end."""

import json
from pathlib import Path

import torch
import xxhash
from resume_job import CASES
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer

STEPS, MIDDLE, BATCH = 12, 6, 8  # of 32 rows an epoch has four steps, so that the middle is within the second
SETTINGS = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": MIDDLE,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "learning_rate": 0.01,
    "logging_steps": 1,
}


class WithDropout(Net):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.dropout(super().forward(x))


class Beginning(TrainerCallback):
    """Hashes of everything that training starts with, once it is loaded."""

    def __init__(self, trainer):
        self.trainer, self.found = trainer, {}

    def on_train_begin(self, args, state, control, **keywords):
        trainer = self.trainer
        states = {
            "student": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
            "loss": trainer.distillation_loss.state_dict(),
            "optimizer": [one for _, one in sorted(trainer.optimizer.state_dict()["state"].items())],
            "schedule": trainer.lr_scheduler.state_dict()["last_epoch"],
            "step": state.global_step,
        }
        self.found = {name: _hash(value) for name, value in states.items()}
        self.found["thresholds"] = getattr(trainer.distillation_loss.temperature, "thresholds_or_none", None)


def _hash(value):
    digest = xxhash.xxh3_128()

    def add(part):
        if isinstance(part, torch.Tensor):
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for name, inner in sorted(part.items()):
                digest.update(str(name).encode())
                add(inner)
        elif isinstance(part, (list, tuple)):
            for inner in part:
                add(inner)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def train(folder, case, per_device, checkpoint=None, dropout=False, rows=32):
    """Each rank writes its rows, rank 0 the rest."""
    args = arguments(folder, **SETTINGS, per_device_train_batch_size=per_device)
    sets = {"train_dataset": Rows(rows), "eval_dataset": Rows(13, seed=3)}
    trainer = DistillationTrainer(WithDropout() if dropout else Net(), teacher(), args, **sets, **CASES[case])
    seen, inner = [], trainer.compute_loss

    def compute_loss(model, inputs, *arguments, **keywords):
        if model.training:
            seen.append((trainer.state.global_step, [f"{x:.5f}" for x in inputs["pixel_values"].sum((1, 2, 3))]))
        return inner(model, inputs, *arguments, **keywords)

    trainer.compute_loss = compute_loss
    beginning = Beginning(trainer)
    trainer.add_callback(beginning)
    trainer.train(resume_from_checkpoint=checkpoint)
    score = trainer.evaluate()
    folder = Path(folder)
    (folder / f"rows-{trainer.args.process_index}.json").write_text(json.dumps(seen))
    if trainer.is_world_process_zero():
        learned = {f"loss.{name}": p.detach() for name, p in trainer.distillation_loss.named_parameters()}
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict() | learned, folder / "end.pt")
        (folder / "end.json").write_text(json.dumps({"began": beginning.found, "eval_loss": score["eval_loss"]}))
