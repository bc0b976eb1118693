"""Run by every rank of a test: store a teacher's outputs, train from them, and write what came out on rank 0."""

import json
import sys

import torch
from accelerate import Accelerator
from text_toys import language_model, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.teachers import CachedTextTeacher, build_text_cache

if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    args = arguments(out, **keywords)
    build = {"k": 4, "temperatures": [2.0], "dtype": "float32", "shard_rows": 5, "progress_bar": False}
    build_text_cache(taught_model(), token_dataset(), f"{out}/cache", accelerator=Accelerator(cpu=True), **build)
    trainer = DistillationTrainer(
        language_model(),
        CachedTextTeacher(f"{out}/cache"),
        args,
        processing_class=tokenizer(),
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(13, seed=3),
    )
    trainer.train()
    score = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "scores": score}, file)
