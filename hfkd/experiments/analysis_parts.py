"""Further parts of an analysis: t-SNE of features, checkpoints of a run, the loss landscape of a student.

n images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hfkd.data.collate import ImageCollator
from hfkd.evaluation.analysis import AnalysedNetwork, NetworkPass, network_pass, sample_numbers
from hfkd.evaluation.analysis.checkpoints import over_checkpoints
from hfkd.evaluation.analysis.embedding import embedding
from hfkd.evaluation.analysis.landscape import LEVEL, Landscape, filter_normalised, landscape
from hfkd.evaluation.analysis.samples import ea_weight, extremes
from hfkd.experiments.analysed_networks import load_network, short_names
from hfkd.models import InputSpec
from hfkd.reports.analysis_checkpoints import checkpoints_section
from hfkd.reports.analysis_embedding import Plane, embedding_section
from hfkd.reports.analysis_landscape import landscape_section
from hfkd.reports.html import Section

Numbers = dict[str, Any]
FEWEST = 5  # minimum number of images for t-SNE


def planes(
    teacher: str, taught: NetworkPass, students: Mapping[str, NetworkPass], images: int, seed: int
) -> tuple[Numbers, list[Section]]:
    """t-SNE of every network's features, by name, and the separation of the classes."""
    shown = min(images, len(taught.labels))
    narrowest = min(one.features.shape[1] for one in (taught, *students.values()))
    if shown < FEWEST or narrowest < 2:
        why = (
            f"Left out: there are {shown} images with {narrowest} features; t-SNE needs at least {FEWEST} images "
            "with 2 features."
        )
        return {}, [Section("Penultimate features", why)]
    high = _marked(sample_numbers(taught.logits, taught.labels).entropy)
    found = {}
    for name, one in {teacher: taught, **students}.items():
        weight = None if one is taught else _marked(ea_weight(taught.logits, one.logits, one.labels))
        at = embedding(one.features, one.labels, images, seed)
        marks = None if weight is None else weight[at.rows]
        indices = at.index_of_features, at.index_of_points
        found[name] = Plane(at.points, one.labels[at.rows], high[at.rows], marks, *indices)
    numbers = {
        name: {"of_features": one.index_of_features, "of_points": one.index_of_points} for name, one in found.items()
    }
    return {"calinski_harabasz": numbers, "embedded_images": shown}, [embedding_section(found, shown)]


def _marked(values: torch.Tensor) -> torch.Tensor:
    """A mask [n] of the tenth of images with the highest values."""
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, extremes(values)[1], True)


def run_checkpoints(folder: str) -> dict[int, Path]:
    """The checkpoints of a run that contain a model, by step. Raises ValueError for fewer than two."""
    numbered = {path: path.name.removeprefix("checkpoint-") for path in Path(folder).glob("checkpoint-*")}
    found = {int(step): path for path, step in numbered.items() if step.isdigit() and (path / "config.json").is_file()}
    if len(found) < 2:
        raise ValueError(
            f"checkpoints_of={folder} has {len(found)} folders checkpoint-* with a config.json, but a comparison "
            "needs two: pass the output_dir of a run with save_total_limit above 1"
        )
    return dict(sorted(found.items()))


def load_runs(
    folders: Sequence[str], images: Any, received: InputSpec, use_cpu: bool
) -> dict[str, dict[int, AnalysedNetwork]]:
    """All checkpoints of these runs, by the run's name and by step, checked; all are kept in memory."""
    names = short_names(folders) if folders else []
    return {
        name: {
            step: load_network(f"{name}/{path.name}", str(path), None, images, received, use_cpu)
            for step, path in run_checkpoints(folder).items()
        }
        for name, folder in zip(names, folders, strict=True)
    }


def training(
    taught: NetworkPass,
    runs: Mapping[str, Mapping[int, AnalysedNetwork]],
    images: Any,
    batch_size: int,
    temperature: float,
) -> tuple[Numbers, list[Section]]:
    """The numbers of each run's student over its checkpoints."""
    numbers, sections = {}, []
    for name, steps in runs.items():
        logits = {step: network_pass(one, images, batch_size, features=False).logits for step, one in steps.items()}
        numbers[name] = over_checkpoints(taught.logits, logits, taught.labels, temperature)
        sections.append(checkpoints_section(name, numbers[name], temperature))
    return {"checkpoints": numbers} if numbers else {}, sections


def landscapes(
    students: Sequence[AnalysedNetwork], images: Any, count: int, points: int, dims: int, batch_size: int, seed: int
) -> tuple[Numbers, list[Section]]:
    """The loss around each student on `count` random images, along `dims` random directions, both seeded by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=generator)[:count].sort().values.tolist()
    loader = DataLoader(torch.utils.data.Subset(images, rows), batch_size=batch_size, collate_fn=ImageCollator())
    batches = [(batch["pixel_values"], batch["labels"]) for batch in loader]
    found = {one.name: _landscape(one, batches, points, dims, seed) for one in students}
    numbers = {
        name: {
            "coordinates": one.coordinates,
            "losses": one.losses,
            "variance": one.variance,
            f"area@{LEVEL:g}": one.area(),
        }
        for name, one in found.items()
    }
    section = landscape_section(found, len(rows))
    return {"landscape": {"images": len(rows), "seed": seed, "students": numbers}}, [section]


def _landscape(
    network: AnalysedNetwork, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], points: int, dims: int, seed: int
) -> Landscape:
    count = sum(len(labels) for _, labels in batches)
    bar = tqdm(total=points**dims, desc=f"landscape of {network.name}", disable=None, leave=False)

    def loss() -> float:
        bar.update()
        found = (
            F.cross_entropy(network.logits(images).cpu(), labels.cpu(), reduction="sum").item()
            for images, labels in batches
        )
        return sum(found) / count

    # separate seeds: 2 seed, 2 seed + 1
    directions = [filter_normalised(network.model, 2 * seed + number) for number in range(dims)]
    with bar:
        return landscape(network.model, loss, directions, points)
