"""`hfkd analyse`: compares a teacher and its students on the same images, as an HTML page and as JSON.

n images, m of them in a group, C classes.
"""

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hfkd.data import ImageDataArguments, label_names
from hfkd.data.columns import whole_column
from hfkd.data.epochs import image_transform, refuse_streams
from hfkd.evaluation.analysis import AnalysedNetwork, NetworkPass, compare, network_pass, sample_numbers
from hfkd.evaluation.analysis.samples import SHARE, extremes, mean_of
from hfkd.experiments.analysed_networks import load_networks
from hfkd.experiments.analysis_parts import landscapes, load_runs, planes, training
from hfkd.experiments.pictures import picture
from hfkd.experiments.run import PAGE_NAME, without_paths
from hfkd.models import InputSpec
from hfkd.models.teacher_view_arguments import TeacherViewArguments
from hfkd.reports.analysis_page import analysis_page, student_sections
from hfkd.reports.energy import EnergyGroup, class_captions, energy_sections
from hfkd.reports.environment import environment
from hfkd.reports.results import RESULTS_NAME
from hfkd.teachers.statistics import seen
from hfkd.utils.argument_types import Positive, fitting
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.json_file import read_json, write_json
from hfkd.utils.launch import refuse_several

logger = logging.getLogger(__name__)

NUMBERS_NAME = "analysis.json"
SHADED = "The shaded regions contain the tenths of images with the lowest and the highest energy."
SHOWN = 16  # number of images with lowest and highest energy on the page


@dataclass
class AnalysisArguments(TeacherViewArguments):
    """Analysis of image classifiers: which networks, on which images, and where the page is written."""

    teacher: str = field(metadata={"help": "The teacher: a timm name, a Hub id or a saved folder."})
    students: list[str] = field(metadata={"help": "Students: output folders of runs, Hub ids, or timm names."})
    task: Literal["images"] = flag("images", "Task of the networks; see `--task segmentation --help` for segmentation.")
    teacher_checkpoint: str | None = flag(None, "Weights of the teacher: .pth, .safetensors.")
    student_checkpoints: list[str] | None = flag(
        None, "Weights of the students given as timm names, one for each, in order."
    )
    split: Literal["test", "train"] = flag(
        "test", "Which images: the test split, or the training split without augmentation."
    )
    kl_temperature: float = flag(1.0, "Temperature of the softmax in the divergences.")
    tsne_images: int = flag(1000, "Number of images in the t-SNE; 0 leaves it out.")
    checkpoints_of: list[str] | None = flag(
        None, "Output folders of runs whose checkpoint-* are compared over training."
    )
    landscape_points: int = flag(11, "Points of a loss landscape along a direction, an odd number; 0 leaves it out.")
    landscape_dims: int = flag(2, "Number of random directions of the landscape: 1 (a line) or 2 (a map).")
    landscape_images: int = flag(256, "Number of images over which the loss of the landscape is averaged.")
    seed: int = flag(0, "Random seed for the images of t-SNE and landscape, and for the directions.")
    batch_size: int = flag(256, "Images per forward pass.")
    use_cpu: bool = flag(False, "Run on the CPU even if there is an accelerator.")
    output_dir: str = flag("analysis", "Folder for index.html and analysis.json.")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "batch_size", "landscape_images")
        fitting("analyse", "kl_temperature", self.kl_temperature, Positive)
        if self.tsne_images < 0:
            raise ValueError(f"tsne_images={self.tsne_images} must be 0 or more")
        if self.landscape_points and (self.landscape_points < 3 or self.landscape_points % 2 == 0):
            raise ValueError(
                f"landscape_points={self.landscape_points} must be odd and at least 3, so that the network is at "
                "the centre, or 0 to leave the landscape out"
            )
        if self.landscape_dims not in (1, 2):
            raise ValueError(f"landscape_dims={self.landscape_dims} must be 1 or 2")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")
        if not self.students:
            raise ValueError("students is empty: pass at least one network")


def analyse(args: AnalysisArguments, data: ImageDataArguments) -> dict[str, Any]:
    """Compare the networks, write index.html and analysis.json, and return the content of the latter.

    Raises ValueError, before any forward pass, for networks or data that cannot be analysed.
    """
    refuse_several("an analysis")
    if data.labelled_images is not None:
        raise ValueError(
            f"labelled_images={data.labelled_images}: an analysis needs the label of each image; leave it out"
        )
    images, received = _images(args, data)
    teacher, students = load_networks(args, images, received)
    runs = load_runs(args.checkpoints_of or [], images, received, args.use_cpu)
    logger.info("%d images of %s; %d students", len(images), data.dataset_name, len(students))
    taught = network_pass(teacher, images, args.batch_size)
    passes = {one.name: network_pass(one, images, args.batch_size) for one in students}
    sections, numbers = _teacher(taught, images, received, args), _numbers(teacher, taught, args, data)
    compared = {
        name: compare(taught.logits, one.logits, taught.labels, args.kl_temperature) for name, one in passes.items()
    }
    numbers["students"] = {name: found for name, (found, _) in compared.items()}
    differences = {name: difference for name, (_, difference) in compared.items()}
    sections += student_sections(numbers["students"], differences, args.kl_temperature)
    parts = [planes(teacher.name, taught, passes, args.tsne_images, args.seed)] if args.tsne_images else []
    parts.append(training(taught, runs, images, args.batch_size, args.kl_temperature))
    if args.landscape_points:
        size = args.landscape_images, args.landscape_points, args.landscape_dims
        parts.append(landscapes(students, images, *size, args.batch_size, args.seed))
    for more, shown in parts:
        numbers |= more
        sections += shown
    folder = Path(args.output_dir).expanduser()
    write_json(folder / NUMBERS_NAME, numbers)
    analysis_page(folder / PAGE_NAME, numbers, sections)
    logger.info("Results are in %s; open %s", folder / NUMBERS_NAME, folder / PAGE_NAME)
    return numbers


def _images(args: AnalysisArguments, data: ImageDataArguments) -> tuple[Any, InputSpec]:
    """The images to analyse, without augmentation, and their normalisation."""
    for package in ("matplotlib", *(["sklearn"] if args.tsne_images else [])):
        if find_spec(package) is None:
            raise ValueError(f"the page needs {package}, which is not installed: pip install 'hfkd[demo]'")
    train, test = data.load(image_seed(args, data))
    images = train if args.split == "train" else test
    refuse_streams(images)
    transform: Any = image_transform(images)  # an hfkd transform, which knows its normalisation
    if len(images) < 2:
        raise ValueError(f"the dataset has {len(images)} image: an analysis needs at least two")
    _refuse_hidden(images, args.split)
    return seen(images, "clean"), InputSpec(tuple(transform.mean), tuple(transform.std), None)


def _refuse_hidden(images: Any, split: str) -> None:
    """Raise ValueError for images without a label, which would count as wrong predictions."""
    labels = whole_column(images, "labels")
    hidden = np.flatnonzero(labels < 0)
    if len(hidden):
        raise ValueError(
            f"{len(hidden)} of the {len(labels)} images of the {split} split have no label (image {hidden[0]} has "
            f"{labels[hidden[0]]}), but an analysis needs the label of each: choose a split with labels (--test_split "
            "validation), or remove these images"
        )


def image_seed(args: AnalysisArguments, data: ImageDataArguments) -> int:
    """The seed that draws the images of a long-tailed training set: that of the students' runs, if it is one."""
    if args.split != "train" or data.imbalance_factor is None:
        return args.seed
    folders = [Path(name) for name in (*args.students, *(args.checkpoints_of or []))]
    records = [place / RESULTS_NAME for folder in folders for place in (folder, folder.parent)]
    seeds = sorted({int(read_json(record)["seed"]) for record in records if record.is_file()})
    if len(seeds) == 1:
        return seeds[0]
    logger.warning(
        "The images of the long-tailed training set are drawn by --seed %d, as the students' runs record %s: others "
        "than these may have been trained on.",
        args.seed,
        f"the seeds {seeds}" if seeds else "no seed",
    )
    return args.seed


def _numbers(teacher: AnalysedNetwork, taught: NetworkPass, args: AnalysisArguments, data: Any) -> dict[str, Any]:
    """The entries of analysis.json on the analysis and the teacher."""
    own = sample_numbers(taught.logits, taught.labels)
    low, high = _thresholds(own.energy)
    return {
        "dataset": Path(data.dataset_name).name,
        "split": args.split,
        "images": len(taught.labels),
        "classes": taught.logits.shape[-1],
        "teacher": {
            "name": teacher.name,
            "accuracy": own.accuracy,
            "entropy": mean_of(own.entropy),
            "energy": {
                "mean": mean_of(own.energy),
                "lowest_tenth_below": low,
                "highest_tenth_above": high,
            },
        },
        "settings": without_paths(vars(args) | vars(data)),
        "environment": environment(teacher.device),
    }


def _thresholds(energy: Tensor) -> tuple[float, float]:
    """The energies below which, and above which, a tenth of the images is."""
    low, high = energy.double().quantile(torch.tensor([SHARE, 1 - SHARE], dtype=torch.float64)).tolist()
    return low, high


def _teacher(taught: NetworkPass, images: Any, received: InputSpec, args: AnalysisArguments) -> list[Any]:
    """Energy KD's figures: histogram of the energies, images of lowest and highest, mean predictions there."""
    energy = sample_numbers(taught.logits, taught.labels).energy
    low, high = extremes(energy)
    lowest, highest = (_group(rows, taught, images, received) for rows in (low, high.flip(0)))
    return energy_sections(energy, lowest, highest, _thresholds(energy), f"{args.split} images", SHADED)


def _group(rows: Tensor, taught: NetworkPass, images: Any, received: InputSpec) -> EnergyGroup:
    """The images of these rows, the most extreme first, with their classes and the teacher's predictions."""
    probabilities, names = taught.logits[rows].softmax(-1), label_names(images)
    shown = rows[:SHOWN].tolist()
    pictures = torch.stack([picture(images[row]["pixel_values"], received) for row in shown])
    return EnergyGroup(pictures, probabilities, class_captions(taught.labels[shown], probabilities, names))
