"""Run by every rank of a test: train a small language model and write parameters and logs of rank 0."""

import json
import sys

import torch
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.evaluation.callback import RougeArguments

QUESTIONS = ["ask you", "one two three", "a", "b c a b c d", "me"]  # a number that two ranks do not divide


def build(args, answers):
    """The trainer of both this job and fsdp_job.py; with `answers` it also generates at each evaluation."""
    trainer = DistillationTrainer(
        language_model(),
        taught_model(),
        args,
        processing_class=tokenizer(),
        train_dataset=TokenRows(),
        eval_dataset=TokenRows(13, seed=3),
    )
    dev = Dataset.from_dict({"prompt": QUESTIONS, "response": ["a b c d"] * len(QUESTIONS)})
    RougeArguments(eval_rouge=answers, rouge_max_new_tokens=6).add_to(trainer, dev, max_prompt_length=8)
    return trainer


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    answers = keywords.pop("answers", False)
    trainer = build(arguments(out, **keywords), answers)
    trainer.train()
    score = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{out}/student.pt")
        thresholds = getattr(trainer.distillation_loss.temperature, "thresholds", None)
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "scores": score, "thresholds": thresholds}, file)
