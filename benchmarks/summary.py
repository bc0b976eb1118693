"""A table of the results in the benchmarks' JSON files and their targets, which are defined in the scripts."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import growth
import image_step
import input_pipeline
import loss_overhead
import teacher_scan
import text_step
from entries import ENTRIES
from turns import ratio, table

RUNS = "runs.json"
CHUNKED_MEMORY, CHUNKED_TIME = 1 / 8, 1.1  # at most, of the dense loss
LIGER_TIME = 1.0  # at most, of Liger's on a GPU


@dataclass(frozen=True)
class Target:
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        return f"≥ {self.least:,}" if self.least is not None else f"≤ {self.most:,}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: a number and its target, if it has one; without a number, why."""

    benchmark: str
    compared: str
    value: float | None
    target: Target | None = None
    reason: str = ""

    @property
    def outcome(self) -> str:
        if self.value is None:
            return self.reason
        return "" if self.target is None else "met" if self.target.met(self.value) else "missed"

    @property
    def cells(self) -> tuple[str, ...]:
        value = (
            "" if self.value is None else f"{self.value:.3f}" if isinstance(self.value, float) else f"{self.value:,}"
        )
        return self.benchmark, self.compared, value, str(self.target or ""), self.outcome


@dataclass
class Run:
    """How a benchmark was run: its command, its exit status, its seconds."""

    command: str
    exit: int
    seconds: float


@dataclass
class Record:
    """The content of runs.json, which run_all.py writes."""

    machine: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Record":
        if not (folder / RUNS).exists():
            return cls()
        stored = json.loads((folder / RUNS).read_text())
        return cls(stored["machine"], {name: Run(**run) for name, run in stored["runs"].items()})

    def save(self, folder: Path) -> None:
        (folder / RUNS).write_text(json.dumps(asdict(self), indent=2))


Lines = Iterable[tuple[str, float | None, Target | None]]


def of_image_step(found: dict[str, Any]) -> Lines:
    times = found["times"]
    for way, least in image_step.TARGETS.items():
        yield f"speed: {way} / public loop", 1 / ratio(times, way, image_step.PUBLIC), Target(least)
    live = ratio(times, image_step.LIVE, image_step.BARE)
    yield f"time: {image_step.LIVE} / bare loop", live, Target(most=image_step.BARE_TARGET)
    if found.get("device", "cpu") != "cpu":
        for way, most in image_step.MINUTES.items():
            steps = 240 * found["images"] / found["settings"]["batch_size"]
            yield f"minutes of 240 epochs: {way}", steps * min(times[way]) / 60, Target(most=most)


def of_loss_overhead(found: dict[str, Any]) -> Lines:
    results, both = found["results"], found["results"][loss_overhead.BOTH]
    target = Target(most=loss_overhead.SLOWEST)
    yield f"time: step of {loss_overhead.BOTH} / KD", both["step_beside_kd"], target
    yield f"time: step of {loss_overhead.BOTH} / KD, by the loss alone", both["by_the_loss"], target
    most = max(result["operations"]["objective"] for name, result in results.items() if name.startswith("MLD"))
    yield "operations of MLD's objective", most, Target(most=loss_overhead.MOST_OPS)


def of_teacher_scan(found: dict[str, Any]) -> Lines:
    yield "speed: scan / bare forward", found["share"], Target(teacher_scan.TARGET)


def of_input_pipeline(found: dict[str, Any]) -> Lines:
    for way, rate in found["images_per_second"].items():
        target = Target(input_pipeline.TARGET) if way.startswith(input_pipeline.RESIDENT) else None
        yield f"images/s: {way}", round(rate), target


def of_chunked_loss(found: dict[str, Any]) -> Lines:
    """Compared with the dense loss; the time also with Liger's, if it was run."""
    on_gpu = found.get("device", "cpu") != "cpu"
    liger = {(run["tokens"], run["vocab"]): run["ratios"]["seconds"] for run in found["runs"] if run["peer"] == "liger"}
    for run in found["runs"]:
        if run["chunk_size"] and not run["peer"]:
            size = run["tokens"], run["vocab"]
            what = f"chunks of {run['chunk_size']}, N = {size[0]:,}, V = {size[1]:,}"
            bytes_, seconds = run["ratios"]["bytes"], run["ratios"]["seconds"]
            yield f"extra memory: {what} / dense", bytes_, Target(most=CHUNKED_MEMORY)
            yield f"time: {what} / dense", seconds, None if on_gpu else Target(most=CHUNKED_TIME)
            if size in liger:
                target = Target(most=LIGER_TIME) if on_gpu else None
                yield f"time: {what} / Liger's", seconds / liger[size], target


def of_text_step(found: dict[str, Any]) -> Lines:
    best = {way: min(turn["seconds"] for turn in turns) for way, turns in found["results"].items()}
    for way in best:
        target = Target(text_step.TARGETS[way]) if way in text_step.TARGETS else None
        if way != text_step.TRL:
            yield f"speed: {way} / TRL", best[text_step.TRL] / best[way] if text_step.TRL in best else None, target


def of_scaling(found: dict[str, Any]) -> Lines:
    for axis in found["results"]:
        sizes, name = axis["sizes"], f"{axis['unit']} over {axis['axis']}"
        if axis["axis"] == "processes":
            gain = axis["rates"][-1] / axis["rates"][0]
            yield f"{axis['unit']}/s: {sizes[-1]} processes / {sizes[0]}", gain, None
        else:
            what = f"exponent of time: {name}, {sizes[-2]:,} to {sizes[-1]:,}"
            yield what, axis["last_exponent"], Target(*growth.LINEAR)


READERS: dict[str, Callable[[dict[str, Any]], Lines]] = {
    "image_step": of_image_step,
    "loss_overhead": of_loss_overhead,
    "teacher_scan": of_teacher_scan,
    "input_pipeline": of_input_pipeline,
    "chunked_loss": of_chunked_loss,
    "text_step": of_text_step,
    "scaling": of_scaling,
}
NOT_MEASURED = {"text_step": "TRL is missing: pip install trl, or --trl DIR"}  # why a line has no number


def figures(folder: Path, name: str, run: Run | None) -> list[Figure]:
    """A benchmark's lines, or one with the reason why there are none."""
    file = folder / f"{name}.json"
    if run is not None and run.exit:
        return [Figure(name, "", None, reason=f"failed (exit {run.exit}): see {name}.log")]
    if not file.exists():
        return [Figure(name, "", None, reason=f"not measured: there is no {file.name}")]
    try:
        lines = list(READERS[ENTRIES[name].script](json.loads(file.read_text())))
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        reason = f"not measured: {file.name} is not what {name} writes ({type(error).__name__}: {error})"
        return [Figure(name, "", None, reason=reason)]
    return [Figure(name, what, value, target, NOT_MEASURED.get(name, "")) for what, value, target in lines]


def machine_line(machine: dict[str, Any]) -> str:
    bf16 = {True: "in hardware", False: "not in hardware", None: "unknown"}[machine.get("bf16")]
    abilities = ", ".join(machine.get("abilities", [])) or "unknown"
    devices = ", ".join(machine.get("devices", [])) or "unknown"
    torch_version = machine.get("versions", {}).get("torch", "unknown")
    count = machine.get("cpu_count", "unknown number of")
    return f"Device: {devices}; {count} CPUs; bf16 {bf16}; abilities: {abilities}; torch {torch_version}."


def markdown(found: list[Figure], record: Record) -> str:
    lines = [table(("benchmark", "compared", "measured", "target", "result"), [figure.cells for figure in found])]
    lines.append(machine_line(record.machine))
    if any("--quick" in run.command.split() for run in record.runs.values()):
        lines.append("Runs with `--quick` show that a benchmark runs; their figures are too short to judge by.")
    commands = [f"{run.command}  # {run.seconds:.0f} s" for run in record.runs.values()]
    if commands:
        lines.append("\n".join(["```sh", *commands, "```"]))
    return "\n\n".join(lines) + "\n"


def summarise(folder: Path, names: list[str]) -> str:
    """Write summary.md and summary.json into `folder`, from the JSON files there; return the Markdown."""
    record = Record.load(folder)
    if not record.machine:
        record.machine = first_environment(folder, names)
    found = [figure for name in names for figure in figures(folder, name, record.runs.get(name))]
    text = markdown(found, record)
    (folder / "summary.md").write_text(text)
    rows = [asdict(figure) | {"result": figure.outcome} for figure in found]
    (folder / "summary.json").write_text(json.dumps({"figures": rows} | asdict(record), indent=2))
    return text


def first_environment(folder: Path, names: list[str]) -> dict[str, Any]:
    """The environment in a benchmark's own JSON, if runs.json has none."""
    for name in names:
        try:
            return json.loads((folder / f"{name}.json").read_text())["environment"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}
