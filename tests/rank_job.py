"""Run by every rank of a test: train the toy pair and write parameters and logs of rank 0."""

import json
import sys

import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer

if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    slots = {k: keywords.pop(k) for k in ("objective", "temperature", "weighting") if k in keywords}
    evaluated_first = keywords.pop("evaluated_first", False)
    rows = Rows()
    if each := keywords.pop("unlabelled", 0):
        rows.labels[::each] = -100
    trainer = DistillationTrainer(
        Net(), teacher(), arguments(out, **keywords), train_dataset=rows, eval_dataset=Rows(13, seed=3), **slots
    )
    if evaluated_first:
        trainer.predict(Rows(13, seed=3))
        trainer.evaluate()
    trainer.train()
    score = trainer.evaluate()
    if trainer.is_world_process_zero():
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        learned = {f"loss.{name}": p.detach() for name, p in trainer.distillation_loss.named_parameters()}
        torch.save(unwrapped.state_dict() | learned, f"{out}/student.pt")
        record = {
            "log": trainer.state.log_history,
            "thresholds": getattr(trainer.distillation_loss.temperature, "thresholds_or_none", None),
        }
        with open(f"{out}/record.json", "w") as file:
            json.dump(record | {"eval_loss": score["eval_loss"]}, file)
