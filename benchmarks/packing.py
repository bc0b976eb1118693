"""Tokens per second of training a language model on padded, packed (--packing) and flattened (padding-free) rows.

    OMP_NUM_THREADS=1 python benchmarks/packing.py --dataset_name dolly.jsonl --tokenizer gpt2-tokenizer

Models are GPT-2-shaped, with random weights (WIDTHxLAYERS), the loss is EA-KD's; the rows are tokenised as
recipes/gpt2_dolly_eakd.py does. "flattened" is transformers' DataCollatorWithFlattening: the documents of a batch in
one row. First each variant trains one step on the same documents: the losses must agree to 1e-5, or the run stops. Then
steps are timed with batches of about the same number of tokens; non-padding tokens of the fastest round count, after
its first step. The variants run alternately, --rounds times. On a CPU, seconds are processor time, which hardly depends
on other processes: use one thread.
"""

import argparse
import gc
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from text_step import RECIPE, Clock, gpt2, settings
from transformers import AutoTokenizer, DataCollatorWithFlattening, set_seed
from transformers.trainer_callback import PrinterCallback
from turns import on_one_gpu

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.pack_rows import pack_rows
from hfkd.data.text_arguments import TextDataArguments
from hfkd.reports.environment import environment

PADDED, PACKED, FLATTENED = "padded", "packed", "flattened"
TARGET = 1.5  # at least, times the tokens a second of padded rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_name", default="databricks/databricks-dolly-15k", help="Hub id, folder or JSON lines"
    )
    parser.add_argument("--tokenizer", default="gpt2", help="Hub id or folder")
    parser.add_argument("--student", default="256x4", metavar="WIDTHxLAYERS")
    parser.add_argument("--teacher", default="384x6", metavar="WIDTHxLAYERS")
    parser.add_argument("--batch_size", type=int, default=8, help="documents of a padded batch")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a document, and of a packed row")
    parser.add_argument("--steps", type=int, default=12, help="of a round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for all ways")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one round of three steps, small models, short rows")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.batch_size, args.max_length = 1, 3, 4, 96
        args.student, args.teacher = "64x1", "64x2"
    return args


def trainer(way: str, args: argparse.Namespace, rows: Dataset, tokenizer: Any, folder: Path, **more: Any) -> Any:
    given = settings(args, folder) | more
    made = DistillationTrainer(
        gpt2(args.student, 0),
        gpt2(args.teacher, 1),
        on_one_gpu(DistillationArguments(**given)),
        processing_class=tokenizer,
        train_dataset=rows,
        data_collator=DataCollatorWithFlattening() if way == FLATTENED else None,
        **RECIPE,
    )
    made.remove_callback(PrinterCallback)
    return made


def rows_of(way: str, documents: Dataset, args: argparse.Namespace) -> Dataset:
    if way == FLATTENED:  # transformers' collator only takes these columns
        return documents.select_columns(["input_ids", "labels"])
    return pack_rows(documents, args.max_length) if way == PACKED else documents


def loss_of(way: str, documents: Dataset, args: argparse.Namespace, tokenizer: Any, scratch: Path) -> float:
    """Of one step on all documents."""
    set_seed(0)
    rows, folder = rows_of(way, documents, args), Path(tempfile.mkdtemp(dir=scratch))
    whole = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(rows), "max_steps": 1}
    made = trainer(way, args, rows, tokenizer, folder, **whole)
    made.train()
    return next(entry["loss"] for entry in made.state.log_history if "loss" in entry)


def padding(inputs: dict[str, Any]) -> int:
    """Number of padding tokens; after packed documents these have position 0."""
    if "attention_mask" in inputs:
        return int((inputs["attention_mask"] == 0).sum())
    return int((inputs["position_ids"].flip(-1).cumsum(-1) == 0).sum())


def turn(
    way: str, args: argparse.Namespace, rows: Dataset, batch: int, tokenizer: Any, scratch: Path
) -> dict[str, float]:
    """One round of one variant: seconds, tokens and positions of the steps after the first."""
    set_seed(0)
    gc.collect()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    made, clock = trainer(way, args, rows, tokenizer, folder, per_device_train_batch_size=batch), Clock()
    made.add_callback(clock)
    counts: list[tuple[int, int]] = []
    step = made.training_step

    def counted(model: Any, inputs: Any, *rest: Any) -> Any:
        counts.append((inputs["input_ids"].numel() - padding(inputs), inputs["input_ids"].numel()))
        return step(model, inputs, *rest)

    made.training_step = counted
    made.train()
    wall, cpu = (end - start for start, end in zip(clock.ends[0], clock.ends[-1], strict=True))
    tokens, places = (sum(count[i] for count in counts[1:]) for i in (0, 1))
    return {"seconds": wall if torch.cuda.is_available() else cpu, "wall": wall, "tokens": tokens, "places": places}


def table(results: dict[str, list[dict[str, float]]], batches: dict[str, int]) -> str:
    def rate(way: str) -> float:
        return max(r["tokens"] / r["seconds"] for r in results[way])

    lines = [
        "| way | rows a batch | padding | tokens/s | times padded | seconds, each round |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for way, rounds in results.items():
        unused = 1 - sum(r["tokens"] for r in rounds) / sum(r["places"] for r in rounds)
        times = f"{rate(way) / rate(PADDED):.2f}" + (f" (≥ {TARGET})" if way == PACKED else "")
        seconds = ", ".join(f"{r['seconds']:.2f}" for r in rounds)
        lines.append(f"| {way} | {batches[way]} | {unused:.0%} | {rate(way):,.0f} | {times} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    logging.getLogger("hfkd").setLevel(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = TextDataArguments(args.dataset_name, args.max_length, max_train_rows=args.steps * args.batch_size)
    data.max_prompt_length, data.max_dev_rows = min(data.max_prompt_length, args.max_length // 2), 1
    documents = data.load(tokenizer).train
    rows = {way: rows_of(way, documents, args) for way in (PADDED, PACKED, FLATTENED)}
    share = len(rows[PACKED]) / len(documents)
    batches = {PADDED: args.batch_size, PACKED: max(round(args.batch_size * share), 1), FLATTENED: args.batch_size}
    results: dict[str, list[dict[str, float]]] = {way: [] for way in rows}
    with tempfile.TemporaryDirectory() as folder:
        few = documents.select(range(args.batch_size))
        losses = {way: loss_of(way, few, args, tokenizer, Path(folder)) for way in rows}
        if max(losses.values()) - min(losses.values()) > 1e-5 * max(losses.values()):
            raise SystemExit(f"the losses of a step on the same documents differ: {losses}")
        for _ in range(args.rounds):
            for way in rows:
                results[way].append(turn(way, args, rows[way], batches[way], tokenizer, Path(folder)))
    precision = "bf16 autocast" if args.bf16 else "float32"
    print(f"\nstudent {args.student}, teacher {args.teacher}, {args.max_length} tokens a row, {precision}")
    print(f"the loss of a step on the same {args.batch_size} documents: {losses}\n\n{table(results, batches)}")
    if args.json:
        payload = {"settings": {k: str(v) for k, v in vars(args).items()}, "environment": environment()}
        args.json.write_text(json.dumps(payload | {"losses": losses, "results": results}, indent=2))


if __name__ == "__main__":
    main()
