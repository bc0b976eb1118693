"""The flags of evaluation, for whoever trains with a teacher."""

from dataclasses import dataclass, field


@dataclass
class EvaluationArguments:
    """What is measured on the evaluation set beside the student's loss, and in which precision."""

    evaluate_teacher: bool = field(
        default=True,
        metadata={
            "help": "When training starts, run the teacher over the evaluation set once and log teacher_accuracy: a "
            "teacher that is fed or loaded wrongly shows there. Of a language model: next-token accuracy on about 256 "
            "rows."
        },
    )
    evaluate_kl: bool = field(
        default=False,
        metadata={"help": "Run the teacher in evaluation too, and report eval_kl, KL(teacher || student)."},
    )
    float32_evaluation: bool = field(
        default=True,
        metadata={
            "help": "Evaluate without autocast, so that the reported figures are those of the saved weights (FSDP and "
            "DeepSpeed cast the weights themselves, and evaluate in their precision)."
        },
    )
