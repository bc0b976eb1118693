"""What `reproduce.py --list` and `--dry_run` say before anything runs."""

from pathlib import Path

import pytest

from hfkd.experiments.listing import dry_run, listed
from hfkd.experiments.reproduction import jobs_of, run_table
from hfkd.experiments.rows import read_table

TABLES = Path(__file__).parents[2] / "recipes" / "tables"
HERE = ("--use_cpu", "--bf16=no")


def test_a_table_is_listed_with_its_rows_pairs_and_command():
    text = listed(read_table(TABLES / "ea_kd_table7.yaml"))
    assert text.splitlines() == [
        "ea_kd_table7: EA-KD, the temperature of the entropies (Table 7)",
        "    rows: EA-KD, T' = 2; EA-KD, T' = 3; EA-KD, T' = 4",
        "    pairs: resnet32x4_resnet8x4, wrn_28_4_wrn_16_2, resnet32x4_shufflenetv2",
        "    accelerate launch recipes/reproduce.py --table ea_kd_table7 --teachers FOLDER",
    ]
    assert "TAKD (quoted)" in listed(read_table(TABLES / "energy_kd_table1.yaml"))
    assert "--teacher_name NAME" in listed(read_table(TABLES / "comparison_cifar100.yaml"))
    assert "cannot be run: tables are of images' classes" in listed(read_table(TABLES / "ea_kd_table5.yaml"))


def test_a_dry_run_shows_what_each_row_would_be_run_with(tmp_path):
    table = read_table(TABLES / "energy_kd_table2.yaml")
    rows = "CAT-KD, resnet50_mobilenetv2", "FCFD, resnet32x4_shufflenetv2", "Energy DKD, resnet32x4_shufflenetv2"
    flags = [*HERE, "--rows", *rows, "--num_train_epochs=3", f"--output_dir={tmp_path / 'out'}"]
    header, _, *lines = [[c.strip() for c in line.strip("|").split("|")] for line in dry_run(table, flags).splitlines()]
    shown = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert set(shown) == set(rows)
    catkd, fcfd, energy = (shown[row] for row in rows)
    assert (catkd["objective"], catkd["KD"], catkd["rate"]) == ("catkd(size=2, normalized=True)", "40.0", "0.01")
    assert (fcfd["temperature"], fcfd["student"], fcfd["epochs"]) == ("8.0", "cifar_shufflenetv2", "3.0")
    assert energy["temperature"] == "energy(ratio=0.3, increase=4, decrease=1)"
    assert not (tmp_path / "out").exists()


def test_flags_may_change_what_only_the_protocol_of_the_rows_has(tmp_path):
    """Alone, without the protocol's decays and its evaluation of each epoch, they are refused."""
    more = "--lr_decay_factor=0.2", "--load_best_model_at_end", "--max_steps=20"
    flags = [*HERE, *more, "--rows", "KD, resnet32x4_resnet8x4", f"--output_dir={tmp_path}"]
    table = read_table(TABLES / "ea_kd_table2.yaml")
    assert "| 20 steps |" in dry_run(table, flags)
    args = jobs_of(table, flags)[0].flags()[-1]
    assert (args.lr_decay_factor, args.lr_decay_epochs, args.load_best_model_at_end) == (0.2, [150, 180, 210], True)


@pytest.mark.parametrize(
    ("table", "flags", "message"),
    [
        ("ea_kd_table5", (), r"EA-KD for object detection \(Table 5\) cannot be run: tables are of images' classes"),
        ("energy_kd_table1", ("--rows", "TAKD, vgg13_vgg8"), "--rows 'TAKD, vgg13_vgg8' is not a row"),
        ("energy_kd_table1", ("--objective", "kdd", "--rows", "KD, vgg13_vgg8"), "unknown objective 'kdd'"),
    ],
)
def test_what_is_refused(tmp_path, table, flags, message):
    for act in (dry_run, lambda *given: run_table(*given, None)):
        with pytest.raises(ValueError, match=message):
            act(read_table(TABLES / f"{table}.yaml"), [*HERE, *flags, f"--output_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
