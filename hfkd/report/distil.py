"""One student from one teacher on images: from what the flags of a recipe say to results.json."""

from typing import Any

from transformers import set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments, label_names, num_labels
from hfkd.metrics import image_accuracy, topk_predictions
from hfkd.models import NetworkArguments, image_classifier, image_teachers
from hfkd.report.image_run import run_images
from hfkd.trainer import DistillationTrainer


def distil_images(
    networks: NetworkArguments, data: ImageDataArguments, args: DistillationArguments, page: bool = True
) -> dict[str, Any]:
    """Load data and networks, distil, and leave the student and its results in `args.output_dir`; see `run_images`.

    The seed is set here, so that several runs in one process give what each gives alone. Runs on every rank.
    """
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
    return run_images(trainer, vars(networks) | vars(data) | trainer.settings, page=page)
