"""Kill small runs -9 at random events and compare what they leave with the run that was left alone.

    python benchmarks/faults.py --kills 50

An event is a training batch, a batch of the teacher scan, a file of a checkpoint (which is cut in half first), a file
or folder that gets its name, or one that is deleted. A run is killed up to three times, then ends; its student's bytes,
thresholds, metrics and history are compared. CPU; the jobs are those of tests/resume_job.py.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from resume_job import CASES, left_over, outcome, sit
from turns import write

KINDS = ("step", "scan", "write", "rename", "delete")


def kill_runs(case: str, kills: int, folder: Path, draw: random.Random) -> tuple[Counter[str], int, int]:
    """How often each kind of event killed a run of `case`, batches done twice in all, and runs that ended otherwise."""
    folder.mkdir()
    assert sit(case, folder / "alone", save=str(folder / "events")) is None
    expected, events = outcome(folder / "alone"), json.loads((folder / "events").read_text())
    killed: Counter[str] = Counter()
    repeated = different = number = 0
    while sum(killed.values()) < kills:
        run = folder / str(number)
        number += 1
        for _ in range(draw.randint(1, 3)):
            name = sit(case, run, kill_at=draw.randrange(len(events)))
            if name is None:  # what was left to do had fewer events
                break
            killed[name.split()[0]] += 1
            repeated += int(Path(f"{run}.lost").read_text())
        else:
            assert sit(case, run) is None
        different += outcome(run) != expected or bool(left_over(run))
    return killed, repeated, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="two kills of the first kind of run")
    options = parser.parse_args()
    cases, results = list(CASES), {}
    if options.quick:
        cases, options.kills = cases[:1], 2
    print(
        "| run | " + " | ".join(f"killed at a {kind}" for kind in KINDS) + " | batches done twice | results changed |"
    )
    print("|---" * (len(KINDS) + 3) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            draw = random.Random(f"{options.seed} {case}")
            killed, repeated, different = kill_runs(case, options.kills, Path(folder) / case, draw)
            results[case] = {"killed": killed, "repeated": repeated, "different": different}
            cells = [case, *(killed[kind] for kind in KINDS), repeated, different]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    write(options.json, results=results)


if __name__ == "__main__":
    main()
