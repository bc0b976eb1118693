"""Run by every rank of a test: train an objective on features in float64; rank 0 writes what came of it."""

import json
import sys

import torch
from toys import CLASSES, Rows, arguments

from hfkd import DistillationTrainer
from hfkd.models import image_classifier


class Indexed(Rows):
    """With numbers of rows, in float64."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"index": i, "pixel_values": row["pixel_values"].double()}


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    slots = {k: keywords.pop(k) for k in ("objective", "temperature", "weighting") if k in keywords}
    torch.manual_seed(0)
    student, teacher = (image_classifier(name, CLASSES).double() for name in ("cifar_resnet8", "cifar_resnet14"))
    args = arguments(out, learning_rate=keywords.pop("learning_rate", 0.01), **keywords)
    trainer = DistillationTrainer(student, teacher, args, train_dataset=Indexed(16, size=32), **slots)
    trainer.distillation_loss.double()
    trainer.train()
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        learned = {f"loss.{name}": value for name, value in trainer.distillation_loss.state_dict().items()}
        # Running statistics are those of rank 0's batches.
        own = {k: v for k, v in (weights | learned).items() if "running" not in k and "num_batches" not in k}
        torch.save(own, f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history}, file)
