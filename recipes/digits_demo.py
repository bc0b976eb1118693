"""Four ways to train a small network on scikit-learn's handwritten digits: labels only, KD, Energy KD, EA-KD.

    make demo        (or: python recipes/digits_demo.py)

1,797 real 8x8 images, no network. A ResNet-20 learns from all 1,200 training images; students, bare convolutional
networks of 4,682 parameters, then learn from 300 of them. Every way has the same data, steps and seeds. The
table says what came out, and the page in runs/digits_demo shows it.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy, topk_predictions
from hfkd.experiments.classifier_run import page_data
from hfkd.models import image_classifier
from hfkd.reports.comparison import Comparison
from hfkd.reports.html import write_page
from hfkd.reports.page import distillation_sections
from hfkd.utils.counts import at_least_one
from hfkd.utils.parsing import parse

CONFIG = Path(__file__).parent / "configs" / "digits_demo.yaml"
LABELS_ONLY = {"ce_weight": 1.0, "kd_weight": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "labels only": LABELS_ONLY,
    "KD": {},
    "Energy KD": {"temperature": "energy"},
    "EA-KD": {"weighting": "entropy"},
}


@dataclass
class DemoArguments:
    seeds: int = field(default=3, metadata={"help": "Students trained each way."})
    student_images: int = field(default=300, metadata={"help": "Training images that the students see."})
    teacher_epochs: int = field(default=15, metadata={"help": "Epochs of the teacher."})

    def __post_init__(self) -> None:
        at_least_one(self, "seeds", "student_images", "teacher_epochs")


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


def main() -> None:
    demo, args = parse((DemoArguments, DistillationArguments), defaults=[CONFIG], description=__doc__)
    train_set, test_set = load_digits()
    transform = ImageTransform(mean=(0.5,) * 3, std=(0.5,) * 3, augment=True, padding=1, flip=False)
    train_set.set_transform(transform)
    test_set.set_transform(transform.clean())
    torch.set_num_threads(1)  # networks this small lose more to the threads' meetings than they gain
    set_seed(args.seed)
    say = partial(print, flush=True) if args.process_index == 0 else lambda text: None
    say("Training the teacher ...")
    teacher = image_classifier("cifar_resnet20", num_labels=10)
    schedule = replace(args, num_train_epochs=demo.teacher_epochs)
    scored = train("teacher", teacher, None, schedule, (train_set, test_set), **LABELS_ONLY).state.log_history
    accuracy = [entry["eval_accuracy"] for entry in scored if "eval_accuracy" in entry][-1]
    say(f"Teacher: {sum(p.numel() for p in teacher.parameters()):,} parameters, {100 * accuracy:.2f} % accuracy")

    comparison, shown = Comparison(), {}
    few = train_set.select(range(demo.student_images))
    for seed in range(demo.seeds):
        for way, slots in WAYS.items():
            say(f"Training a student, {way}, seed {seed} ...")
            set_seed(seed)
            start = time.perf_counter()
            taught = None if slots is LABELS_ONLY else teacher
            run = train(f"{way} {seed}", new_student(), taught, args, (few, test_set), **slots)
            comparison.add(way, run.evaluate()["eval_accuracy"], time.perf_counter() - start)
            shown[way] = run
    page = Path(args.output_dir) / "index.html"
    run = shown["Energy KD"]
    text = f"The same student, {demo.student_images} images, {demo.seeds} seeds. The pictures below are of Energy KD."
    sections = [comparison.section(text), *distillation_sections(run.state.log_history, **page_data(run))]
    if args.process_index == 0:
        write_page(page, "hfkd on handwritten digits", sections)
    say(f"\n{comparison.markdown()}\n\nLook at {page.resolve()}")


if __name__ == "__main__":
    main()
