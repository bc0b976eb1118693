"""Runs a table: each row with several seeds, one run after another in this process, resumable."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.published import Published
from hfkd.experiments.resume import RETRIED, Run, deciding, distil_and_keep, kept_run, refuse_other
from hfkd.experiments.rows import Row, Table
from hfkd.experiments.summary import markdown, summarise
from hfkd.experiments.table_figure import table_figure
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import NetworkArguments
from hfkd.reports.style import figure_bytes
from hfkd.utils.files import write_atomically
from hfkd.utils.flags import flag
from hfkd.utils.json_file import write_json
from hfkd.utils.parsing import Parsed, given_settings, parse

logger = logging.getLogger(__name__)

FIGURE_NAME = "table.svg"
# settings that flags may change in all rows, for shorter or longer runs
SCHEDULE = {f.name for f in fields(TrainingArguments)} | {"lr_decay_epochs", "lr_decay_factor"}


@dataclass
class TableArguments:
    """A table of methods and seeds (`reproduce.py`, which also takes flags for networks, images and distillation)."""

    table: str | None = flag(None, "The table: a YAML file, or its name in recipes/tables.")
    seeds: int = flag(3, "Runs of each row, with the seeds --seed, --seed + 1, ...")
    rows: list[str] | None = flag(None, "Run only the rows with these names.")
    teachers: str | None = flag(
        None, "Folder with the teachers' weights, for tables with several pairs: wrn_40_2.pth, resnet56.pth ..."
    )
    pages: bool = flag(False, "Write a page for each run, which needs another pass over all images.")
    list: bool = flag(False, "Print the tables of recipes/tables and stop.")
    dry_run: bool = flag(False, "Print the settings of each row of the table without running it.")

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be 1 or more")


FLAGS = (TableArguments, NetworkArguments, ImageDataArguments, DistillationArguments)


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a table, described by its flags; those of the command line, `argv`, take precedence."""

    row: Row
    seed: int
    folder: Path
    argv: tuple[str, ...]

    def flags(self) -> tuple[TableArguments, NetworkArguments, ImageDataArguments, DistillationArguments]:
        """Parsed again for each run, since creating TrainingArguments configures the process."""
        argv = [*self.argv, f"--output_dir={self.folder}", f"--seed={self.seed}"]
        table, networks, data, args = parse(FLAGS, argv, self.row.layers)
        at_hand = networks.mutual_learning or any("/" in name for name in networks.teacher_name)
        if table.teachers is not None and not at_hand:
            weights = [f"{name.removeprefix('cifar_')}.pth" for name in networks.teacher_name]
            networks = replace(networks, teacher_checkpoint=[str(Path(table.teachers) / w) for w in weights])
        return table, networks, data, args

    def check(self, compared: frozenset[str]) -> None:
        """Raise ValueError for errors that would otherwise appear only when this run starts.

        `compared`: the settings in which the rows of the table differ, which flags must not override.
        """
        _, networks, _, args = self.flags()
        slots_of(args)
        for weights in networks.teacher_checkpoint or ():
            if not Path(weights).is_file():
                raise ValueError(
                    f"row {self.row.name!r}: the weights {weights} do not exist; correct teacher_checkpoint or teachers"
                )
        alone = {k: v for part in parse(FLAGS, [], self.row.layers) for k, v in vars(part).items()}
        given = {k: v for part in parse(FLAGS, self.argv, self.row.layers) for k, v in vars(part).items()}
        for name in sorted(compared - SCHEDULE):
            if given[name] != alone[name]:
                raise ValueError(
                    f"--{name} {given[name]}: row {self.row.name!r} is defined by {name}={alone[name]}, which a "
                    "flag must not change; leave the flag out, or write another table"
                )

    def kept(self) -> Run | None:
        """This run from an earlier call, if it is not to be run again: finished, or failed with these settings; else
        None.

        Raises ValueError if a run of the row, with any seed, has other settings, as a row averages a single protocol.
        Failed runs may have others: they are run again.
        """
        _, networks, data, args = self.flags()
        settings = deciding(networks, data, args)
        for folder, run in runs_of(self.folder.parent).items():
            if run.status != "failed":
                refuse_other(folder, run, settings, (*RETRIED, "seed"))
        own = kept_run(self.folder)
        if own is None or own.status == "running":
            return None
        if own.status == "failed":
            return None if own.difference(settings, ()) else own
        refuse_other(self.folder, own, settings)
        return own

    def run(self) -> None:
        """Run from the last checkpoint of an interrupted run, or from the start."""
        table, networks, data, args = self.flags()
        distil_and_keep(networks, data, args, page=table.pages)


def slots_of(args: DistillationArguments) -> DistillationLoss:
    return DistillationLoss(args.objective, args.slot_temperature, args.weighting, args.ce_weight, args.kd_weight)


def flags_of(table: Table, argv: Sequence[str] | None = None, **parser_options: Any) -> Parsed:
    """The flags that the runs of a table share, from `argv` as in `parse`, on top of the first row that they select.

    Some flags are refused without settings of the protocol, such as the decay epochs, which rows have.
    """
    names = given_settings(FLAGS, argv).get("rows") or [row.name for row in table.run]
    protocol = next((row.layers for row in table.run if row.name in names), ())
    return parse(FLAGS, argv, [*protocol, {"output_dir": f"runs/{table.name}"}], **parser_options)


def jobs_of(table: Table, argv: Sequence[str]) -> list[Job]:
    """The runs of a table selected by the flags. ValueError for a table that cannot be run, or an unknown row."""
    if table.refused is not None:
        raise ValueError(f"--table {table.name}: {table.title} cannot be run: {table.refused}")
    flags, _, _, args = flags_of(table, argv)
    unknown = set(flags.rows or ()) - {row.name for row in table.run}
    if unknown:
        raise ValueError(
            f"--rows {min(unknown)!r} is not a row of the table: choose from {[row.name for row in table.run]}"
        )
    rows = [row for row in table.run if flags.rows is None or row.name in flags.rows]
    folder = Path(args.output_dir or ".")
    seeds = range(args.seed, args.seed + flags.seeds)
    return [Job(row, s, folder / row.folder / f"seed{s}", tuple(argv)) for s in seeds for row in rows]


def run_table(table: Table, argv: Sequence[str], published: Published) -> str:
    """Run the unfinished runs of `table` with the flags `argv`, and return the table in Markdown.

    `output_dir` gets a folder for each row and seed, and table.json, table.md and (with matplotlib) table.svg,
    which are updated after every run and include runs of earlier calls. A run that diverges is recorded as failed,
    and the next one starts. Flags take precedence over the table, except for settings that define a row
    (ValueError). Each run gives the same result as the recipe with these settings. Call it on every rank.
    """
    jobs = jobs_of(table, argv)
    args = flags_of(table, argv)[-1]
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub=True would upload the students of all runs to one repository, each over the last: leave it "
            "out, and upload the folder of one run with `hf upload`"
        )
    if args.should_save and table.measure == "accuracy" and find_spec("matplotlib") is None:
        logger.warning("%s will not be written, as matplotlib is missing: pip install 'hfkd[demo]'", FIGURE_NAME)
    folder = Path(args.output_dir or ".")
    compared = frozenset().union(*(row.own for row in table.run))
    for job in {job.row: job for job in reversed(jobs)}.values():
        job.check(compared)
    runs = {job: job.kept() for job in jobs}
    for job in [job for job, run in runs.items() if run is not None and run.status == "failed"]:
        logger.warning(
            "%s, seed %d, failed in an earlier call with these settings and is not run again; use other "
            "settings, such as --on_nan skip, or delete %s",
            *(job.row.name, job.seed, job.folder),
        )
    text = _write(table, folder, published) if args.should_save else ""
    for job in [job for job, run in runs.items() if run is None]:
        logger.info("%s, seed %d", job.row.name, job.seed)
        try:
            job.run()
        except FloatingPointError as error:
            if args.should_save:  # every rank raises it
                logger.error("%s, seed %d, failed: %s. Continuing with the next run.", job.row.name, job.seed, error)
        text = _write(table, folder, published) if args.should_save else ""
    return text


def runs_of(row: Path) -> dict[Path, Run]:
    """The runs in the folder of a row, by seed."""
    found = [path for path in row.glob("seed*") if path.name.removeprefix("seed").isdecimal()]
    runs = {path: kept_run(path) for path in sorted(found, key=lambda path: int(path.name.removeprefix("seed")))}
    return {path: run for path, run in runs.items() if run is not None}


def _write(table: Table, folder: Path, published: Published) -> str:
    """Write the table of all runs in `folder`, of this call and earlier ones, in the order of the rows."""
    held = {row: [r for r in runs_of(folder / row.folder).values() if r.status != "running"] for row in table.run}
    pairs = {row.pair for row, runs in held.items() if runs}
    quoted = {row: [_quoted(row)] for row in table.rows if row.quoted is not None and row.pair in pairs}
    shown = {row: quoted.get(row) or held.get(row) for row in table.rows}
    rows = [summarise(row, runs, published, table) for row, runs in shown.items() if runs]
    text = markdown(table, rows, published)
    write_json(folder / "table.json", {"title": table.title, "reference": table.reference, "rows": rows})
    write_atomically(folder / "table.md", text.encode())
    if rows and table.measure == "accuracy" and find_spec("matplotlib") is not None:
        figure = table_figure(rows, [runs for runs in shown.values() if runs], table.reference)
        write_atomically(folder / FIGURE_NAME, figure_bytes(figure)[1])
    return text


def _quoted(row: Row) -> Run:
    """A placeholder for a row that only quotes a paper: its settings, without results."""
    _, networks, data, args = parse(FLAGS, ["--output_dir=."], row.layers)
    return Run(deciding(networks, data, args), {}, "quoted")
