"""Next-token prediction of the same responses after two prompts: the student's, and one that only the teacher reads.

B rows, L length of the student's tokens, K of the teacher's, V vocabulary.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hfkd.data.first_rows import sets_by_name
from hfkd.data.teacher_columns import TEACHER_IDS, TEACHER_PROMPT, columns_of, refuse_some, teachers_batch
from hfkd.data.teacher_prompt_collate import TeacherPromptCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items, token_items
from hfkd.models.calling import Call
from hfkd.models.positions import said_limit
from hfkd.tasks.base import Batch, Collate, Task
from hfkd.tasks.causal_lm import CausalLM, of_tokens

logger = logging.getLogger(__name__)

TOKENISE = f"give all rows a {TEACHER_PROMPT}, and tokenise them with hfkd.data.text.tokenize_dataset"


class TeacherPromptLM(CausalLM):
    """`CausalLM` whose teacher predicts a row's response after a prompt of its own: context distillation.

    The k-th target token of a row is the same for both networks, which predict it at different positions.
    """

    own_rows = True
    name = "causal_lm"

    def __init__(self, teacher_limit: int | None) -> None:
        self.teacher_limit = teacher_limit

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return self.ready(super().collator(call, processing_class, columns))

    def ready(self, collate: Collate) -> Collate:
        if isinstance(collate, TeacherPromptCollator):
            return collate
        return TeacherPromptCollator.around(of_tokens(collate, "the rows have others for the teacher"))

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        made = super().tokenised(rows, processing_class, limit)
        if made is not rows and self.teacher_limit is not None and len(made) < len(rows):
            logger.warning(
                "%d of %d rows are left out: blank, or longer than the teacher's %d positions with its own prompt.",
                len(rows) - len(made),
                len(rows),
                self.teacher_limit,
            )
        return made

    def teacher_reads(self, batch: Batch) -> bool:
        return TEACHER_IDS in batch

    def for_teacher(self, batch: Batch) -> dict[str, Any]:
        return teachers_batch(batch, f"others have prompts of the teacher's own: {TOKENISE}")

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        """The items of logits [B, L, V] of the student and [B, K, V] of the teacher.

        Those of one network's own tokens, if both are its logits (detached or not) or the batch has no others.
        """
        same = teacher.data_ptr() == student.data_ptr() != 0  # 0: a tensor that is held in parts, as by two processes
        if same or not self.teacher_reads(batch):
            return super().items(batch, student, teacher, progress)
        its, known = self.targets(self.for_teacher(batch)), self._known(batch)
        return token_items(student, teacher, batch["labels"], progress=progress, of_teacher=its, **known)

    def teacher_items(self, batch: Batch, teacher: Tensor) -> Items:
        return super().items(self.for_teacher(batch), teacher, teacher)


def with_teacher_prompts(
    task: Task, loss: DistillationLoss, args: Any, teachers: Sequence[nn.Module], data: Mapping[str, Any]
) -> Task:
    """`task`, or the one for a teacher with prompts of its own if the training rows have some.

    Raises ValueError for settings that are not supported with them.
    """
    sets = {name: sets_by_name(rows, name) for name, rows in data.items() if rows is not None}
    read = {name: _has_prompts(rows) for several in sets.values() for name, rows in several.items()}
    training = sets.get("train_dataset") or sets.get("eval_dataset") or {}
    runs = bool(loss.kd_weight or args.evaluate_kl or args.seq_kd)  # the teacher
    if not runs or not any(read[name] for name in training):
        return task
    if type(task) is not CausalLM:
        _refuse_for(task, training.values())
        return task
    lacking = [name for name, has in read.items() if not has]
    unmet = {
        "it has outputs for the student's prompts only": ("a stored teacher", not teachers),
        "its terms compare inner layers position by position": (repr(loss.objective), bool(loss.requirements.features)),
        f"{' and '.join(lacking)} has none, and would be compared with the teacher without its prompt": (
            "evaluate_kl=True",
            args.evaluate_kl and lacking,
        ),
    }
    for why, (what, asked) in unmet.items():
        if asked:
            raise ValueError(
                f"the rows have prompts that only the teacher reads ({TEACHER_PROMPT} or {TEACHER_IDS}), with which "
                f"{what} is not supported, as {why}: leave it out, or remove these columns"
            )
    for several in sets.values():
        for rows in several.values():
            refuse_some(rows)
    limits = [limit for one in teachers if (limit := said_limit(one)) is not None]
    return TeacherPromptLM(min(limits, default=None))


def _refuse_for(task: Task, training: Iterable[Any]) -> None:
    """Raise ValueError for one of hfkd's other language tasks, which would leave the teacher's columns out."""
    if task.own_rows or not type(task).__module__.startswith("hfkd.") or not task.vocabulary:
        return
    found = sorted({TEACHER_IDS, TEACHER_PROMPT} & {name for rows in training for name in columns_of(rows)})
    raise ValueError(
        f"the rows have {' and '.join(found)}, which only the teacher reads, but that is supported for causal language "
        f"models, and the task is {task.name}: remove these columns"
    )


def _has_prompts(rows: Any) -> bool:
    return not {TEACHER_IDS, TEACHER_PROMPT}.isdisjoint(columns_of(rows))
