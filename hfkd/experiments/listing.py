"""Lists the available tables, and what a table would run."""

from collections.abc import Sequence

from hfkd.experiments.reproduction import jobs_of, slots_of
from hfkd.experiments.rows import Table
from hfkd.utils.numbers import markdown_table

NETWORKS = "--teacher_name NAME --teacher_checkpoint FILE --student_name NAME"


def listed(table: Table) -> str:
    """A table's title, rows and pairs, and the command that runs it."""
    lines = [f"{table.name}: {table.title}"]
    labels = {row.label: row.quoted for row in table.rows}
    lines.append("    rows: " + "; ".join(f"{label} (quoted)" if why else label for label, why in labels.items()))
    pairs = dict.fromkeys(row.pair for row in table.rows if row.pair is not None)
    lines += [f"    pairs: {', '.join(pairs)}"] if pairs else []
    if table.refused is not None:
        lines.append(f"    cannot be run: {table.refused}")
    else:
        networks = "--teachers FOLDER" if pairs else NETWORKS
        lines.append(f"    accelerate launch recipes/reproduce.py --table {table.name} {networks}")
    return "\n".join(lines)


def dry_run(table: Table, argv: Sequence[str]) -> str:
    """The settings of each row selected by `argv`, in Markdown; raises ValueError as the run itself would.

    Missing weights are not an error here.
    """
    lines = []
    for job in {job.row: job for job in jobs_of(table, argv)}.values():
        _, networks, data, args = job.flags()
        slots_of(args)
        shown = {
            "row": job.row.name,
            "teacher": " + ".join(networks.teacher_name),
            "student": networks.student_name,
            "data": data.dataset_name,
            "objective": args.objective,
            "temperature": args.slot_temperature,
            "weighting": args.weighting,
            "CE": args.ce_weight,
            "KD": args.kd_weight,
            "epochs": f"{args.max_steps} steps" if args.max_steps > 0 else args.num_train_epochs,
            "batch": args.per_device_train_batch_size,
            "rate": args.learning_rate,
            "views": data.views,
        }
        lines.append(shown)
    return markdown_table(list(lines[0]), [[str(value) for value in line.values()] for line in lines])
