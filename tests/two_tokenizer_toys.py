"""A student and a teacher with different tokenizers, and texts for both. Run by every rank of a test, too."""

import json
import random
import sys

import torch
from datasets import Dataset
from text_toys import language_model
from tokenizer_toys import byte_level, sentencepiece
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.two_tokenizers import tokenize_for_both

WORDS = ("cat", "the", " dog ", "🙂", "日本", "e\u0301", "one two", "and then", "\n", "a", "park", "tré", "  ")


def texts(n=16, seed=0):
    draw = random.Random(seed)
    pairs = [(draw.choice(["Tell: ", "Once "]), " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))) for _ in range(n)]
    return Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in pairs])


def rows(n=16, seed=0, **keywords):
    lengths = {"max_length": 40, "max_prompt_length": 20, "teacher_max_length": 48}
    return tokenize_for_both(texts(n, seed), byte_level(), sentencepiece(), **lengths | keywords)


def student():
    return language_model(vocab=len(byte_level()) + 3, positions=48)  # embeddings are padded


def teacher():
    model = language_model(width=24, vocab=len(sentencepiece()), seed=1, positions=64)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(15)
    return model


def trainer(folder, networks=None, args=None, **keywords):
    made = networks or (student(), teacher())
    given = {
        "train_dataset": keywords.pop("train_dataset", None) or rows(),
        "eval_dataset": keywords.pop("eval_dataset", None) or rows(6, seed=3),
        "processing_class": byte_level(),
        "teacher_processing_class": sentencepiece(),
        "objective": "gold",
    }
    return DistillationTrainer(*made, arguments(folder, **(args or {})), **given | keywords)


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    slots = {name: keywords.pop(name) for name in ("objective", "temperature", "weighting") if name in keywords}
    run = trainer(out, (student().double(), teacher().double()), keywords, **slots)
    run.train()
    score = run.evaluate()
    if run.is_world_process_zero():
        torch.save(run.accelerator.unwrap_model(run.model).state_dict(), f"{out}/student.pt")
        thresholds = getattr(run.distillation_loss.temperature, "thresholds", None)
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": run.state.log_history, "scores": score, "thresholds": thresholds}, file)
