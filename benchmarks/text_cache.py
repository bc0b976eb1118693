"""A stored language-model teacher compared with the live one: bytes per token, error of the loss and its gradient.

    OMP_NUM_THREADS=1 python benchmarks/text_cache.py --teacher stories260K --stories stories260K-samples.jsonl

The teacher's outputs are stored with k = 16, 64, ... tokens and compared with its whole distribution on the same rows:
KL(teacher || student) at the temperature, and its gradient with respect to the student's logits, |g_k - g| / |g| over
all tokens. "top-k alone" is the same without the bucket for all other tokens (both distributions renormalised over the
k), for comparison. Students: random weights, and the teacher's own weights with noise, as for a nearly converged
student. Entropies and energies are exact for any k; the table shows their difference. The last table has computed sizes
for other vocabularies.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from hfkd.data.text import tokenize_dataset
from hfkd.data.text_collate import TokenCollator
from hfkd.data.text_files import read_jsonl
from hfkd.losses.items import Items, target_items, token_items
from hfkd.losses.logits import KD
from hfkd.losses.logits.divergences import kl
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.reports.environment import environment
from hfkd.teachers import CachedTextTeacher, build_text_cache
from hfkd.teachers.token_cache.manifest import bytes_per_token
from hfkd.utils.targets import Targets

BATCH = 8


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="Hub id or folder of a causal language model")
    parser.add_argument("--stories", required=True, help="JSON-lines file of texts, in a column text")
    parser.add_argument("--rows", type=int, default=100, help="texts, the first of the file")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--dtype", nargs="+", default=["float16", "float32"], choices=["float16", "float32"])
    parser.add_argument(
        "--noise", type=float, default=0.05, help="of the near student, in units of each weight's spread"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="16 texts, stored in one way")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.k, args.dtype = 16, args.k[:1], args.dtype[:1]
    return args


def students(teacher: nn.Module, noise: float) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    fresh, near = type(teacher)(teacher.config), copy.deepcopy(teacher)
    with torch.no_grad():
        for p in near.parameters():
            if p.ndim > 1:
                p.add_(noise * p.std() * torch.randn_like(p))
    return {"fresh": fresh.eval(), "near": near.eval()}


def divergence(items: Items, temperature: float) -> tuple[Tensor, Tensor]:
    """The objective's sum over the items, and its gradient [N, V] with respect to the student's logits."""
    values = KD(scale="none")(items, torch.full((len(items),), temperature))
    return values.sum().detach(), torch.autograd.grad(values.sum(), items.student.logits)[0]


def top_k_alone(items: Items, temperature: float) -> tuple[Tensor, Tensor]:
    """As `divergence`, without the tokens outside the k."""
    log_p, log_q = (
        x[:, : items.teacher.ids.shape[1]].log_softmax(-1)
        for x in items.log_probabilities(torch.full((len(items),), temperature))
    )
    value = kl(log_p, log_q).sum()
    return value.detach(), torch.autograd.grad(value, items.student.logits)[0]


def compare(
    student: nn.Module, teacher: nn.Module, cached: CachedTextTeacher, rows: Dataset, temperature: float
) -> dict[str, float]:
    """Relative errors of the stored outputs, over all rows."""
    sums = dict.fromkeys(("kl", "kl_k", "kl_top", "g", "dg_k", "dg_top", "entropy", "energy", "tokens"), 0.0)
    for start in range(0, len(rows), BATCH):
        chosen = [rows[i] for i in range(start, min(start + BATCH, len(rows)))]
        batch = TokenCollator(0)(chosen)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            said, taught = student(**inputs).logits, teacher(**inputs).logits
        targets = Targets(batch["labels"])
        live = token_items(said.requires_grad_(), taught, batch["labels"])
        stored = target_items(live.student, cached.outputs(cached.look_up(chosen)), targets)
        (whole, g), (mine, g_k), (top, g_top) = (
            divergence(live, temperature),
            divergence(stored, temperature),
            top_k_alone(stored, temperature),
        )
        sums["kl"] += whole.item()
        sums["kl_k"] += mine.item()
        sums["kl_top"] += top.item()
        sums["g"] += g.square().sum().item()
        sums["dg_k"] += (g_k - g).square().sum().item()
        sums["dg_top"] += (g_top - g).square().sum().item()
        m = cached.manifest
        for name, t in (("entropy", m.entropy_temperature), ("energy", m.energy_temperature)):
            gap = getattr(stored.teacher, name)(t) - getattr(live.teacher, name)(t)
            sums[name] = max(sums[name], gap.abs().max().item())
        sums["tokens"] += len(live)
    return {
        "kl": sums["kl"] / sums["tokens"],
        "kl_error": sums["kl_k"] / sums["kl"] - 1,
        "kl_error_top_k_alone": sums["kl_top"] / sums["kl"] - 1,
        "gradient_error": (sums["dg_k"] / sums["g"]) ** 0.5,
        "gradient_error_top_k_alone": (sums["dg_top"] / sums["g"]) ** 0.5,
        "entropy_gap": sums["entropy"],
        "energy_gap": sums["energy"],
        "tokens": sums["tokens"],
    }


HEADER = (
    "| k | stored as | bytes a token | student | KL | error of KL | error of gradient | error of KL, top-k alone "
    "| of gradient, top-k alone | largest gap of entropy, energy |\n|---:|---|---:|---|---:|---:|---:|---:|---:|---|"
)


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['k']} | {row['dtype']} | {row['bytes']} | {row['student']} | {row['kl']:.4f} | "
        f"{row['kl_error']:+.3%} | "
        f"{row['gradient_error']:.3%} | {row['kl_error_top_k_alone']:+.1%} | {row['gradient_error_top_k_alone']:.1%} | "
        f"{row['entropy_gap']:.0e}, {row['energy_gap']:.0e} |"
    )


def sizes(ks: list[int]) -> str:
    lines = [
        "| V | " + " | ".join(f"k = {k}" for k in ks) + " | all V in float16 |",
        "|---:|" + "---:|" * (len(ks) + 1),
    ]
    for vocabulary in (512, 50257, 151936):
        cells = [f"{bytes_per_token(min(k, vocabulary), vocabulary, 'float16', 1):,}" for k in ks]
        lines.append(f"| {vocabulary:,} | " + " | ".join(cells) + f" | {2 * vocabulary:,} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    teacher, tokenizer = causal_lm(args.teacher).eval(), load_tokenizer(args.teacher)
    texts = read_jsonl(args.stories)
    texts = texts.select(range(min(args.rows, len(texts))))
    rows = tokenize_dataset(texts, tokenizer, max_length=args.max_length, max_prompt_length=args.max_length - 1)
    results = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for k in args.k:
            for dtype in args.dtype:
                where = f"{folder}/{k}-{dtype}"
                start = time.perf_counter()
                settings = {"k": k, "dtype": dtype, "temperatures": args.temperature, "progress_bar": False}
                build_text_cache(teacher, rows, where, **settings)
                seconds = time.perf_counter() - start
                cached = CachedTextTeacher(where)
                for name, student in students(teacher, args.noise).items():
                    row = {"k": k, "dtype": dtype, "student": name, "bytes": cached.manifest.bytes_per_token}
                    row |= {"build_seconds": seconds, **compare(student, teacher, cached, rows, args.temperature)}
                    results.append(row)
                    print(line(row), flush=True)
    print(f"\n{results[0]['tokens']:,.0f} target tokens, T = {args.temperature}\n\nBytes a token:\n\n{sizes(args.k)}")
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
