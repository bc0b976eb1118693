"""The recipe of deep mutual learning, as users start it."""

import json
import runpy
import sys
from pathlib import Path

from digit_files import flags, write_digits

RECIPE = Path(__file__).parents[2] / "recipes" / "dml.py"


def test_peers_each_leave_their_scores(monkeypatch, tmp_path):
    names = ["cifar_resnet20", "cifar_resnet8x4"]
    given = flags(write_digits(tmp_path / "digits"), output_dir=tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["dml.py", *given, "--peer_names", *names])
    runpy.run_path(str(RECIPE), run_name="__main__")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["config"]["peer_names"]) == ("finished", names)
    card = (tmp_path / "run" / "README.md").read_text()  # written last, as what is uploaded has the peers
    assert "| peer_0_accuracy |" in card
    assert "| peer_1_accuracy |" in card
    for k in range(2):
        scores = json.loads((tmp_path / "run" / f"peer_{k}" / "scores.json").read_text())
        assert 0 <= scores[f"eval_peer_{k}_accuracy"] <= 1
