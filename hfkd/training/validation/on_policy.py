"""What cannot write responses, or learn from written ones, is refused when the trainer is built."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from hfkd.arguments import DistillationArguments
from hfkd.data.first_rows import first_rows
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.models.positions import shortest_limit
from hfkd.tasks.base import Task
from hfkd.teachers import Teacher
from hfkd.training.on_policy.prompts import longest_prompt, prompts_of, refuse_long
from hfkd.training.preparation import uses_fsdp


def refuse_on_policy(
    args: DistillationArguments,
    loss: DistillationLoss,
    task: Task,
    call: Call,
    student: nn.Module,
    teacher: Teacher | None,
) -> None:
    """Raise ValueError where `on_policy` or `seq_kd` cannot be had with these networks, slots and weights."""
    if not args.writes:
        return
    asked = f"on_policy={args.on_policy:g}" if args.on_policy else "seq_kd=True"
    if task.name != "causal_lm" or call.takes_images:
        raise ValueError(
            f"{asked}: responses are written by causal language models that read text alone, and the task is "
            f"{task.name}: leave it out"
        )
    if teacher is None or not teacher.networks:
        what = "there is none" if teacher is None else "a stored teacher knows the responses of the data set alone"
        raise ValueError(f"{asked} needs a teacher that runs, and {what}: give the live teacher, or leave it out")
    if uses_fsdp(args) or args.deepspeed:
        raise ValueError(f"{asked}: networks that FSDP or DeepSpeed shard do not write yet: train with DDP")
    if args.seq_kd and len(teacher.networks) > 1:
        raise ValueError(f"seq_kd=True: of {len(teacher.networks)} teachers nobody says which one writes: give one")
    writers = ([student] if args.on_policy else []) + ([teacher.networks[0]] if args.seq_kd else [])
    for network in writers:
        if not (isinstance(bare := unwrap_peft_model(network), PreTrainedModel) and bare.can_generate()):
            raise ValueError(
                f"{asked}: {type(network).__name__} has no generate() of transformers, by which responses are written: "
                "give a model with a head for the next token, such as AutoModelForCausalLM loads"
            )
    if args.on_policy:
        _refuse_labels(args, loss)


def _refuse_labels(args: DistillationArguments, loss: DistillationLoss) -> None:
    """What the student wrote itself is nothing to be taken for the truth."""
    asked = f"on_policy={args.on_policy:g}"
    if not loss.kd_weight:
        raise ValueError(
            f"{asked} with kd_weight=0: what the student writes teaches nothing without a teacher that judges it: "
            "raise kd_weight, or let the teacher write (seq_kd)"
        )
    if args.on_policy == 1 and loss.ce_weight:
        raise ValueError(
            f"{asked} with ce_weight={loss.ce_weight:g}: what the student writes has no labels to learn, and no step "
            "has others: pass ce_weight=0, or a share below 1"
        )
    for slot in (loss.objective, loss.temperature, loss.weighting):
        if requirements_of(slot).labels:
            raise ValueError(f"{asked}: {slot!r} reads labels, and what the student writes has none: choose kd or jsd")


def refuse_prompts_to_write(args: DistillationArguments, networks: Any, rows: Any, collate: Any) -> None:
    """Raise ValueError where the first rows have no prompt, or the longest prompt leaves no room for a response."""
    if not args.writes or rows is None:
        return
    refuse_long(*longest_prompt(rows), args.on_policy_max_new_tokens, shortest_limit(networks))
    if some := first_rows(rows):
        prompts_of(collate(some))
