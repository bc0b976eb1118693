"""A student and a teacher with different tokenizers, and texts for both. Run by every rank of a test, too."""

import json
import random
import sys

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from sharded_job import say_that_it_is_a_gpu, weights_of
from text_toys import language_model
from tokenizer_toys import byte_level, sentencepiece
from toys import arguments
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hfkd import DistillationArguments, DistillationTrainer
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


def vision_language(vocab):
    text = {"vocab_size": vocab, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "image_size": 8, "patch_size": 4, "projection_dim": 8}
    for one in (text, vision):
        one |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**text), image_token_id=1)
    return LlavaForConditionalGeneration(config)


def trainer(folder, networks=None, args=None, **keywords):
    made = networks or (student(), teacher())
    given = {
        "train_dataset": keywords.pop("train_dataset", None) or rows(),
        "eval_dataset": keywords.pop("eval_dataset", None) or rows(6, seed=3),
        "processing_class": byte_level(),
        "teacher_processing_class": sentencepiece(),
        "objective": "gold",
    }
    args = args if isinstance(args, DistillationArguments) else arguments(folder, **(args or {}))
    return DistillationTrainer(*made, args, **given | keywords)


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    slots = {name: keywords.pop(name) for name in ("objective", "temperature", "weighting") if name in keywords}
    if keywords.pop("stream", False):
        slots["train_dataset"] = rows().to_iterable_dataset().map(dict)  # of which no columns are known
    args, is_sharded = arguments(out, **keywords), parse_flag_from_env("ACCELERATE_USE_FSDP")
    if is_sharded and args.device.type == "cpu":
        say_that_it_is_a_gpu()
    run = trainer(out, (student().double(), teacher().double()), args, **slots)
    run.train()
    score = run.evaluate()
    weights = weights_of(run) if is_sharded else run.accelerator.unwrap_model(run.model).state_dict()
    if run.is_world_process_zero():
        torch.save(weights, f"{out}/student.pt")
        thresholds = getattr(run.distillation_loss.temperature, "thresholds", None)
        kind = type(run.model_wrapped).__name__
        with open(f"{out}/record.json", "w") as file:
            json.dump({"log": run.state.log_history, "scores": score, "thresholds": thresholds, "kind": kind}, file)
