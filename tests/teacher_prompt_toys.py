"""Rows whose teacher reads a prompt of its own, and a trainer for them. Run by every rank of a test, too."""

import json
import random
import sys

import torch
from datasets import Dataset
from text_toys import language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.text import tokenize_dataset

SAID = ["a", "b", "c", "d", "you", "me", "one", "two", "three"]
TEACHERS = ["teacher_input_ids", "teacher_labels", "teacher_length"]  # columns


def texts(n=16, seed=0):
    draw = random.Random(seed)

    def some(low, high):
        return " ".join(draw.choices(SAID, k=draw.randint(low, high)))

    given = [(f"ask {some(0, 3)}", some(1, 6), f"{some(1, 9)} ask") for _ in range(n)]
    return Dataset.from_list([{"prompt": p, "completion": f" {c}", "teacher_prompt": t} for p, c, t in given])


def rows(n=16, seed=0, **keywords):
    return tokenize_dataset(texts(n, seed), tokenizer(), **{"max_length": 24, "max_prompt_length": 12} | keywords)


def without(*names):
    return [{name: value for name, value in row.items() if name not in names} for row in rows(4)]


def trainer(folder, networks=None, data=None, scored=None, args=None, **keywords):
    given = {"train_dataset": rows() if data is None else data, "processing_class": tokenizer()} | keywords
    made = arguments(folder, **args or {})
    return DistillationTrainer(*(networks or (language_model(), taught_model())), made, eval_dataset=scored, **given)


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    slots = {name: keywords.pop(name) for name in ("temperature", "weighting")}
    networks = language_model().double(), taught_model().double()
    run = trainer(out, networks, scored=rows(6, seed=3), args=keywords, **slots)
    run.train()
    score = run.evaluate()
    if run.is_world_process_zero():
        torch.save(run.accelerator.unwrap_model(run.model).state_dict(), f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump({"scores": score, "thresholds": run.distillation_loss.temperature.thresholds}, file)
