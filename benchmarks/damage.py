"""Damage every file that a run reads, in many ways, and check whether the damage is detected.

    python benchmarks/damage.py

Stores of images and tokens, teacher scans, every file of a checkpoint, the record of a run, a checkpoint that is
deleted while it is read, and other data, teacher or settings than the run was started with. Files are damaged by a
random bit flip, or truncated, emptied, extended, partly overwritten, or deleted. The same small run is then continued
(CPU, small networks of tests/):

  noticed     an error that names the file or its folder, or a warning, after which results may differ
  mended      the same results as without the damage, which was repaired or has no effect
  silent      other results without any message: must be 0
  unnamed     an error that does not name the damaged file: must be 0
"""

import argparse
import hashlib
import io
import logging
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from scan_job import packed
from text_toys import language_model, taught_model, token_dataset, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher
from turns import write

from hfkd import DistillationTrainer
from hfkd.teachers import CachedTextTeacher, build_text_cache

VERDICTS = ("noticed", "mended", "silent", "unnamed")
HALF, STEPS = 4, 7  # steps up to the checkpoint, and of the whole run
CHECKPOINT = f"checkpoint-{HALF}"
KEPT = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": HALF, "optim": "adamw_torch", "learning_rate": 0.01}
Work = Callable[[Path], Any]


# ---- damages of a file ----------------------------------------------------------------------------------------------


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def overwritten(path: Path, draw: random.Random) -> None:
    """Overwrite a block of the file with zeros."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(1, path.stat().st_size)])


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def extended(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 64)))


def deleted(path: Path, draw: random.Random) -> None:
    path.unlink()


SEVERAL, ONCE = (flipped, overwritten, cut, extended), (emptied, deleted)


# ---- work that reads files: each returns the student's bytes ---------------------------------------------------------


class Dropping(Net):
    """With dropout, so that the random state matters when a run is resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.relu(self.conv(x)).mean((2, 3))))


def trained(trainer: DistillationTrainer, resume: Any = None) -> str:
    torch.manual_seed(0)
    trainer.train(resume_from_checkpoint=resume)
    digest = hashlib.sha1()
    for tensor in trainer.accelerator.unwrap_model(trainer.model).state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def run(folder: Path, **other: Any) -> DistillationTrainer:
    """A run with a learned temperature and checkpoints in `folder`/run; `other`: parts and settings of another run."""
    parts = {"student": Dropping(), "teacher": teacher(), "rows": packed(61), "temperature": "learned(warmup_epochs=1)"}
    parts = {name: other.pop(name, part) for name, part in parts.items()}
    slots = {"temperature": parts["temperature"]} | {k: other.pop(k) for k in ("weighting", "objective") if k in other}
    args = arguments(folder / "run", **(KEPT | other))
    return DistillationTrainer(parts["student"], parts["teacher"], args, train_dataset=parts["rows"], **slots)


def resumed(folder: Path, **other: Any) -> str:
    return trained(run(folder, **other), str(folder / "run" / CHECKPOINT))


def stored_images(folder: Path) -> str:
    # float64: the missing rows of a partly stored batch are computed in a smaller batch, where float32 rounds
    # differently.
    kept = {"teacher_cache_dir": str(folder / "store"), "save_strategy": "no"}
    return trained(run(folder, teacher=teacher().double(), temperature="4.0", **kept))


def scanned(folder: Path) -> str:
    slots = {"temperature": "energy(ratio=0.2)", "weighting": "entropy"}
    return trained(run(folder, scan_cache_dir=str(folder / "scans"), save_strategy="no", **slots))


def build_tokens(folder: Path) -> None:
    build = {"k": 4, "temperatures": [2.0], "dtype": "float32", "shard_rows": 8, "progress_bar": False}
    build_text_cache(taught_model(), token_dataset(), folder / "tokens", **build)


def stored_tokens(folder: Path, again: bool = False) -> str:
    """Training from stored tokens; `again`: after missing files were rebuilt, as the recipe does."""
    if again:
        build_tokens(folder)
    slots = {"temperature": "2.0", "weighting": "entropy", "processing_class": tokenizer()}
    args = arguments(folder / "run", max_steps=3)
    taught = CachedTextTeacher(folder / "tokens")
    return trained(DistillationTrainer(language_model(), taught, args, train_dataset=token_dataset(), **slots))


def rotated(folder: Path, after: str) -> str:
    """A checkpoint that another process deletes once `after`, a method of the trainer, has read its part of it."""
    trainer = run(folder)
    inner = getattr(trainer, after)

    def read_and_lost(*given: Any, **named: Any) -> Any:
        found = inner(*given, **named)
        shutil.rmtree(folder / "run" / CHECKPOINT)
        return found

    setattr(trainer, after, read_and_lost)
    return trained(trainer, str(folder / "run" / CHECKPOINT))


# ---- what is tried --------------------------------------------------------------------------------------------------


@dataclass
class Kind:
    """Files in `folder` (globs) to damage, or another change; and the work that follows."""

    name: str
    work: Work
    prepare: Callable[[Path], Any]
    files: str = ""
    changes: tuple[Work, ...] = ()

    def tries(self, folder: Path, count: int) -> Iterator[tuple[str, Callable[[Path, random.Random], None], Work]]:
        """(description, function that damages a copy of the folder, the work on it)."""
        for change in self.changes:
            yield "", lambda copy, draw: None, change
        for path in sorted(folder.glob(self.files)) if self.files else ():
            where = path.relative_to(folder)
            for damage in [*SEVERAL * count, *ONCE]:
                yield path.name, lambda copy, draw, where=where, damage=damage: damage(copy / where, draw), self.work


class LabelsMoved(Rows):
    def __init__(self, n: int = 32) -> None:
        super().__init__(n)
        self.labels = (self.labels + 1) % CLASSES


def start(folder: Path, **other: Any) -> None:
    trained(run(folder, **other))


def other_data() -> tuple[Kind, ...]:
    """Runs that are resumed with other data, networks or settings."""
    plain, seeded = partial(start, rows=Rows(61)), partial(start, data_seed=1)
    shuffled = (
        packed(61).with_format(None).shuffle(seed=5).with_transform(packed(1).format["format_kwargs"]["transform"])
    )
    return (
        Kind("other images", resumed, start, changes=(partial(resumed, rows=packed(61, seed=1)),)),
        Kind("the rows in another order", resumed, start, changes=(partial(resumed, rows=shuffled),)),
        Kind(
            "a torch dataset of other images, or labels",
            partial(resumed, rows=Rows(61)),
            plain,
            changes=(partial(resumed, rows=Rows(61, seed=1)), partial(resumed, rows=LabelsMoved(61))),
        ),
        Kind("another teacher", resumed, start, changes=(partial(resumed, teacher=Net(16, seed=7)),)),
        Kind(
            "rows of another order by settings",
            partial(resumed, data_seed=1),
            seeded,
            changes=(
                resumed,
                partial(resumed, data_seed=2),
                partial(resumed, data_seed=1, dataloader_drop_last=True),
                partial(resumed, data_seed=1, per_device_train_batch_size=4),
            ),
        ),
    )


def kinds() -> tuple[Kind, ...]:
    steps = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler")
    return (
        Kind("stored images", stored_images, stored_images, "store/*.bin"),
        Kind("teacher scan", scanned, scanned, "scans/*.safetensors"),
        Kind("stored tokens, opened", stored_tokens, build_tokens, "tokens/*.*"),
        Kind("stored tokens, built again", partial(stored_tokens, again=True), build_tokens, "tokens/*.*"),
        Kind("checkpoint", resumed, start, f"run/{CHECKPOINT}/*"),
        Kind("the run's own record and weights", resumed, start, "run/*.*"),
        Kind("checkpoint rotated away", resumed, start, changes=tuple(partial(rotated, after=s) for s in steps)),
        *other_data(),
    )


# ---- verdicts -------------------------------------------------------------------------------------------------------


class Said(logging.Handler):
    """Warnings of hfkd and transformers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Said":
        for name in ("hfkd", "transformers"):
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *error: Any) -> None:
        for name in ("hfkd", "transformers"):
            logging.getLogger(name).removeHandler(self)


@dataclass
class Intact:
    """The result and messages of the work without any damage."""

    result: str
    said: set[str]


def outcome(work: Work, folder: Path) -> Intact:
    with Said() as said, warnings.catch_warnings(record=True) as more, redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        result = work(folder)
    lines = [*said.lines, *(str(one.message) for one in more)]
    return Intact(result, {line.replace(str(folder), "") for line in lines})


def verdict(work: Work, folder: Path, intact: Intact, file: str) -> tuple[str, str]:
    """One of VERDICTS, and the messages that do not occur without damage."""
    try:
        found = outcome(work, folder)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        where = [name for name in (file, CHECKPOINT, str(folder)) if name and name in text]
        return ("noticed" if where and isinstance(error, (ValueError, OSError)) else "unnamed"), text
    if found.result == intact.result:
        return "mended", ""
    told = found.said - intact.said
    return ("noticed" if told else "silent"), "; ".join(told)


def try_kind(kind: Kind, options: argparse.Namespace, folder: Path, bar: tqdm) -> dict[str, Any]:
    draw = random.Random(f"{options.seed} {kind.name}")
    whole = folder / "whole"
    with redirect_stdout(io.StringIO()):  # hides Trainer's logs
        kind.prepare(whole)
    intact = outcome(kind.work, Path(shutil.copytree(whole, folder / "intact")))
    counts: Counter[str] = Counter()
    faults = []
    for file, damage, work in kind.tries(whole, options.tries):
        copy = shutil.copytree(whole, folder / "copy")
        damage(copy, draw)
        judged, said = verdict(work, copy, intact, file)
        counts[judged] += 1
        if judged in ("silent", "unnamed"):
            faults.append(f"{judged}: {file} {said[:300]}")
            bar.write(f"{kind.name}: {faults[-1]}")
        shutil.rmtree(copy)
        bar.update()
    return {"tries": counts.total()} | {name: counts[name] for name in VERDICTS} | {"faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=8, help="of each damage that is drawn at random, for each file")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds whose name starts so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one try of each: shows that it runs")
    options = parser.parse_args()
    options.tries = 1 if options.quick else options.tries
    wanted = [kind for kind in kinds() if not options.only or kind.name.startswith(tuple(options.only))]
    results: dict[str, Any] = {}
    with tqdm(unit="try") as bar:
        for kind in wanted:
            bar.set_description(kind.name)
            with tempfile.TemporaryDirectory() as folder:
                results[kind.name] = try_kind(kind, options, Path(folder), bar)
            write(options.json, results=results)
    print("| what is damaged | tries | " + " | ".join(VERDICTS) + " |")
    print("|---" * (2 + len(VERDICTS)) + "|")
    for name, found in results.items():
        print(f"| {name} | {found['tries']} | " + " | ".join(str(found[verdict]) for verdict in VERDICTS) + " |")
    return int(any(found["silent"] or found["unnamed"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
