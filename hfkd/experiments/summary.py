"""Tables of runs with several seeds: published results, own results, and the protocol."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfkd.experiments.notes import notes
from hfkd.experiments.paired import to_reference
from hfkd.experiments.published import Published
from hfkd.experiments.resume import RETRIED, Run
from hfkd.experiments.rows import Row, Table
from hfkd.utils.numbers import markdown_table, with_deviation

NONE_PRINTED = "none printed"
PUBLISHED_TAIL = 0.5  # imbalance factor of the published numbers for long-tailed images
CUT = {  # settings that reduce the training data, and their description in tables
    "max_train_images": "{:,} images",
    "labelled_images": "labels of {:,}",
    "max_test_images": "{:,} test images",
}


def data_label(settings: Mapping[str, Any]) -> str:
    """The dataset's name in the published numbers: "cifar100", "cifar100-lt"; other imbalance factors have none."""
    name, factor = Path(settings["dataset_name"]).name, settings.get("imbalance_factor")
    if factor in (None, 1, 1.0):
        return name
    return f"{name}-lt" if factor == PUBLISHED_TAIL else f"{name}-lt, factor {factor:g}"


def summarise(row: Row, runs: Sequence[Run], published: Published, table: Table) -> dict[str, Any]:
    """One row for JSON: accuracies in percent with their sample standard deviation, the protocol, the cost.

    Failed runs are left out of averages; `failed` lists where each of them stopped, without those of other settings,
    which an earlier call left. A quoted row has a single placeholder run, with settings but without results.
    """
    done = [run for run in runs if run.status == "finished"]
    shown, results = (done or runs)[0], [run.results for run in done]
    settings = shown.settings
    ends = {which: [r["losses"][which] or {"step": None, "loss": None} for r in results] for which in ("first", "last")}
    pair = (" + ".join(settings["teacher_name"]), settings["student_name"])
    return {
        "name": row.name,
        "method": row.label,
        "quoted": row.quoted,
        "teacher": pair[0],
        "student": pair[1],
        **_printed((data_label(settings), *pair, row.method), published, table),
        "best": _over_seeds([_percent(r["best"]) for r in results]),
        "last": _over_seeds([_percent(r["last"]) for r in results]),
        "best_by": sorted({_chosen_by(r) for r in results}),
        "first_loss": _over_seeds([end["loss"] for end in ends["first"]]),
        "last_loss": _over_seeds([end["loss"] for end in ends["last"]]),
        "loss_steps": [ends[which][0]["step"] if results else None for which in ("first", "last")],
        "seeds": [r["seed"] for r in results],
        "trained_on": {r["seed"]: epochs for r in results if (epochs := _trained_on(r)) is not None},
        "failed": [
            _failure(run)
            for run in runs
            if run.status == "failed" and run.difference(settings, (*RETRIED, "seed")) is None
        ],
        "on_nan": {r.results["seed"]: r.settings["on_nan"] for r in done if r.settings.get("on_nan", "stop") != "stop"},
        "images_per_second": _over_seeds([r["images_per_second"] for r in results]),
        "hardware": sorted(
            {f"{d} ({r['environment']['cpu_count']} cores)" for r in results for d in r["environment"]["devices"]}
        ),
        "hfkd": sorted({_hfkd(r) for r in results}),
        "settings": {name: value for name, value in settings.items() if name not in ("seed", *RETRIED)},
        **_protocol(settings, shown.results),
    }


def _printed(cell: tuple[str, str, str, str], published: Published, table: Table) -> dict[str, Any]:
    """The published number for a cell (data, teacher, student, method), and those of other sources that differ."""
    measure = "time" if table.measure == "time" else "accuracy"
    paper = published.find(*cell, table.published, measure)
    top5 = None if paper is None else published.find(*cell, [paper.source], "top5")
    others = {} if paper is None else published.every(*cell, measure)
    return {
        "paper": None if paper is None else vars(paper) | {"top5": top5 and top5.value},
        "printed_elsewhere": {n.source: n.value for n in others.values() if paper and n.value != paper.value},
    }


def _failure(run: Run) -> dict[str, Any]:
    return {name: run.results[name] for name in ("seed", "train_steps", "failure")}


def _trained_on(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """The epoch of the last evaluation, and that in which training ended, where it went on after it."""
    evaluated, end = (results["last"] or {}).get("epoch"), results.get("train_epochs")
    return (evaluated, end) if evaluated is not None and end is not None and evaluated < end - 1e-6 else None


def _percent(score: Mapping[str, Any] | None) -> float | None:
    accuracy = (score or {}).get("accuracy")
    return None if accuracy is None else 100 * accuracy


def _chosen_by(results: Mapping[str, Any]) -> str:
    """The metric that determines the best epoch; accuracy in files of earlier versions, which do not record it."""
    return results.get("best_by", {}).get("metric", "eval_accuracy").removeprefix("eval_")


def _hfkd(results: Mapping[str, Any]) -> str:
    """The hfkd that trained a run: what a method computes may differ between two of them."""
    return results["environment"].get("hfkd", "not recorded")


def _over_seeds(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = statistics.mean(known) if known else None
    return {"mean": mean, "sd": statistics.stdev(known) if len(known) > 1 else None, "values": values}


def _protocol(settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Properties in which rows may differ besides the method. Settings missing in old records have their defaults."""
    cut = [said.format(settings[name]) for name, said in CUT.items() if settings.get(name)]
    epochs = results.get("epochs")
    crop = "resized crop" if settings.get("resized_crop") else f"crop {settings['crop_padding']}"
    augmentation = [crop] if crop != "crop 0" else []
    augmentation += ["flip"] if settings["flip"] else []
    views = settings.get("views", 1)
    augmentation += ["strong second view"] if views > 1 else []
    added = settings.get("he_da", "none") != "none"
    augmentation += [f"{settings['he_da_mix']} of {settings['he_da_side']} energy"] if added else []
    return {
        "data": ", ".join([data_label(settings), *cut]),
        "epochs": results.get("train_epochs", epochs[-1]["epoch"] if epochs else None),
        "steps": results.get("train_steps"),
        "views": views,
        "augmentation": ", ".join(augmentation) or "none",
        "extra_images": f"{settings['he_da_ratio']:.0%}" if added else "none",
    }


def markdown(table: Table, rows: Sequence[Mapping[str, Any]], published: Published) -> str:
    """The table in Markdown. It always has the protocol columns: rows that differ in these are not comparable."""
    reference = reference_rows(rows, table.reference)
    steps = next((row["loss_steps"] for row in rows if row["seeds"]), [None, None])
    columns = [_line(table, row, reference.get(pair_of(row)), steps) for row in rows]
    if not columns:
        return f"# {table.title}\n\nNo run is finished yet.\n"
    text = [f"# {table.title}", "", markdown_table(list(columns[0]), [list(c.values()) for c in columns])]
    cited = dict.fromkeys(row["paper"]["source"] for row in rows if row["paper"] is not None)
    cited |= dict.fromkeys(source for row in rows for source in row["printed_elsewhere"])
    text += ["", *(f"- {source}: {published.sources[source]}" for source in cited)] if cited else []
    if table.measure == "accuracy":
        text += ["", "± is the sample standard deviation over the seeds. Papers report the best epoch on the test set."]
        text[-1] += (
            f" Differences to {table.reference} are those of the same seeds, with the 95 % interval of their mean."
        )
        chosen = sorted({metric for row in rows for metric in row["best_by"]})
        if chosen != ["accuracy"]:
            text[-1] += f" Here the best epoch was chosen by {', '.join(chosen)} (metric_for_best_model)."
    said = notes(rows, frozenset().union(*(row.own for row in table.rows)))
    text += ["", *(f"- {note}" for note in said)] if said else []
    return "\n".join(text) + "\n"


def _line(
    table: Table, row: Mapping[str, Any], reference: Mapping[str, Any] | None, steps: Sequence[int | None]
) -> dict[str, str]:
    """One line of the table; `steps`: the steps of the losses in the table's header."""
    difference = to_reference(row, reference)
    first, last = (f"loss, step {step}" for step in steps)
    extra = _epoch_time(row, reference)
    measured = {
        "accuracy": {
            "paper %": _paper(row["paper"]),
            "ours, best epoch %": _mean(row["best"], 2),
            "ours, last epoch %": _mean(row["last"], 2),
            f"last, less {table.reference} (95 %)": "-" if difference is None else str(difference),
        },
        "loss": {first: _loss(row, 0, steps), last: _loss(row, 1, steps)},
        "time": {
            f"time of an epoch above {table.reference}, paper %": _paper(row["paper"]),
            "ours %": "-" if extra is None else f"{100 * extra:.2f}",
        },
    }[table.measure]
    speed, its = row["images_per_second"]["mean"], reference and reference["images_per_second"]["mean"]
    return {
        "method": row["method"],
        "teacher → student": pair_of(row),
        **measured,
        "seeds": str(len(row["seeds"])) + (f" + {len(row['failed'])} failed" if row["failed"] else ""),
        "epochs": "-" if row["epochs"] is None else f"{row['epochs']:.4g}",
        "steps": "-" if row["steps"] is None else f"{row['steps']:,}",
        "data": row["data"],
        "views": str(row["views"]),
        "augmentation": row["augmentation"],
        "extra images": row["extra_images"],
        f"images/s, {table.reference} = 1": f"{speed / its:.2f}" if speed and its else "-",
        "hardware": "; ".join(row["hardware"]),
    }


def _epoch_time(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> float | None:
    """The relative increase of an epoch's time over the reference's."""
    seconds = [
        one["steps"] / one["epochs"] / one["images_per_second"]["mean"]  # with batches of one size
        for one in (row, reference)
        if one is not None and one["epochs"] and one["images_per_second"]["mean"]
    ]
    return None if len(seconds) < 2 else seconds[0] / seconds[1] - 1


def _loss(row: Mapping[str, Any], end: int, steps: Sequence[int | None]) -> str:
    value, step = _mean(row[("first_loss", "last_loss")[end]], 3), row["loss_steps"][end]
    return value if step in (None, steps[end]) else f"{value} (step {step})"


def reference_rows(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, Mapping[str, Any]]:
    """The row of the method that the others are compared with, by pair of networks."""
    return {pair_of(row): row for row in rows if row["method"] == method}


def pair_of(row: Mapping[str, Any]) -> str:
    """The teacher and the student of a row."""
    return f"{row['teacher']} → {row['student']}".replace("cifar_", "")


def _paper(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return NONE_PRINTED
    top5 = "" if number["top5"] is None else f", top-5 {number['top5']:.2f}"
    epochs = "" if number["epochs"] is None else f", {number['epochs']} epochs"
    return f"{number['value']:.2f}{top5} ({number['source']}{epochs})"


def _mean(measured: Mapping[str, Any], digits: int) -> str:
    return "-" if measured["mean"] is None else with_deviation(measured["mean"], measured["sd"], digits)
