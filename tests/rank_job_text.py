"""Run by every rank of a test: train a small language model and write parameters and logs of rank 0."""

import json
import sys

import torch
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer

if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    trainer = DistillationTrainer(
        language_model(),
        taught_model(),
        arguments(out, **keywords),
        processing_class=tokenizer(),
        train_dataset=TokenRows(),
        eval_dataset=TokenRows(13, seed=3),
    )
    trainer.train()
    score = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "scores": score}, file)
