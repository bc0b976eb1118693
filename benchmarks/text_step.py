"""Training steps of a language model: hfkd compared with TRL's GKD trainer, with the same rows, models and settings.

    OMP_NUM_THREADS=1 python benchmarks/text_step.py --dataset_name dolly.jsonl --tokenizer gpt2-tokenizer

Models are GPT-2-shaped, with random weights (WIDTHxLAYERS); the rows are tokenised as recipes/gpt2_dolly_eakd.py does.
TRL runs off-policy (lmbda=0) with beta=0, which is forward KL at T = 1; "hfkd, the same loss" computes exactly this,
and the run stops unless both report the same losses. The other rows are the recipe's own loss (EA-KD: 0.5 CE + 0.5 KL
at T = 2, entropy weights), with the heads on all positions, with loss_chunk_size, and with stored teacher outputs. The
variants run alternately, --rounds times; non-padding tokens of the fastest round count, after its first step. On a CPU,
seconds are processor time, which hardly depends on other processes: use one thread. TRL: pip install trl (or --trl DIR
for one installed by `pip install --target DIR --no-deps trl`); its row is left out if it is missing.
"""

import argparse
import gc
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peers import importable
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from turns import on_one_gpu

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text_arguments import TextDataArguments
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.chunked import CHUNK_SIZE
from hfkd.reports.environment import environment
from hfkd.teachers import CachedTextTeacher, build_text_cache
from hfkd.training.forward.dense import DenseForward

SAME = {"objective": "kd", "temperature": 1.0, "ce_weight": 0.0, "kd_weight": 1.0}
RECIPE = {"objective": "kd(scale='none')", "temperature": 2.0, "ce_weight": 0.5, "kd_weight": 0.5} | {
    "weighting": "entropy"
}
TRL = "TRL GKD"
SAME_LOSS, RECIPE_LOSS = "hfkd, the same loss", "hfkd, EA-KD"
TARGETS = {SAME_LOSS: 1.3, RECIPE_LOSS: 1.3}  # at least, times TRL's tokens a second
WAYS: dict[str, dict[str, Any]] = {
    TRL: {},
    SAME_LOSS: SAME,
    "hfkd, the same loss, heads on all positions": SAME,
    RECIPE_LOSS: RECIPE,
    "hfkd, EA-KD, heads on all positions": RECIPE,
    "hfkd, EA-KD, loss_chunk_size 256": RECIPE,
    "hfkd, EA-KD, stored teacher": RECIPE,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_name", default="databricks/databricks-dolly-15k", help="Hub id, folder or JSON lines"
    )
    parser.add_argument("--tokenizer", default="gpt2", help="Hub id or folder")
    parser.add_argument("--student", default="256x4", metavar="WIDTHxLAYERS")
    parser.add_argument("--teacher", default="384x6", metavar="WIDTHxLAYERS")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="of a round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for all ways")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--profile", action="store_true", help="also print where a step's time goes")
    parser.add_argument("--trl", type=Path, help="folder that holds the package trl")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one round of three steps of two rows, small models")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.batch_size, args.student, args.teacher = 1, 3, 2, "64x1", "64x2"
    return args


def gpt2(shape: str, seed: int, **config: int) -> GPT2LMHeadModel:
    width, layers = map(int, shape.split("x"))
    torch.manual_seed(seed)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # as TRL does by itself
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # 1.5 billion random numbers take long on a CPU
        return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=max(width // 64, 1), **off, **config))


class Clock(TrainerCallback):
    """The time at the end of each optimizer step, as wall time and as CPU time of the process."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))


def settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": args.batch_size,
        "max_steps": args.steps,
        "learning_rate": 5e-4,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": args.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def trl_trainer(args: argparse.Namespace, rows: Dataset, tokenizer: Any, folder: Path) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    off = {"lmbda": 0.0, "beta": 0.0, "seq_kd": False, "gradient_checkpointing": False}
    return GKDTrainer(
        model=gpt2(args.student, 0),
        teacher_model=gpt2(args.teacher, 1),
        args=on_one_gpu(GKDConfig(**settings(args, folder), **off, max_length=args.max_length)),
        data_collator=TokenCollator(tokenizer),
        train_dataset=rows,
        processing_class=tokenizer,
    )


def hfkd_trainer(way: str, args: argparse.Namespace, rows: Dataset, tokenizer: Any, folder: Path) -> Any:
    more = {"loss_chunk_size": CHUNK_SIZE} if "chunk" in way else {}
    teacher = CachedTextTeacher(folder.parent / "stored") if "stored" in way else gpt2(args.teacher, 1)
    trainer = DistillationTrainer(
        gpt2(args.student, 0),
        teacher,
        on_one_gpu(DistillationArguments(**settings(args, folder), **more)),
        processing_class=tokenizer,
        train_dataset=rows,
        **WAYS[way],
    )
    if "all positions" in way:
        trainer.step = DenseForward(trainer.call, trainer.task, trainer.distillation_loss, trainer.num_classes)
    return trainer


def turn(way: str, args: argparse.Namespace, rows: Dataset, tokenizer: Any, scratch: Path) -> dict[str, Any]:
    """One round of one variant: seconds of the counted steps, their losses, and shares of the time."""
    set_seed(0)
    gc.collect()  # frees the networks of the previous turn
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    make = trl_trainer if way == TRL else lambda *rest: hfkd_trainer(way, *rest)
    trainer, clock = make(args, rows, tokenizer, folder), Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    parts = stopwatches(trainer) if args.profile and way != TRL else {}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    wall, cpu = (end - start for start, end in zip(clock.ends[0], clock.ends[-1], strict=True))
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    return {"seconds": wall if on_gpu else cpu, "wall": wall, "losses": losses, "parts": parts, "memory": memory}


def stopwatches(trainer: Any) -> dict[str, float]:
    """Seconds spent in teacher, student, loss, backward and optimizer over the run, filled while it trains."""
    spent: dict[str, float] = defaultdict(float)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = clock()
            result = function(*arguments, **keywords)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name] += clock() - start
            return result

        return run

    trainer.model.forward = timed("student forward", trainer.model.forward)
    if not isinstance(trainer.teacher, CachedTextTeacher):
        trainer.teacher.forward = timed("teacher forward", trainer.teacher.forward)
    trainer.distillation_loss.forward = timed("loss", trainer.distillation_loss.forward)
    trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
    trainer.training_step = timed("all of it", trainer.training_step)
    create = trainer.create_optimizer

    def create_timed(*arguments: Any) -> Any:
        optimizer = create(*arguments)
        optimizer.step = timed("optimizer", optimizer.step)
        return optimizer

    trainer.create_optimizer = create_timed
    return spent


def counted_tokens(args: argparse.Namespace, rows: Dataset, tokenizer: Any, scratch: Path) -> tuple[int, int]:
    """Numbers of non-padding tokens and of target tokens, of the steps after the first."""
    trainer = hfkd_trainer(SAME_LOSS, args, rows, tokenizer, Path(tempfile.mkdtemp(dir=scratch)))
    set_seed(0)
    batches = list(zip(range(args.steps), trainer.get_train_dataloader(), strict=False))[1:]
    tokens = sum(int(batch["attention_mask"].sum()) for _, batch in batches)
    return tokens, sum(int((batch["labels"][:, 1:] != -100).sum()) for _, batch in batches)


def table(results: dict[str, list[dict[str, Any]]], tokens: int) -> str:
    base = min(r["seconds"] for r in results[TRL]) if TRL in results else None
    lines = [
        "| way | tokens/s | steps' seconds, each round | times TRL | peak memory, GiB |",
        "|---|---:|---|---:|---:|",
    ]
    for way, rounds in results.items():
        seconds = [r["seconds"] for r in rounds]
        ratio = f"{base / min(seconds):.2f}" if base else "-"
        ratio += f" (≥ {TARGETS[way]})" if way in TARGETS else ""
        each = ", ".join(f"{s:.2f}" for s in seconds)
        peaks = [r["memory"] for r in rounds if r["memory"] is not None]
        memory = f"{max(peaks) / 2**30:.1f}" if peaks else "-"  # measured only on a GPU
        lines.append(f"| {way} | {tokens / min(seconds):,.0f} | {each} | {ratio} | {memory} |")
    return "\n".join(lines)


def profile_table(results: dict[str, list[dict[str, Any]]]) -> str:
    names = ["teacher forward", "student forward", "loss", "backward", "optimizer"]
    lines = [f"| share of a step | {' | '.join(names)} | other |", "|---|" + "---:|" * (len(names) + 1)]
    for way, rounds in results.items():
        parts = rounds[-1]["parts"]
        if parts:
            whole = parts["all of it"] + parts["optimizer"]
            shares = [parts.get(name, 0.0) / whole for name in names]
            lines.append(f"| {way} | " + " | ".join(f"{x:.0%}" for x in [*shares, 1 - sum(shares)]) + " |")
    return "\n".join(lines)


def refuse_other_losses(results: dict[str, list[dict[str, Any]]]) -> None:
    """Stop unless both computed the same losses, as the comparison would be meaningless."""
    same = [results[way][0]["losses"] for way in results if WAYS[way] in ({}, SAME)]
    for losses in same[1:]:
        gap = max(abs(a - b) for a, b in zip(losses, same[0], strict=True))
        if gap > 0.02 * max(same[0]):
            raise SystemExit(f"the losses differ by {gap:.4f}: {losses} and {same[0]}")


def main() -> None:
    args = parse_args()
    logging.getLogger("hfkd").setLevel(logging.WARNING)
    ways = [way for way in args.ways if way != TRL or importable("trl", args.trl)]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = TextDataArguments(args.dataset_name, args.max_length, max_train_rows=args.steps * args.batch_size)
    data.max_dev_rows = 1
    rows = data.load(tokenizer).train
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if any("stored" in way for way in ways):
            teacher, temperature = gpt2(args.teacher, 1), RECIPE["temperature"]
            build_text_cache(teacher, rows, scratch / "stored", temperatures=temperature, progress_bar=False)
        tokens, targets = counted_tokens(args, rows, tokenizer, scratch)
        for _ in range(args.rounds):
            for way in ways:
                results[way].append(turn(way, args, rows, tokenizer, scratch))
    refuse_other_losses(results)
    precision = "bf16 autocast" if args.bf16 else "float32"
    print(f"\nstudent {args.student}, teacher {args.teacher}, batch {args.batch_size}, {precision}")
    print(f"{args.steps - 1} steps: {tokens:,} tokens, {targets:,} of them targets\n\n{table(results, tokens)}")
    if args.profile:
        print(f"\n{profile_table(results)}")
    if args.json:
        payload = {"settings": {k: str(v) for k, v in vars(args).items()}, "environment": environment()}
        args.json.write_text(json.dumps(payload | {"tokens": tokens, "targets": targets, "results": results}, indent=2))


if __name__ == "__main__":
    main()
