"""Run by every rank of a test: two steps of each kind of model, and the parameters of rank 0."""

import json
import sys

import torch
from task_toys import KINDS
from toys import arguments

from hfkd import DistillationTrainer


def trained(kind, out, **settings):
    """The student's parameters, and its loss on the rows."""
    student, teacher = kind.pair()
    made = DistillationTrainer(student, teacher, arguments(out, **settings), **kind.keywords(16))
    made.train()
    score = made.evaluate()["eval_loss"]
    return made.accelerator.unwrap_model(made.model).state_dict(), score


if __name__ == "__main__":
    out, settings = sys.argv[1], json.loads(sys.argv[2])
    names = settings.pop("kinds", list(KINDS))
    found = {name: trained(KINDS[name], f"{out}/run-{i}", **settings) for i, name in enumerate(names)}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save({name: parameters for name, (parameters, _) in found.items()}, f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({name: score for name, (_, score) in found.items()}, file)
