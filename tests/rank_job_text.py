"""Run by every rank of a test: train a small language model and write parameters and logs of rank 0."""

import itertools
import json
import sys

import torch
from datasets import Dataset
from text_toys import TokenRows, language_model, mixture_of_experts, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.evaluation.callback import RougeArguments

QUESTIONS = ["ask you", "one two three", "a", "b c a b c d", "me"]  # a number that two ranks do not divide


def packed(rows):
    """The rows, one to three of them in each: as many documents as there were rows."""
    documents, together = iter(rows), itertools.cycle([2, 1, 3])
    result = []
    while group := list(itertools.islice(documents, next(together))):
        row = {name: [x for one in group for x in one[name]] for name in ("input_ids", "labels")}
        result.append(row | {"position_ids": [i for one in group for i in range(len(one["input_ids"]))]})
    return result


def build(args, answers, pack=list, experts=False, rows=None):
    """The trainer of both this job and sharded_job.py; with `answers` it also generates at each evaluation."""
    trainer = DistillationTrainer(
        mixture_of_experts() if experts else language_model(),
        taught_model(),
        args,
        processing_class=tokenizer(),
        train_dataset=pack(TokenRows().rows) if rows is None else rows,
        eval_dataset=pack(TokenRows(13, seed=3).rows),
    )
    dev = Dataset.from_dict({"prompt": QUESTIONS, "response": ["a b c d"] * len(QUESTIONS)})
    if answers:
        RougeArguments(eval_rouge=True, rouge_max_new_tokens=6).add_to(trainer, dev, max_prompt_length=8)
    return trainer


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    answers, pack = keywords.pop("answers", False), packed if keywords.pop("packed", False) else list
    experts = keywords.pop("experts", False)
    args = arguments(out, **keywords)
    trainer = build(args, answers, pack, experts, token_dataset() if args.writes else None)
    trainer.train()
    score = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{out}/student.pt")
        thresholds = getattr(trainer.distillation_loss.temperature, "thresholds", None)
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "scores": score, "thresholds": thresholds}, file)
