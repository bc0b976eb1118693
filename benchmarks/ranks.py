"""The same batches of 8 on one process, on two, and accumulated: how far parameters, logs and evaluation differ.

    python benchmarks/ranks.py

Five SGD steps in float32 on a CPU; the jobs are those of tests/test_ranks.py, with 13 rows to evaluate, which two
processes do not divide.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_ranks import JOBS, differences, run_splits
from turns import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="the first job alone")
    options = parser.parse_args()
    results = {}
    print("| job | against 1 x 8 | parameters | training logs | evaluation |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in list(JOBS)[: 1 if options.quick else None]:
            runs = run_splits(Path(folder) / name, name)
            for way in ("2 x 4", "1 x 4 x 2"):
                found = differences(runs["1 x 8"], runs[way])
                results[f"{name}: {way}"] = found
                cells = [name, way, *(f"{value:.1e}" for value in found.values())]
                print("| " + " | ".join(cells) + " |", flush=True)
    write(options.json, results=results)


if __name__ == "__main__":
    main()
