"""Distil a CIFAR-100 teacher into a smaller network with Energy KD (Kim et al., Knowledge-Based Systems 296, 2024).

    accelerate launch recipes/cifar100_energy_kd.py --teacher_checkpoint wrn_40_2.pth

Protocol: configs/cifar100.yaml, at the paper's 360 epochs. The temperatures follow the paper; its released code swaps
them (`--temperature "energy(direction='released')"`). A run that was stopped is taken up where it stopped. The pairs of
the paper are in configs/ (`--config recipes/configs/resnet56_resnet20.yaml`); everything is a flag, see --help.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.arguments import parse
from hfkd.data import ImageDataArguments, label_names, num_labels
from hfkd.metrics import image_accuracy, topk_predictions
from hfkd.models import image_classifier, image_teachers
from hfkd.report.image_run import run_images

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class NetworkArguments:
    teacher_name: list[str] = field(
        default_factory=lambda: ["cifar_wrn_40_2"],
        metadata={"help": "Teacher, or several of them: timm names, Hub ids or saved folders."},
    )
    teacher_checkpoint: list[str] | None = field(
        default=None, metadata={"help": "Weights of each teacher: .pth, .safetensors."}
    )
    student_name: str = field(
        default="cifar_wrn_16_2", metadata={"help": "Student: a timm name, a Hub id or a folder."}
    )
    student_checkpoint: str | None = field(default=None, metadata={"help": "Weights the student starts from."})


def main() -> None:
    networks, data, args = parse(
        (NetworkArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "cifar100_energy_kd.yaml"],
        description=__doc__,
    )
    with args.main_process_first(desc="decoding the images"):
        train, test = data.load(seed=args.seed)
    classes, names = num_labels(train), label_names(train)
    set_seed(args.seed)
    teacher = image_teachers(networks.teacher_name, classes, networks.teacher_checkpoint, names)
    student = image_classifier(networks.student_name, classes, networks.student_checkpoint, names)
    trainer = DistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=image_accuracy,
        preprocess_logits_for_metrics=topk_predictions,
    )
    run_images(trainer, vars(networks) | vars(data) | trainer.settings)


if __name__ == "__main__":
    main()
