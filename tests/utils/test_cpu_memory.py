"""A process that keeps what it frees is not given the same pages anew by the kernel."""

import subprocess
import sys

import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.utils.cpu_memory import keep_freed_memory

COUNT = """
import resource, sys
import numpy as np
from hfkd.utils.cpu_memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
np.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8 << 20)  # 64 MiB
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way):
    done = subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_the_same_pages_are_used_again():
    kept, few = faults("keep")
    if not kept:
        pytest.skip("no glibc")
    assert few < faults("leave")[1] / 10


@pytest.mark.parametrize("wanted", [True, False])
def test_training_on_a_cpu_asks_for_it_unless_told_not_to(tmp_path, monkeypatch, wanted):
    asked = []
    monkeypatch.setattr("hfkd.trainer.keep_freed_memory", lambda: asked.append(keep_freed_memory()))
    args = arguments(tmp_path, max_steps=1, keep_freed_memory=wanted)
    DistillationTrainer(Net(), teacher(), args, train_dataset=Rows()).train()
    assert len(asked) == wanted
