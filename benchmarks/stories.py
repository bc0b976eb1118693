"""Distil stories260K, a real language model, into one a third its size: labels, KD, EA-KD, on-policy, sequence KD.

    OMP_NUM_THREADS=1 python benchmarks/stories.py --teacher stories260K --stories stories260K-samples.jsonl

All methods have the same student, initial weights, order of data, and steps. Evaluated on held-out stories: the
student's cross-entropy and KL(teacher || student) per token, in nats; mean and standard deviation over seeds. "EA-KD,
matched" has EA-KD's weights divided by their mean, to separate reweighting from a larger loss. With --first_steps 150
every method continues from a student trained on labels for so many steps, as in GKD. With --prompt_tokens 16 the first
16 tokens of each story are a prompt without labels, and methods in which student or teacher generate the rest can be
run too (--ways "on-policy 0.5" ...); a text of each student for a held-out prompt is printed. Methods on hidden states
project the student's to the teacher's width; those with "one width" compare them directly, for students made of the
teacher's layers (--student_init teacher --student_layers 2). Settings: stories.yaml in this folder, and all flags of
the trainer (--max_steps, --learning_rate, ...). With --eval_strategy steps the held-out cross-entropy during training
is printed too. Runs in output_dir with the same settings are not repeated.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_files import read_jsonl
from hfkd.evaluation.generation import generate
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.models.pruned_student import PrunedStudentArguments
from hfkd.reports.environment import environment
from hfkd.utils.flags import flag
from hfkd.utils.json_file import write_json
from hfkd.utils.parsing import parse
from hfkd.utils.targets import IGNORED

WAYS: dict[str, dict[str, Any]] = {
    "labels only": {"ce_weight": 1.0, "kd_weight": 0.0},
    "KD": {},
    "EA-KD": {"weighting": "entropy"},
    "EA-KD, matched": {"weighting": "matched"},
    "reverse KL": {"objective": "reverse_kl(scale='none')"},
    "JSD": {"objective": "jsd(beta=0.5, scale='none')"},
}
GKD = {"ce_weight": 0.0, "kd_weight": 1.0}
WRITTEN: dict[str, dict[str, Any]] = {
    "KD without labels": GKD,
    "on-policy 0.5": GKD | {"on_policy": 0.5},
    "on-policy 1.0": GKD | {"on_policy": 1.0},
    "EA-KD, on-policy 1.0": GKD | {"on_policy": 1.0, "weighting": "entropy"},
    "sequence KD": {"ce_weight": 1.0, "kd_weight": 0.0, "seq_kd": True},
}
UNIFORM = "layers='0:', teacher_layers='uniform'"  # pairs the first blocks, and the last
HIDDEN: dict[str, dict[str, Any]] = {
    "KD + hidden MSE": {"objective": f"kd(scale='none') + hidden_mse({UNIFORM})"},
    "KD + hidden cosine": {"objective": f"kd(scale='none') + hidden_cosine({UNIFORM}, projection=True)"},
    "KD + hidden MSE, one width": {"objective": f"kd(scale='none') + hidden_mse({UNIFORM}, projection=False)"},
    "KD + hidden cosine, one width": {"objective": f"kd(scale='none') + hidden_cosine({UNIFORM})"},
}
FIRST = "first steps"  # steps on labels, from which all methods of a seed continue
ALL = WAYS | WRITTEN | HIDDEN | {FIRST: WAYS["labels only"]}
SLOTS = ("objective", "temperature", "weighting", "ce_weight", "kd_weight")
SCORES = ("eval_loss", "eval_kl", "seconds")


@dataclass
class StoriesArguments(PrunedStudentArguments):
    teacher: str = flag("stories260K", "Folder of stories260K.")
    stories: str = flag("stories.jsonl", "JSON-lines file of stories, in a column text.")
    seeds: int = flag(3, "Number of students per method.")
    ways: list[str] = flag(lambda: list(WAYS), f"Methods to compare, from {', '.join(WAYS | WRITTEN | HIDDEN)}.")
    train_stories: int = flag(300, "Number of training stories, the first of the file.")
    held_out: int = flag(300, "Number of evaluation stories, the last of the file.")
    max_length: int = flag(256, "Maximum number of tokens of a story.")
    prompt_tokens: int = flag(0, "Number of prompt tokens of a training story.")
    first_steps: int = flag(0, "Initial training steps of all students on labels only.")
    response_tokens: int = flag(128, "on_policy_max_new_tokens of the methods that generate responses.")


def new_student(teacher: Any, stories: StoriesArguments) -> Any:
    """A new student with a third of the teacher's parameters, or one made of some of the teacher's layers.

    The new student has width 40 instead of 64, and three layers instead of five.
    """
    if stories.student_init == "teacher":
        return stories.pruned(teacher)
    size = {"hidden_size": 40, "intermediate_size": 128, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}
    same = ("vocab_size", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    return LlamaForCausalLM(LlamaConfig(**size, **heads, **{name: getattr(teacher.config, name) for name in same}))


def run(
    way: str, seed: int, args: DistillationArguments, stories: StoriesArguments, teacher: Any, tokenizer: Any, data: Any
) -> dict[str, Any]:
    """Train and evaluate a student; FIRST is saved, and with first steps the others start from it."""
    set_seed(seed)
    student = new_student(teacher, stories)
    if stories.first_steps and way != FIRST:
        student = type(student).from_pretrained(folder_of(FIRST, seed, args))
    slots = {name: value for name, value in ALL[way].items() if name in SLOTS}
    written = {name: value for name, value in ALL[way].items() if name not in SLOTS}
    if written:
        written["on_policy_max_new_tokens"] = stories.response_tokens
    steps = {"max_steps": stories.first_steps} if way == FIRST else {}
    trainer = DistillationTrainer(
        student,
        teacher,
        replace(args, seed=seed, output_dir=folder_of(way, seed, args), **steps, **written),
        processing_class=tokenizer,
        train_dataset=data[0],
        eval_dataset=data[1],
        **slots,
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    curve = {str(entry["step"]): entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    score = trainer.evaluate()
    found = {**{name: score[name] for name in SCORES[:2]}, "seconds": seconds, "curve": curve}
    if way == FIRST:
        trainer.save_model()
    if stories.prompt_tokens:
        found["text"] = sample(trainer.model, tokenizer, data[1][0]["input_ids"][: stories.prompt_tokens])
    return found


def folder_of(way: str, seed: int, args: DistillationArguments) -> str:
    return str(Path(args.output_dir) / f"{way.replace(' ', '_')}-{seed}")


def sample(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    """The student's greedy continuation of a prompt."""
    text = tokenizer.decode(prompt, skip_special_tokens=True)
    settings = {"temperature": 0.0, "max_new_tokens": 60, "no_repeat_ngram_size": 0}
    return f"{text} | {generate(model, tokenizer, [text], **settings)[0]}"


def with_prompts(rows: Any, tokens: int) -> Any:
    """Rows whose first tokens are a prompt without labels; shorter rows are dropped."""
    long = rows.filter(lambda length: length > tokens, input_columns="length")
    return long.map(lambda labels: {"labels": [IGNORED] * tokens + labels[tokens:]}, input_columns="labels")


def finished(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs stored in `path`; none if it was written with other settings."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["runs"] if found.get("settings") == settings else {}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| way | cross-entropy | sd | KL to teacher | sd | seeds | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way, runs in results.items():
        cells = [cell for name in SCORES[:2] for cell in mean_and_sd([r[name] for r in runs])]
        seconds = statistics.fmean(r["seconds"] for r in runs)
        lines.append(f"| {way} | {' | '.join(cells)} | {len(runs)} | {seconds:.0f} |")
    return "\n".join(lines)


def curves(results: dict[str, list[dict[str, Any]]]) -> str:
    """The held-out cross-entropy at each evaluation during training, averaged over seeds; empty without any."""
    steps = list(next(iter(results.values()))[0]["curve"])
    if not steps:
        return ""
    lines = [f"| cross-entropy at step | {' | '.join(steps)} |", "|---|" + "---:|" * len(steps)]
    for way, runs in results.items():
        means = (statistics.fmean(r["curve"][step] for r in runs) for step in steps)
        lines.append(f"| {way} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    return "\n".join(lines)


def mean_and_sd(values: list[float]) -> tuple[str, str]:
    return f"{statistics.fmean(values):.4f}", f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    stories, args = parse(
        (StoriesArguments, DistillationArguments),
        argv,
        defaults=[Path(__file__).with_suffix(".yaml")],
        description=__doc__,
    )
    torch.set_num_threads(1)  # for networks this small synchronizing threads costs more than it gains
    teacher, tokenizer = causal_lm(stories.teacher), load_tokenizer(stories.teacher)
    rows = tokenize_dataset(
        read_jsonl(stories.stories), tokenizer, max_length=stories.max_length, max_prompt_length=stories.max_length - 1
    )
    cut = len(rows) - stories.held_out
    data = rows.select(range(min(stories.train_stories, cut))), rows.select(range(cut, len(rows)))
    if stories.prompt_tokens:
        data = with_prompts(data[0], stories.prompt_tokens), data[1]
    path = Path(args.output_dir) / "stories.json"
    settings = {"stories": vars(stories) | {"seeds": None, "ways": None}, "args": args.to_dict()}
    settings = json.loads(json.dumps(settings, default=str))
    done = finished(path, settings)
    ways = [FIRST, *stories.ways] if stories.first_steps else stories.ways
    for seed in range(stories.seeds):
        for way in ways:
            name = f"{way}, seed {seed}"
            if name not in done:
                done[name] = run(way, seed, args, stories, teacher, tokenizer, data)
                write_json(path, {"settings": settings, "environment": environment(), "runs": done})
            print(f"{name}: " + ", ".join(f"{score} {done[name][score]:.4f}" for score in SCORES), flush=True)
    results = {way: [done[f"{way}, seed {seed}"] for seed in range(stories.seeds)] for way in ways}
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, new_student(teacher, stories))]
    print(f"\nTeacher {sizes[0]:,} parameters, student {sizes[1]:,}; {args.max_steps} steps")
    print(f"\n{table(results)}\n\n{curves(results)}")
    for way, runs in results.items():
        if "text" in runs[0]:
            print(f"{way}: {runs[0]['text']}")
    return results


if __name__ == "__main__":
    main()
