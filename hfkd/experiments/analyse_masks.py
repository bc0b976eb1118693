"""`hfkd analyse --task segmentation`: compares segmentation networks on the same images, as a page and as JSON.

B images, C classes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.evaluation.analysis.pixels import PixelNumbers
from hfkd.experiments.analysed_mask_networks import load_mask_networks
from hfkd.experiments.analysed_networks import short_names
from hfkd.experiments.pictures import example_name, picture, spread
from hfkd.experiments.run import PAGE_NAME, without_paths
from hfkd.experiments.segmentation import teacher_pictures
from hfkd.losses.functional import entropy, interpolated
from hfkd.models import InputSpec
from hfkd.models.mask_teacher_arguments import MaskTeacherArguments
from hfkd.reports.analysis_masks import mask_analysis_page
from hfkd.reports.environment import environment
from hfkd.reports.masks import MaskExample
from hfkd.tasks.semantic_segmentation import flat_labels
from hfkd.teachers import FrozenTeacher
from hfkd.utils.argument_types import Positive, fitting
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.json_file import write_json
from hfkd.utils.launch import processes, refuse_several

logger = logging.getLogger(__name__)

NUMBERS_NAME = "analysis.json"


@dataclass
class MaskAnalysisArguments(MaskTeacherArguments):
    """Analysis of segmentation networks (`--task segmentation`): which ones, and where the page is written."""

    teacher: str = field(
        metadata={"help": "The teacher: output folder of a run, Hub id, torchvision name, or module:function."}
    )
    students: list[str] = field(metadata={"help": "Students: output folders of runs of `hfkd segment`."})
    task: Literal["segmentation"] = flag("segmentation", "Task of the networks; default: image classification.")
    shown_images: int = flag(4, "Number of images on the page, spread over the dataset.")
    kl_temperature: float = flag(1.0, "Temperature of the softmax in the divergences.")
    batch_size: int = flag(8, "Images per forward pass.")
    use_cpu: bool = flag(False, "Run on the CPU even if there is an accelerator.")
    output_dir: str = flag("analysis", "Folder for index.html and analysis.json.")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "batch_size", "shown_images")
        fitting("analyse", "kl_temperature", self.kl_temperature, Positive)
        if not self.students:
            raise ValueError("students is empty: pass at least one network")


def analyse_masks(args: MaskAnalysisArguments, data: MaskDataArguments) -> dict[str, Any]:
    """Compare the networks, write index.html and analysis.json, and return the content of the latter.

    Raises ValueError for networks or data that cannot be analysed, before anything is written.
    """
    refuse_several("an analysis")
    if find_spec("matplotlib") is None:
        raise ValueError("the page needs matplotlib, which is not installed: pip install 'hfkd[demo]'")
    names = short_names([args.teacher, *args.students])
    _, images = data.load()
    label_names = data.label_names or tuple(map(str, range(data.classes)))
    received = InputSpec(tuple(data.image_mean), tuple(data.image_std), None)
    device = torch.device("cpu") if args.use_cpu else processes().device
    loaded = load_mask_networks(args.teacher, args.students, args, data, received, device)
    networks = dict(zip(names, loaded, strict=True))
    logger.info("%d images of %s; %d students", len(images), data.dataset_name, len(args.students))
    found = _counted(networks, images, args, label_names, device)
    numbers = {
        "dataset": Path(data.dataset_name).name,
        "classes": data.classes,
        "image_size": list(data.image_size),
        **found,
        "teacher": {"name": names[0], **found["teacher"]},
        "settings": without_paths(vars(args) | vars(data)),
        "environment": environment(device),
    }
    examples = [_example(k, images[k], networks, received, device) for k in spread(len(images), args.shown_images)]
    folder = Path(args.output_dir).expanduser()
    write_json(folder / NUMBERS_NAME, numbers)
    mask_analysis_page(folder / PAGE_NAME, numbers, examples, label_names)
    logger.info("Results are in %s; open %s", folder / NUMBERS_NAME, folder / PAGE_NAME)
    return numbers


def _counted(
    networks: Mapping[str, FrozenTeacher],
    images: Any,
    args: MaskAnalysisArguments,
    label_names: tuple[str, ...],
    device: torch.device,
) -> dict[str, Any]:
    """Run all networks over all images once, and return the numbers."""
    teacher, *students = networks
    numbers = PixelNumbers(students, len(label_names), label_names, args.kl_temperature)
    for batch in tqdm(DataLoader(images, batch_size=args.batch_size), desc="analysis", disable=None, leave=False):
        maps = _maps(networks, batch["pixel_values"].to(device))
        numbers.add(batch["labels"], maps.pop(teacher), maps)
    return numbers.result()


def _maps(networks: Mapping[str, FrozenTeacher], pixels: Tensor) -> dict[str, Tensor]:
    """The logits [B, C, h, w] of each network."""
    return {name: network(pixel_values=pixels).float() for name, network in networks.items()}


def _example(
    place: int, row: Any, networks: Mapping[str, FrozenTeacher], received: InputSpec, device: torch.device
) -> MaskExample:
    size = row["labels"].shape
    maps = _maps(networks, row["pixel_values"][None].to(device))
    taught: dict[str, Any] = teacher_pictures(maps.pop(next(iter(networks))), size)
    seen = {name: interpolated(one, size)[0].movedim(0, -1).cpu() for name, one in maps.items()}  # [H, W, C]
    return MaskExample(
        example_name(place),
        picture(row["pixel_values"], received),
        flat_labels(row["labels"][None], None).view(size),
        None,
        **taught,
        students={name: one.argmax(-1) for name, one in seen.items()},
        entropies={name: entropy(one) for name, one in seen.items()},
    )
