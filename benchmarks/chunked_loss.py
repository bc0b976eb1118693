"""Peak memory and time of the dense and the chunked loss: KD with entropy weights, forward and backward.

    OMP_NUM_THREADS=2 python benchmarks/chunked_loss.py --vocab 50257 151936

Each run is a new process with the hidden states and heads of student and teacher; it measures the additional peak
memory of the loss including its gradients (resident memory on the CPU, allocated memory on a GPU), and the fastest
step. Time is measured with freed memory kept, as DistillationTrainer does on a CPU (--no-keep_memory: without). Memory
is measured in a separate process in which glibc returns freed blocks of 4 MiB and more immediately: otherwise its free
lists would determine the peak. Time on a CPU is processor time, which hardly depends on other processes. --compiled
adds torch.compile of the loss of logits (its memory on a CPU includes the compiler's). --peers adds losses of other
projects on the same hidden states; all rows then compute the same loss, KL(teacher || student) at T = 2 without T² or
cross-entropy, uniform weights. The run stops if a row's loss differs from the dense one.

    pip install --target DIR --no-deps 'trl==1.16.*' liger-kernel
    OMP_NUM_THREADS=1 python benchmarks/chunked_loss.py --peers trl liger --peers_dir DIR
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fresh_process import DEVICE, in_fresh_processes, peak
from peers import importable
from torch import nn

from hfkd.losses.chunked import CHUNK_SIZE, ChunkedLoss
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import token_hidden, token_items
from hfkd.utils.cpu_memory import keep_freed_memory

LENGTH = 256  # tokens of a sequence
PEERS = {"trl": "TRL's chunked divergence", "liger": "Liger's fused linear JSD"}
MODULES = {"trl": "trl.kernels.chunked_divergence", "liger": "liger_kernel.chunked_loss"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=int, nargs="+", help=f"items, in sequences of {LENGTH} (default: 2048, on a GPU also 8192)"
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[50257, 151936])
    parser.add_argument("--hidden", type=int, default=768, help="hidden size of the student")
    parser.add_argument("--teacher_hidden", type=int, default=None, help="of the teacher (default: the student's)")
    parser.add_argument("--chunk_size", type=int, nargs="+", default=[CHUNK_SIZE])
    parser.add_argument("--weighting", default="entropy", help="the slot; 'uniform' needs no pass before the loss")
    parser.add_argument("--repeats", type=int, default=5, help="steps a process; the fastest counts")
    parser.add_argument("--rounds", type=int, default=2, help="processes a case; the fastest counts")
    parser.add_argument(
        "--keep_memory", action=argparse.BooleanOptionalAction, default=True, help="keep freed memory while timing"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="few tokens, one vocabulary, two steps, one process")
    parser.add_argument("--peers", nargs="+", default=[], choices=PEERS, help="packages trl, liger-kernel: also theirs")
    parser.add_argument("--peers_dir", help="folder that holds those packages")
    parser.add_argument("--compiled", action="store_true", help="also the chunks with torch.compile")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the child process: one case as JSON
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.vocab, args.repeats, args.rounds = args.tokens or [512], args.vocab[:1], 2, 1
    args.tokens = args.tokens or ([2048, 8192] if DEVICE == "cuda" else [2048])
    args.teacher_hidden = args.teacher_hidden or args.hidden
    args.shared_loss = bool(args.peers)
    if args.shared_loss:
        args.weighting = "uniform"
    return args


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Extra bytes and seconds of one step, and the loss; chunk_size 0 is the dense loss."""
    if case["keep_memory"]:
        keep_freed_memory()
    torch.manual_seed(0)
    batch = max(case["tokens"] // LENGTH, 1)
    length = case["tokens"] // batch + 1  # the first token of a sequence is not predicted
    hidden, taught = (torch.randn(batch, length, case[k], device=DEVICE) for k in ("hidden", "teacher_hidden"))
    hidden.requires_grad_()
    head = nn.Linear(case["hidden"], case["vocab"], bias=False, device=DEVICE)
    teacher_head = nn.Linear(case["teacher_hidden"], case["vocab"], bias=False, device=DEVICE).requires_grad_(False)
    labels = torch.randint(case["vocab"], (batch, length), device=DEVICE)
    value_of = loss_function(case)
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time

    def step() -> tuple[float, float]:
        start = clock()
        value = value_of(hidden, taught, labels, head, teacher_head)
        value.backward()
        result = value.item()  # synchronizes with a GPU
        seconds = clock() - start
        hidden.grad = head.weight.grad = None
        return seconds, result

    before = peak()
    seconds, values = zip(*(step() for _ in range(case["repeats"])), strict=True)
    return {"bytes": peak() - before, "seconds": min(seconds), "value": values[0]}


def loss_function(case: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """(hidden, taught, labels, head, teacher_head) -> the loss, dense, in chunks, or a peer's."""
    if case["peer"]:
        sys.path.append(case["peers_dir"] or ".")
    if case["peer"] == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        def trl(hidden: Any, taught: Any, labels: Any, head: Any, teacher_head: Any) -> torch.Tensor:
            student, teacher = (targets(hidden), head.weight, None), (targets(taught), teacher_head.weight, None)
            return ChunkedDivergenceFunction.apply(*student, *teacher, 0.0, 2.0)[0].mean()

        return trl
    if case["peer"] == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        # Compiled, as Liger's default is, where there is a GPU to compile for.
        jsd = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, temperature=2.0, compiled=DEVICE == "cuda")
        return lambda hidden, taught, labels, head, teacher_head: jsd(
            targets(hidden), head.weight, targets(taught), teacher_head.weight, labels[:, 1:].flatten()
        )
    shared = {"objective": "kd(scale='none')", "ce_weight": 0.0, "kd_weight": 1.0} if case["shared_loss"] else {}
    loss = DistillationLoss(temperature=2.0, weighting=case["weighting"], **shared)
    if case["compiled"]:
        loss.per_item = torch.compile(loss.per_item)
    if not case["chunk_size"]:
        return lambda hidden, taught, labels, head, teacher_head: loss(
            token_items(head(hidden), teacher_head(taught), labels)
        )[0]
    chunked = ChunkedLoss(loss, case["chunk_size"])
    return lambda hidden, taught, labels, head, teacher_head: chunked(
        token_hidden(hidden, taught, labels), head, teacher_head
    )[0]


def targets(states: torch.Tensor) -> torch.Tensor:
    """[B, L, H] -> [N, H], the peers' input: every token except the last of a sequence predicts one."""
    return states[:, :-1].flatten(0, 1)


def cases(args: argparse.Namespace, tokens: int, vocab: int) -> list[dict[str, Any]]:
    """The dense loss first."""
    shared = {
        k: getattr(args, k) for k in ("hidden", "teacher_hidden", "weighting", "repeats", "peers_dir", "keep_memory")
    }
    shared |= {"tokens": tokens, "vocab": vocab, "shared_loss": args.shared_loss}
    ways = [(0, None, False), *((n, None, c) for n in args.chunk_size for c in ([False, True][: 1 + args.compiled]))]
    ways += [(0, peer, False) for peer in args.peers]
    return [shared | {"chunk_size": n, "peer": peer, "compiled": compiled} for n, peer, compiled in ways]


def compare(cases: list[dict[str, Any]], rounds: int, rows: list[dict[str, Any]]) -> None:
    """Measure and print the cases, and add them to `rows` with their ratios to the first."""
    results: list[dict[str, float]] = []
    for case in cases:
        result = in_fresh_processes(__file__, case, rounds)
        results.append(result)
        dense = results[0]
        if not math.isclose(result["value"], dense["value"], rel_tol=1e-3):
            raise SystemExit(f"{case}: the loss is {result['value']}, and {dense['value']} dense: not the same loss")
        ratios = {k: result[k] / dense[k] for k in ("bytes", "seconds")}
        rows.append({k: v for k, v in case.items() if k != "peers_dir"} | result | {"ratios": ratios})
        chunks = f"chunks of {case['chunk_size']}{', compiled' if case['compiled'] else ''}"
        name = PEERS[case["peer"]] if case["peer"] else chunks if case["chunk_size"] else "dense"
        print(
            f"| {case['tokens']} | {case['vocab']} | {name} | {result['bytes'] / 1e6:.0f} | "
            f"{result['seconds']:.2f} | {ratios['bytes']:.3f} | {ratios['seconds']:.2f} |",
            flush=True,
        )


def main() -> None:
    args = parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return
    args.peers = [peer for peer in args.peers if importable(MODULES[peer], args.peers_dir)]
    rows: list[dict[str, Any]] = []
    print("| N | V | loss | extra memory, MB | time, s | memory ratio | time ratio |\n|---|---|---|---|---|---|---|")
    for tokens, vocab in itertools.product(args.tokens, args.vocab):
        compare(cases(args, tokens, vocab), args.rounds, rows)
    if args.json:
        args.json.write_text(json.dumps({"device": DEVICE, "torch": torch.__version__, "runs": rows}, indent=2))


if __name__ == "__main__":
    main()
