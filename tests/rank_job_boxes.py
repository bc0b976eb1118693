"""Run by every rank of a test: steps of a detector in float64, and the student and what was logged, of rank 0."""

import json
import sys

import torch
from detection_toys import EVERY, boxed, detector
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.boxes import BoxCollator


def in_float64(rows):
    batch = BoxCollator()(rows)
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def count_images(prediction):
    found, there = prediction.predictions, prediction.label_ids
    return {"images": len(found["boxes"]), "boxes": int((there["labels"] > 0).sum())}


if __name__ == "__main__":
    out, settings = sys.argv[1], json.loads(sys.argv[2])
    student, teacher = detector(**EVERY).double(), detector(8, seed=1, sharp=20.0).double()
    data = {"train_dataset": boxed((2, 0, 1, 3, 1, 2, 0, 1)), "eval_dataset": boxed((1, 2, 0, 3, 1), seed=4)}
    more = {"data_collator": in_float64, "compute_metrics": count_images}
    trainer = DistillationTrainer(student, teacher, arguments(out, **settings), **data, **more)
    trainer.train()
    scores = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "scores": scores}, file)
