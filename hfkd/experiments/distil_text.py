"""Trainers for texts, from a recipe's flags."""

from typing import Any

from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data.labelled_texts import LabelledTextArguments
from hfkd.data.plain_texts import PlainTextArguments
from hfkd.evaluation.metrics import default_metrics
from hfkd.models.label_names import class_names
from hfkd.models.positions import said_limit
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.tasks.choice import chosen_task
from hfkd.trainer import DistillationTrainer


def text_classification_trainer(
    networks: TextNetworkArguments, data: LabelledTextArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a text classifier, with a teacher if `args.kd_weight` or `args.evaluate_kl` needs it."""
    networks.check_teacher(args.kd_weight)
    with args.main_process_first(desc="tokenising"):
        texts = data.read()
        tokenizer = networks.tokenizer(texts.training_texts)
        rows = data.tokens(texts, tokenizer)
    labels = class_names(texts.label_names, texts.num_labels)
    return _trainer(AutoModelForSequenceClassification, networks, args, rows, tokenizer, labels)


def masked_lm_trainer(
    networks: TextNetworkArguments, data: PlainTextArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a masked language model, with a teacher if `args.kd_weight` or `args.evaluate_kl` needs it."""
    networks.check_teacher(args.kd_weight)
    with args.main_process_first(desc="tokenising"):
        texts = data.read()
        tokenizer = networks.tokenizer(texts.train["text"])  # read only if a tokenizer is trained
        rows = data.tokens(texts, tokenizer, args.seed)
    return _trainer(AutoModelForMaskedLM, networks, args, rows, tokenizer, {})


def _trainer(
    auto: Any,
    networks: TextNetworkArguments,
    args: DistillationArguments,
    rows: tuple[Any, Any],
    tokenizer: Any,
    labels: dict[str, Any],
) -> DistillationTrainer:
    """The seed is set before the networks are created, so that runs in one process do not influence each other.

    The tokenizer, which is saved, truncates to the student's positions: a pipeline's truncation=True asks it.
    """
    set_seed(args.seed)
    student = networks.student(auto, tokenizer, **labels)
    tokenizer.model_max_length = min(tokenizer.model_max_length, said_limit(student) or tokenizer.model_max_length)
    needed = args.kd_weight or args.evaluate_kl
    teacher = networks.teacher(auto, tokenizer, **labels) if needed else None
    return DistillationTrainer(
        student,
        teacher,
        args,
        processing_class=tokenizer,
        teacher_processing_class=tokenizer if teacher is not None else None,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        **default_metrics(chosen_task(args.task, [student]).scored_by),
    )
