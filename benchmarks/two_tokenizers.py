"""stories260K, whose tokenizer has 512 tokens, teaches a student with GPT-2's 50,257: labels only, ULD, GOLD, EA-GOLD.

    OMP_NUM_THREADS=1 python benchmarks/two_tokenizers.py --teacher stories260K --student_tokenizer gpt2-tokenizer \\
        --stories stories260K-samples.jsonl

All methods have the same student, initial weights, order of data, and steps. The evaluation is the student's
cross-entropy on held-out stories, in nats per own token; mean and standard deviation over seeds, and paired differences
from labels only. Settings: two_tokenizers.yaml in this folder, and all flags of the trainer. Runs in output_dir with
the same settings are not repeated.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stories import finished, mean_and_sd
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text_files import read_jsonl
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.reports.environment import environment
from hfkd.utils.flags import flag
from hfkd.utils.json_file import write_json
from hfkd.utils.parsing import parse

LABELS = "labels only"
WAYS: dict[str, dict[str, Any]] = {
    LABELS: {"kd_weight": 0.0},
    "ULD": {"objective": "uld"},
    "ULD, by bytes": {"objective": "uld(pairs='bytes')"},
    "GOLD": {"objective": "gold"},
    "EA-GOLD": {"objective": "gold", "weighting": "entropy"},
}


@dataclass
class TwoTokenizersArguments:
    teacher: str = flag("stories260K", "Folder of stories260K.")
    student_tokenizer: str = flag("gpt2", "Folder or Hub id of the student's tokenizer.")
    stories: str = flag("stories.jsonl", "JSON-lines file of stories, in a column text.")
    seeds: int = flag(3, "Number of students per method.")
    ways: list[str] = flag(lambda: list(WAYS), f"Methods to compare, from {', '.join(WAYS)}.")
    train_stories: int = flag(600, "Number of training stories, the first of the file.")
    held_out: int = flag(100, "Number of evaluation stories, the last of the file.")
    max_length: int = flag(64, "Maximum number of the student's tokens of a story.")
    teacher_max_length: int = flag(192, "Maximum number of the teacher's tokens of a story.")


def new_student(tokenizer: Any) -> Any:
    """Three layers of width 40; nearly all parameters are token embeddings."""
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}
    size = {"hidden_size": 40, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": len(tokenizer)}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**size, **heads, **ends, tie_word_embeddings=True, max_position_embeddings=512))


def run(way: str, seed: int, args: DistillationArguments, teacher: Any, tokenizers: Any, data: Any) -> dict[str, Any]:
    set_seed(seed)
    folder = str(Path(args.output_dir) / f"{way.replace(' ', '_')}-{seed}")
    trainer = DistillationTrainer(
        new_student(tokenizers[0]),
        teacher if way != LABELS else None,
        replace(args, seed=seed, output_dir=folder),
        processing_class=tokenizers[0],
        teacher_processing_class=tokenizers[1] if way != LABELS else None,
        train_dataset=data[0],
        eval_dataset=data[1],
        **WAYS[way],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    kd = {str(entry["step"]): entry["kd"] for entry in trainer.state.log_history if "kd" in entry}
    return {"eval_loss": trainer.evaluate()["eval_loss"], "seconds": seconds, "kd": kd}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| way | cross-entropy | sd | less labels only | sd | seeds | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way, runs in results.items():
        scores = [r["eval_loss"] for r in runs]
        cells, apart = mean_and_sd(scores), ("-", "-")
        if LABELS in results and way != LABELS:
            pairs = zip(scores, results[LABELS], strict=True)
            apart = mean_and_sd([score - its["eval_loss"] for score, its in pairs])
        seconds = statistics.fmean(r["seconds"] for r in runs)
        lines.append(f"| {way} | {' | '.join((*cells, *apart))} | {len(runs)} | {seconds:.0f} |")
    return "\n".join(lines)


def curves(results: dict[str, list[dict[str, Any]]]) -> str:
    """The logged distillation loss, averaged over seeds."""
    lines = []
    for way, runs in results.items():
        means = [f"{step}: {statistics.fmean(r['kd'][step] for r in runs):.4f}" for step in runs[0]["kd"]]
        lines += [f"{way}, distillation loss at step {', '.join(means)}"] if means else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    given, args = parse(
        (TwoTokenizersArguments, DistillationArguments),
        argv,
        defaults=[Path(__file__).with_suffix(".yaml")],
        description=__doc__,
    )
    torch.set_num_threads(1)
    teacher = causal_lm(given.teacher)
    tokenizers = load_tokenizer(given.student_tokenizer), load_tokenizer(given.teacher)
    lengths = {"max_length": given.max_length, "max_prompt_length": given.max_length - 1}
    stories = read_jsonl(given.stories)
    cut = len(stories) - given.held_out
    parts = stories.select(range(min(given.train_stories, cut))), stories.select(range(cut, len(stories)))
    more = lengths | {"teacher_max_length": given.teacher_max_length}
    data = [tokenize_for_both(part, *tokenizers, **more) for part in parts]
    path = Path(args.output_dir) / "two_tokenizers.json"
    settings = {"stories": vars(given) | {"seeds": None, "ways": None}, "args": args.to_dict()}
    settings = json.loads(json.dumps(settings, default=str))
    done = finished(path, settings)
    for seed in range(given.seeds):
        for way in given.ways:
            name = f"{way}, seed {seed}"
            if name not in done:
                done[name] = run(way, seed, args, teacher, tokenizers, data)
                write_json(path, {"settings": settings, "environment": environment(), "runs": done})
            print(f"{name}: cross-entropy {done[name]['eval_loss']:.4f}, {done[name]['seconds']:.0f} s", flush=True)
    results = {way: [done[f"{way}, seed {seed}"] for seed in range(given.seeds)] for way in given.ways}
    print(f"\nStudent of {sum(p.numel() for p in new_student(tokenizers[0]).parameters()):,}; {args.max_steps} steps")
    print(f"\n{table(results)}\n\n{curves(results)}")
    return results


if __name__ == "__main__":
    main()
