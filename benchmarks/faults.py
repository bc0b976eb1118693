"""Kill small runs at random events, by kill -9 and other signals, and compare the results with an uninterrupted run.

    python benchmarks/faults.py --kills 10

An event is a training batch, a batch of the teacher scan, a file of a checkpoint (which is truncated first) or a record
of a store (half written), a file or folder being renamed, or one being deleted. A run is stopped up to three times,
then finishes; the bytes of its student and of the loss's parameters (connectors, memory banks, agents), its thresholds,
metrics and history are compared. CPU; the jobs are those of tests/resume_job.py.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from resume_job import CASES, left_over, outcome, sit
from turns import write

KINDS = ("step", "scan", "write", "rename", "delete")
SIGNALS = ("KILL", "TERM", "INT")


def kill_runs(case: str, options: argparse.Namespace, folder: Path, bar: tqdm) -> dict[str, Counter[str] | int]:
    """Counts of each kind of event and signal that stopped a run of `case`, repeated batches, and runs that differ."""
    draw = random.Random(f"{options.seed} {case}")
    folder.mkdir()
    assert sit(case, folder / "alone", save=str(folder / "events")) is None
    expected, events = outcome(folder / "alone"), json.loads((folder / "events").read_text())
    killed: Counter[str] = Counter()
    signals: Counter[str] = Counter()
    repeated = different = number = 0
    while sum(killed.values()) < options.kills:
        run = folder / str(number)
        number += 1
        for _ in range(draw.randint(1, 3)):
            sent = draw.choice(options.signals)
            name = sit(case, run, draw.randrange(len(events)), signal_number=getattr(signal, f"SIG{sent}"))
            if name is None:  # the rest of the run had fewer events
                break
            killed[name.split()[0]] += 1
            signals[sent] += 1
            repeated += int(Path(f"{run}.lost").read_text())
            bar.update()
        else:
            assert sit(case, run) is None
        different += outcome(run) != expected or bool(left_over(run))
    return {"killed": killed, "signals": signals, "runs": number, "repeated": repeated, "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each kind of run, at least")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="RUN", help=", ".join(CASES))
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=["KILL", "KILL", "TERM", "INT"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="two kills of the first kind of run")
    options = parser.parse_args()
    cases, results = options.only or list(CASES), {}
    if options.quick:
        cases, options.kills = cases[:1], 2
    head = ["run", *(f"stopped at a {kind}" for kind in KINDS), *SIGNALS, "runs", "batches done twice", "runs changed"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    with tempfile.TemporaryDirectory() as folder, tqdm(total=options.kills * len(cases), unit="kill") as bar:
        for case in cases:
            bar.set_description(case)
            found = results[case] = kill_runs(case, options, Path(folder) / case, bar)
            counts = [found["killed"][kind] for kind in KINDS] + [found["signals"][name] for name in SIGNALS]
            cells = [case, *counts, found["runs"], found["repeated"], found["different"]]
            bar.write("| " + " | ".join(map(str, cells)) + " |")
            write(options.json, results=results)
    changed = sum(found["different"] for found in results.values())
    print(f"\n{sum(sum(found['killed'].values()) for found in results.values())} kills, {changed} runs changed")


if __name__ == "__main__":
    main()
