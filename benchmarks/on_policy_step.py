"""On-policy training steps: hfkd's --on_policy 1.0 compared with TRL's DistillationTrainer and GKD trainer (lmbda=1).

    OMP_NUM_THREADS=1 python benchmarks/on_policy_step.py --dataset_name dolly.jsonl --tokenizer gpt2-tokenizer

Models are GPT-2-shaped, with random weights (WIDTHxLAYERS), which do not end their responses, so that each variant
generates --max_new_tokens tokens for the same prompts, samples at temperature 1 and has the same divergence (reverse KL
at T = 1). The variants run alternately, --rounds times; the fastest round counts after its first step, and within it
the loss and backward pass. On a CPU, seconds are processor time, which hardly depends on other processes: use one
thread. TRL: pip install trl (or --trl DIR for one installed by `pip install --target DIR --no-deps trl`); its rows are
left out if it is missing.
"""

import argparse
import gc
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peers import importable
from text_step import Clock, gpt2, settings
from transformers import AutoTokenizer, set_seed
from transformers.trainer_callback import PrinterCallback
from turns import on_one_gpu

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_arguments import TextDataArguments
from hfkd.data.text_collate import TokenCollator
from hfkd.reports.environment import environment

HFKD, DISTILLATION, GKD = "hfkd", "TRL DistillationTrainer", "TRL GKD"
WAYS = (HFKD, DISTILLATION, GKD)
TARGETS = {"step": 1.0, "loss": 1.3}  # at least, times TRL's DistillationTrainer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_name", default="databricks/databricks-dolly-15k", help="Hub id, folder or JSON lines"
    )
    parser.add_argument("--tokenizer", default="gpt2", help="Hub id or folder")
    parser.add_argument("--student", default="128x2", metavar="WIDTHxLAYERS")
    parser.add_argument("--teacher", default="256x2", metavar="WIDTHxLAYERS")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for all ways")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--trl", type=Path, help="folder that holds the package trl")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one round of three steps of two rows, small models")
    args = parser.parse_args()
    args.max_length = 512  # of `text_step.settings`
    if args.quick:
        args.rounds, args.steps, args.batch_size, args.max_new_tokens = 1, 3, 2, 4
        args.student, args.teacher = "64x1", "64x2"
    return args


def hfkd_trainer(args: argparse.Namespace, texts: Dataset, tokenizer: Any, folder: Path) -> Any:
    given = {"on_policy": 1.0, "on_policy_max_new_tokens": args.max_new_tokens}
    return DistillationTrainer(
        gpt2(args.student, 0),
        gpt2(args.teacher, 1),
        on_one_gpu(DistillationArguments(**settings(args, folder), **given)),
        processing_class=tokenizer,
        train_dataset=tokenize_dataset(texts, tokenizer),
        objective="reverse_kl",
        temperature=1.0,
        ce_weight=0.0,
        kd_weight=1.0,
    )


def distillation_trainer(args: argparse.Namespace, texts: Dataset, tokenizer: Any, folder: Path) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    own = {"max_completion_length": args.max_new_tokens, "beta": 1.0, "gradient_checkpointing": False}
    return DistillationTrainer(
        model=gpt2(args.student, 0),
        teacher_model=gpt2(args.teacher, 1),
        args=on_one_gpu(DistillationConfig(**settings(args, folder), **own)),
        train_dataset=texts.select_columns(["prompt"]),
        processing_class=tokenizer,
    )


def gkd_trainer(args: argparse.Namespace, texts: Dataset, tokenizer: Any, folder: Path) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    whole = TokenCollator(tokenizer)
    asked = TokenCollator(tokenizer, padding_side="left")

    def collate(rows: list[Any]) -> dict[str, Any]:
        batch = whole(rows)
        prompts = asked([{"input_ids": row["input_ids"][: row["prompt_length"]]} for row in rows])
        more = {"prompts": prompts["input_ids"], "prompt_attention_mask": prompts["attention_mask"]}
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")} | more

    own = {"lmbda": 1.0, "beta": 1.0, "temperature": 1.0, "max_new_tokens": args.max_new_tokens}
    return GKDTrainer(
        model=gpt2(args.student, 0),
        teacher_model=gpt2(args.teacher, 1),
        args=on_one_gpu(GKDConfig(**settings(args, folder), **own, gradient_checkpointing=False)),
        data_collator=collate,
        train_dataset=tokenize_dataset(texts, tokenizer),
        processing_class=tokenizer,
    )


MAKERS = {HFKD: hfkd_trainer, DISTILLATION: distillation_trainer, GKD: gkd_trainer}


def turn(way: str, args: argparse.Namespace, texts: Dataset, tokenizer: Any, scratch: Path) -> dict[str, Any]:
    """One round of one way: the seconds of the steps after the first, and of their losses and backward passes."""
    set_seed(0)
    gc.collect()
    trainer, clock = MAKERS[way](args, texts, tokenizer, Path(tempfile.mkdtemp(dir=scratch))), Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    spent: list[float] = []
    for owner, name in ((trainer, "compute_loss"), (trainer.accelerator, "backward")):
        setattr(owner, name, _timed(getattr(owner, name), spent, clock))
    trainer.train()
    wall, cpu = (end - start for start, end in zip(clock.ends[0], clock.ends[-1], strict=True))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"step": wall if torch.cuda.is_available() else cpu, "wall": wall, "loss": sum(spent), "losses": losses}


def _timed(function: Any, spent: list[float], clock: Clock) -> Any:
    """`function`, whose seconds are put down once the first step is over."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def run(*arguments: Any, **keywords: Any) -> Any:
        start = now()
        result = function(*arguments, **keywords)
        if clock.ends:
            spent.append(now() - start)
        return result

    return run


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    best = {way: {part: min(r[part] for r in rounds) for part in TARGETS} for way, rounds in results.items()}
    lines = [
        "| way | seconds of steps | times TRL | of losses | times TRL | step, each round |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for way, rounds in results.items():
        cells = []
        for part, target in TARGETS.items():
            ratio = f"{best[DISTILLATION][part] / best[way][part]:.2f}" if DISTILLATION in best else "-"
            cells += [f"{best[way][part]:.2f}", ratio + (f" (≥ {target})" if way == HFKD else "")]
        each = ", ".join(f"{r['step']:.2f}" for r in rounds)
        lines.append(f"| {way} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    logging.getLogger("hfkd").setLevel(logging.WARNING)
    ways = [way for way in args.ways if way == HFKD or importable("trl", args.trl)]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = TextDataArguments(args.dataset_name, max_dev_rows=args.steps * args.batch_size, max_train_rows=1)
    texts = data.load(tokenizer).dev_texts
    assert texts is not None
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for way in ways:
                results[way].append(turn(way, args, texts, tokenizer, Path(folder)))
    print(
        f"\nstudent {args.student}, teacher {args.teacher}, {args.batch_size} x {args.max_new_tokens} new tokens a step"
    )
    print(f"{args.steps - 1} steps\n\n{table(results)}")
    if args.json:
        payload = {"settings": {k: str(v) for k, v in vars(args).items()}, "environment": environment()}
        args.json.write_text(json.dumps(payload | {"results": results}, indent=2))


if __name__ == "__main__":
    main()
