"""One step of each kind of row in the papers' tables, networks and connectors as they are."""

from pathlib import Path

import pytest
import torch
from digit_files import flags, write_digits

from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import run_table
from hfkd.experiments.rows import read_table
from hfkd.models import image_classifier

RECIPES = Path(__file__).parents[2] / "recipes"
PAIRS = {"energy_kd_table1": "resnet56_resnet20", "energy_kd_table2": "wrn_40_2_shufflenetv1"}
PAIRS |= {"ea_kd_table2": "vgg13_mobilenetv2", "energy_kd_table6": "resnet56_resnet20"}
ROWS = [(name, row) for name in PAIRS for row in read_table(RECIPES / "tables" / f"{name}.yaml").run]
KINDS = [(name, row.name) for name, row in ROWS if row.pair == PAIRS[name]]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    write_digits(folder / "digits")
    for teacher in ("resnet56", "wrn_40_2", "vgg13"):
        torch.manual_seed(0)
        torch.save(image_classifier(f"cifar_{teacher}", 10).state_dict(), folder / f"{teacher}.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), KINDS)
def test_a_row_takes_a_step(work, tmp_path, name, row):
    short = {"max_steps": 1, "per_device_train_batch_size": 8, "image_size": 32, "save_strategy": "no"}
    given = flags(work / "digits", output_dir=tmp_path, teachers=work, seeds=1, rows=row, **short)
    table = read_table(RECIPES / "tables" / f"{name}.yaml")
    text = run_table(table, given, Published.read(RECIPES / "published.yaml"))
    assert "1 failed" not in text
    assert f"| {row.rpartition(', ')[0]} |" in text
