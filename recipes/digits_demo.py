"""Four ways to train a small network on scikit-learn's handwritten digits: labels only, KD, Energy KD, EA-KD.

    make demo        (or: python recipes/digits_demo.py)

1,797 real 8x8 images, no download. A ResNet-20 learns from all 1,200 training images and their labels. The students,
bare convolutional networks of 4,682 parameters, get 20 labels, two a digit: from the labels alone they learn 20 images,
from the teacher all 1,200, of which 1,180 have no label for them. Every way has the same rate, steps and seeds; rate
and steps were chosen on labels only (docs/results.md). It prints a table and writes a page to runs/digits_demo.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageTransform, few_labels
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy, topk_predictions
from hfkd.experiments.classifier_run import page_data
from hfkd.experiments.paired import Difference, paired_difference
from hfkd.models import image_classifier
from hfkd.reports.comparison import Comparison
from hfkd.reports.html import write_page
from hfkd.reports.page import distillation_sections
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.parsing import parse

CONFIG = Path(__file__).parent / "configs" / "digits_demo.yaml"
LABELS_ONLY = {"ce_weight": 1.0, "kd_weight": 0.0}
REFERENCE = "labels only"
WAYS: dict[str, dict[str, Any]] = {
    REFERENCE: LABELS_ONLY,
    "KD": {},
    "Energy KD": {"temperature": "energy"},
    "EA-KD": {"weighting": "entropy"},
}


@dataclass
class DemoArguments:
    seeds: int = flag(3, "Number of students per method.")
    labelled_images: int = flag(20, "Number of training images with a label for the students.")
    teacher_epochs: int = flag(8, "Epochs of the teacher.")
    ways: list[str] = flag(lambda: list(WAYS), f"Methods to compare, from {list(WAYS)}.")

    def __post_init__(self) -> None:
        at_least_one(self, "seeds", "labelled_images", "teacher_epochs")
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise ValueError(f"ways={self.ways}: {unknown[0]!r} is unknown; choose from {list(WAYS)}")


def new_student() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def train(name: str, model: nn.Module, teacher: Any, args: DistillationArguments, data: Any, **slots: Any) -> Any:
    trainer = DistillationTrainer(
        model,
        teacher,
        replace(args, output_dir=str(Path(args.output_dir) / name.replace(" ", "_"))),
        train_dataset=data[0],
        eval_dataset=data[1],
        compute_metrics=item_accuracy,
        preprocess_logits_for_metrics=topk_predictions,
        **slots,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def trained_teacher(args: DistillationArguments, data: Any, say: Any) -> nn.Module:
    say("Training the teacher ...")
    set_seed(args.seed)
    teacher = image_classifier("cifar_resnet20", num_labels=10)
    accuracy = train("teacher", teacher, None, args, data, **LABELS_ONLY).evaluate()["eval_accuracy"]
    say(f"Teacher: {sum(p.numel() for p in teacher.parameters()):,} parameters, {100 * accuracy:.2f} % accuracy")
    return teacher


def effect(comparison: Comparison) -> str:
    """A summary for the page: the paired gains of the methods over labels only, and over KD."""
    parts = []
    for reference in (REFERENCE, "KD"):
        found = differences(comparison, reference)
        if found and reference == REFERENCE:
            behind = [way for way, one in found.items() if one.low <= 0]
            parts.append("Distillation is ahead of labels only by more than the seeds differ.")
            if behind:
                parts = [f"No gain over labels only is shown for {', '.join(behind)}."]
        if found:
            listed = "; ".join(f"{way} {one}" for way, one in found.items())
            parts.append(f"Points above {reference} (mean over the seeds, 95 % interval, paired): {listed}.")
    return " ".join(parts)


def differences(comparison: Comparison, reference: str) -> dict[str, Difference]:
    """The differences of the methods listed after `reference`; {} if it was not run."""
    ways = list(comparison.accuracy)
    later = ways[ways.index(reference) + 1 :] if reference in ways else []
    percent = {way: {k: 100 * v for k, v in enumerate(comparison.accuracy[way])} for way in ways}
    found = {way: paired_difference(percent[way], percent[reference]) for way in later}
    return {way: one for way, one in found.items() if one is not None}


def main() -> None:
    demo, args = parse((DemoArguments, DistillationArguments), defaults=[CONFIG], description=__doc__)
    train_set, test_set = load_digits()
    few = few_labels(train_set, demo.labelled_images)
    transform = ImageTransform(mean=(0.5,) * 3, std=(0.5,) * 3, augment=True, padding=1, flip=False)
    known = [row for row, label in enumerate(few["labels"]) if label >= 0]
    whole, few, test_set = (
        train_set.with_transform(transform), few.with_transform(transform), test_set.with_transform(transform.clean())
    )  # fmt: skip
    torch.set_num_threads(1)  # for networks this small synchronizing threads costs more than it gains
    say = partial(print, flush=True) if args.process_index == 0 else lambda text: None
    teacher = None
    if set(demo.ways) - {REFERENCE}:
        schedule = replace(args, num_train_epochs=demo.teacher_epochs, max_steps=-1)
        teacher = trained_teacher(schedule, (whole, test_set), say)

    comparison, shown = Comparison(), {}
    for seed in range(args.seed, args.seed + demo.seeds):
        for way in demo.ways:
            say(f"Training a student, {way}, seed {seed} ...")
            set_seed(seed)
            start = time.perf_counter()
            guide, rows = (None, few.select(known)) if way == REFERENCE else (teacher, few)
            run = train(f"{way} {seed}", new_student(), guide, replace(args, seed=seed), (rows, test_set), **WAYS[way])
            comparison.add(way, run.evaluate()["eval_accuracy"], time.perf_counter() - start)
            shown[way] = run
    page = Path(args.output_dir) / "index.html"
    way = "Energy KD" if "Energy KD" in shown else demo.ways[-1]
    text = (
        f"{effect(comparison)}\n\nThe same student, {demo.seeds} seeds, {demo.labelled_images} labels: labels only "
        f"learns from those images, distillation from all {len(few)}. The pictures below are of {way}."
    )
    sections = [comparison.section(text), *distillation_sections(shown[way].state.log_history, **page_data(shown[way]))]
    if args.process_index == 0:
        write_page(page, "hfkd on handwritten digits", sections)
    say(f"\n{comparison.markdown()}\n\n{effect(comparison)}\n\nLook at {page.resolve()}")


if __name__ == "__main__":
    main()
