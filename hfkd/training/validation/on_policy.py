"""Refuses networks and settings that cannot generate responses, or train on generated ones."""

import logging
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.data.first_rows import first_rows
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.models.positions import shortest_limit
from hfkd.models.writing import can_write, end_ids
from hfkd.tasks.base import Task
from hfkd.tasks.padding import refuse_padded_prompts
from hfkd.teachers import Teacher
from hfkd.training.on_policy.prompts import longest_prompt, prompts_of, refuse_long
from hfkd.utils.launch import uses_fsdp

logger = logging.getLogger(__name__)


def refuse_on_policy(
    args: DistillationArguments,
    loss: DistillationLoss,
    task: Task,
    call: Call,
    student: nn.Module,
    teacher: Teacher | None,
) -> None:
    """Raise ValueError if these networks, slots and weights do not support `on_policy` or `seq_kd`."""
    if not args.writes:
        return
    asked = f"on_policy={args.on_policy:g}" if args.on_policy else "seq_kd=True"
    if task.name != "causal_lm" or call.takes_images:
        raise ValueError(
            f"{asked}: only text-only causal language models can generate responses, and the task is {task.name}: "
            "leave it out"
        )
    if teacher is None or not teacher.networks:
        what = "there is none" if teacher is None else "a stored teacher only covers the responses in the dataset"
        raise ValueError(f"{asked} needs a live teacher, but {what}: pass the teacher network, or leave it out")
    if uses_fsdp(args) or args.deepspeed:
        raise ValueError(
            f"{asked}: generation with networks sharded by FSDP or DeepSpeed is not supported yet: train with DDP"
        )
    if args.seq_kd and len(teacher.networks) > 1:
        raise ValueError(
            f"seq_kd=True: with {len(teacher.networks)} teachers it is ambiguous which one generates: pass one"
        )
    writers = ([student] if args.on_policy else []) + ([teacher.networks[0]] if args.seq_kd else [])
    for network in writers:
        if not can_write(network):
            raise ValueError(
                f"{asked}: {type(network).__name__} has no generate() of transformers, which is needed to "
                "generate responses: pass a model with a language-modelling head, such as one loaded by "
                "AutoModelForCausalLM"
            )
        if args.on_policy_batch_size != 1:
            refuse_padded_prompts(network, 0, "set on_policy_batch_size=1")
    if args.on_policy:
        _refuse_labels(args, loss)


def _refuse_labels(args: DistillationArguments, loss: DistillationLoss) -> None:
    """Raise ValueError for settings that would use the student's own responses as labels."""
    asked = f"on_policy={args.on_policy:g}"
    if not loss.kd_weight:
        raise ValueError(
            f"{asked} with kd_weight=0: the student's responses can only be learned from through the teacher's "
            "logits: raise kd_weight, or use responses of the teacher (seq_kd)"
        )
    if args.on_policy == 1 and loss.ce_weight:
        raise ValueError(
            f"{asked} with ce_weight={loss.ce_weight:g}: the student's responses have no labels, and all steps "
            "use them: pass ce_weight=0, or on_policy below 1"
        )
    for slot in loss.slots:
        if requirements_of(slot).labels:
            raise ValueError(f"{asked}: {slot!r} reads labels, but the student's responses have none: choose kd or jsd")


def refuse_prompts_to_write(args: DistillationArguments, networks: Any, rows: Any, collate: Any) -> None:
    """Raise ValueError if the first rows have no prompt, or the longest prompt leaves no room for a response."""
    if not args.writes or rows is None:
        return
    student, *teachers = networks
    for of_teacher, readers in enumerate(([student], teachers)):
        refuse_long(*longest_prompt(rows, bool(of_teacher)), args.on_policy_max_new_tokens, shortest_limit(readers))
    if some := first_rows(rows):
        prompts_of(collate(some))


def warn_of_other_ends(args: DistillationArguments, student: Any, teacher: Teacher | None, tokenizer: Any) -> None:
    """Warn if the student learns to end responses with a token at which it will not stop, such as an end of turn."""
    if not args.writes or teacher is None or not can_write(student):
        return
    own, others = end_ids(student, tokenizer), cast(Sequence[Any], teacher.networks)
    more = {end for one in others if can_write(one) for end in end_ids(one, tokenizer)} - own
    if own and more:
        logger.warning(
            "The teacher ends responses with the tokens %s too, which the student learns from it, but at which the "
            "student's generate() does not stop: set model.generation_config.eos_token_id = %s before training.",
            sorted(more),
            sorted(own | more),
        )
