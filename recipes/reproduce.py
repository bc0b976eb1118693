"""Run a table of methods with several seeds, and write what came out beside what the papers report.

    accelerate launch recipes/reproduce.py --table comparison_cifar100 --seeds 2 --output_dir runs/comparison \\
        --teacher_name cifar_wrn_16_2 --teacher_checkpoint wrn_16_2.pth --student_name cifar_resnet20
    accelerate launch recipes/reproduce.py --table energy_kd_table1 --teachers FOLDER --output_dir runs/energy_kd_table1
    python recipes/reproduce.py --table ea_kd_table2 --dry_run
    python recipes/reproduce.py --list

The tables are those of Energy KD (energy_kd_*) and EA-KD (ea_kd_*), and comparisons of our own. --list prints them with
their commands, --dry_run what each row would be run with.

Each run is what cifar100_energy_kd.py does with the row's settings. The same command goes on where it was stopped: runs
that are finished are kept, one that was killed is taken up from its last checkpoint. One that diverges is recorded as
failed, and the table goes on; with another `--on_nan` it is taken up, with other settings begun anew. table.md and
table.json in output_dir are renewed after every run, and have what earlier calls left. Flags hold for all rows
(`--max_steps 20`, `--num_train_epochs 30 --lr_decay_epochs 18 24 27`, `--max_train_images 2000`); one that would change
what a row's name says is refused.
"""

import sys
from pathlib import Path

from hfkd.experiments.listing import dry_run, listed
from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import FLAGS, run_table
from hfkd.experiments.rows import read_table
from hfkd.utils.parsing import parse

HERE = Path(__file__).parent
TABLES = HERE / "tables"


def main() -> None:
    flags, *_, args = parse(FLAGS, description=__doc__)
    show = print if args.process_index == 0 else lambda text: None
    if flags.list or flags.table is None:
        for path in sorted(TABLES.glob("*.yaml")):
            show(listed(read_table(path)))
        return
    named = TABLES / f"{flags.table}.yaml"
    table = read_table(named if named.is_file() else flags.table)
    if flags.dry_run:
        show(dry_run(table, sys.argv[1:]))
        return
    show(run_table(table, sys.argv[1:], Published.read(HERE / "published.yaml")))


if __name__ == "__main__":
    main()
