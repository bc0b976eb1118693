"""Run a table of methods with several seeds, and compare the results with those that the papers report.

    accelerate launch recipes/reproduce.py --table comparison_cifar100 --seeds 2 --output_dir runs/comparison \\
        --teacher_name cifar_wrn_16_2 --teacher_checkpoint wrn_16_2.pth --student_name cifar_resnet20
    accelerate launch recipes/reproduce.py --table energy_kd_table1 --teachers FOLDER --output_dir runs/energy_kd_table1
    python recipes/reproduce.py --table ea_kd_table2 --dry_run
    python recipes/reproduce.py --list

The tables are those of Energy KD (energy_kd_*) and EA-KD (ea_kd_*), and further comparisons. --list prints them with
their commands, --dry_run the settings of each row.

Each run equals cifar100_energy_kd.py with the row's settings. The same command resumes an interrupted table: finished
runs are kept, and a killed one continues from its last checkpoint. A run that diverges is recorded as failed, and the
next one starts; with another `--on_nan` it is resumed, with other settings it starts from scratch. table.md, table.json
and the figure table.svg (with matplotlib) in output_dir are updated after every run, and include runs of earlier calls.
Flags apply to all rows (`--max_steps 20`, `--num_train_epochs 30 --lr_decay_epochs 18 24 27`,
`--max_train_images 2000`); a flag that would change a setting that defines a row is refused.
"""

import sys
from pathlib import Path

from hfkd.experiments.listing import dry_run, listed
from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import FLAGS, flags_of, run_table
from hfkd.experiments.rows import read_table
from hfkd.utils.parsing import given_settings, parse

HERE = Path(__file__).parent
TABLES = HERE / "tables"


def main() -> None:
    given = given_settings(FLAGS)
    if given.get("list") or given.get("table") is None:
        *_, args = parse(FLAGS, description=__doc__)
        for path in sorted(TABLES.glob("*.yaml")) if args.process_index == 0 else ():
            print(listed(read_table(path)))
        return
    named = TABLES / f"{given['table']}.yaml"
    table = read_table(named if named.is_file() else given["table"])
    flags, *_, args = flags_of(table, description=__doc__)
    text = (
        dry_run(table, sys.argv[1:])
        if flags.dry_run
        else run_table(table, sys.argv[1:], Published.read(HERE / "published.yaml"))
    )
    if args.process_index == 0:
        print(text)


if __name__ == "__main__":
    main()
