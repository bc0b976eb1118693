"""Refuses students that would not train, or not be saved, as they are."""

import logging
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model
from transformers.utils import is_liger_kernel_available

from hfkd.arguments import DistillationArguments
from hfkd.training.checkpoints.student_weights import trained_adapters, trained_but_not_saved
from hfkd.training.validation.adapter_base import refuse_other_base
from hfkd.training.validation.parallelism import refuse_sharded_student
from hfkd.training.validation.structure import check_structure
from hfkd.utils.launch import uses_fsdp
from hfkd.utils.messages import some

logger = logging.getLogger(__name__)


def check_student(student: nn.Module, args: DistillationArguments, optimizers: Any, trains: bool) -> None:
    """Raise ValueError for a student, without the wrapper of `torch.compile`, that would not train or not be saved.

    optimizers: Trainer's keyword. trains: whether there are rows to train on.
    """
    _refuse_unsaved(student)
    _refuse_unsavable(student)
    if trains:
        refuse_sharded_student(student, args)
        _refuse_frozen(student)
        _refuse_distilled_training(student)
        _refuse_rescaled(student)
        _refuse_checkpointing(student, args)
        _refuse_missing_kernels(args)
        _warn_of_moving_statistics(student)
        _check_optimizer(student, optimizers)
        _check_precision(student, args)
        if not (args.deepspeed or uses_fsdp(args)):  # which may hold a share of each weight
            check_structure(student)
    if not (uses_fsdp(args) and args.process_index):  # whose other ranks may have no weights yet
        refuse_other_base(student)


def _check_optimizer(student: nn.Module, optimizers: Any) -> None:
    """Raise ValueError for the caller's optimizer if it has no parameter of the student; warn of others."""
    optimizer, _ = optimizers or (None, None)
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    lacking = [name for name, parameter in trainable.items() if id(parameter) not in known]
    if lacking and len(lacking) == len(trainable):
        raise ValueError(
            f"optimizers=({type(optimizer).__name__}, ...) has none of the student's trainable parameters, so that "
            "nothing would train: build it from the parameters of the network that is passed as the student (with "
            "peft_config these are adapters, which do not exist before: pass get_peft_model(student, peft_config))"
        )
    if lacking:
        logger.warning(
            "optimizers=(%s, ...) has %d of the student's %d trainable parameters; %s stay as they are.",
            type(optimizer).__name__,
            len(trainable) - len(lacking),
            len(trainable),
            some(lacking),
        )


def checkpointing(args: DistillationArguments) -> str:
    """What transformers calls gradient checkpointing: later versions have another name for it."""
    return "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"


def _refuse_checkpointing(student: nn.Module, args: DistillationArguments) -> None:
    """Raise ValueError for gradient checkpointing of a student that has none; Trainer finds out when it trains."""
    name = checkpointing(args)
    if not getattr(args, name):
        return
    network = unwrap_peft_model(student)
    methods = [f"{kind}_checkpointing_enable" for kind in ("activation", "gradient")]
    own = any(getattr(type(network), one, None) is not getattr(PreTrainedModel, one, None) for one in methods)
    by_layers = isinstance(network, PreTrainedModel) and not own  # transformers' method, which looks at this attribute
    if not (network.supports_gradient_checkpointing if by_layers else any(hasattr(network, one) for one in methods)):
        raise ValueError(
            f"{name}=True asks the student to compute its activations again in the backward pass, and a "
            f"{type(network).__name__} does not support it: leave {name} out, or train with smaller batches and "
            "gradient_accumulation_steps"
        )


def _refuse_missing_kernels(args: DistillationArguments) -> None:
    """Raise ValueError for Liger's kernels where they are not installed; Trainer finds out after a teacher scan."""
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError(
            "use_liger_kernel=True needs the package liger-kernel, 0.3.0 or later, which is not installed: "
            "pip install liger-kernel, or leave use_liger_kernel out"
        )


def _refuse_unsaved(student: nn.Module) -> None:
    """Raise ValueError for a student with adapters that trains parameters which its checkpoints would not contain."""
    lost = trained_but_not_saved(student)
    if lost:
        raise ValueError(
            f"{some(lost)} would change in training, but of a student with adapters only the adapters are saved: "
            "list these modules in modules_to_save of the PEFT configuration, or freeze them"
        )


def _refuse_frozen(student: nn.Module) -> None:
    """Raise ValueError for a student, or adapters of a student, that would not train: these are loaded frozen."""
    adapters = trained_adapters(student)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        what = "no parameter of the student requires a gradient"
    elif adapters and not any(parameter.requires_grad for parameter in adapters):
        what = "the student's adapters are frozen, so that only its other parameters would train"
    else:
        return
    remedy = "call requires_grad_() on what is to be trained"
    if adapters:
        remedy = "load them by PeftModel.from_pretrained(base, folder, is_trainable=True), or merge them"
    raise ValueError(f"{what}: {remedy}")


def _check_precision(student: nn.Module, args: DistillationArguments) -> None:
    """Warn of weights that would train in half precision; ValueError where that ends in an error at the first step."""
    half = {p.dtype for p in student.parameters() if p.requires_grad and p.is_floating_point() and p.itemsize == 2}
    if not half or args.deepspeed or uses_fsdp(args):  # which keep weights in float32
        return
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
    remedy = "load it in float32 (dtype=torch.float32, as transformers loads weights as they are stored)"
    if args.fp16 and torch.float16 in half:
        raise ValueError(f"the student's weights are in {names}, and fp16=True trains weights in float32: {remedy}")
    logger.warning(
        "The student's weights are in %s, in which a step that changes a weight by less than about one part in %d is "
        "lost: %s; bf16=True still computes in bfloat16.",
        names,
        min(round(2 / torch.finfo(dtype).eps) for dtype in half),
        remedy,
    )


def _warn_of_moving_statistics(student: nn.Module) -> None:
    """Warn of batch norms whose weights are frozen: Trainer calls `train()`, in which their statistics change."""
    frozen = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.affine
        if not (module.weight.requires_grad or module.bias.requires_grad)
    }
    modes = {module: module.training for module in student.modules()}
    student.train()  # which may leave them in eval mode, if it is the user's own
    moving = [name for name, module in frozen.items() if module.training]
    for module, training in modes.items():
        module.training = training
    if moving:
        logger.warning(
            "%d batch norms of the student have frozen weights (%s), but normalise by each batch, and change their "
            "running statistics, because training puts them into training mode, also after eval(). To freeze them "
            "whole, use torchvision.ops.FrozenBatchNorm2d or timm.layers.freeze_batch_norm_2d.",
            len(moving),
            some(moving),
        )


def _refuse_distilled_training(student: nn.Module) -> None:
    """Raise ValueError for networks of timm with `set_distilled_training(True)` (DeiT, LeViT, EfficientFormer).

    They return the logits of two heads in training, of which the first would be trained, and their mean in evaluation.
    """
    for module in student.modules():
        if getattr(module, "distilled_training", False) is True:
            raise ValueError(
                f"distilled_training of the student's {type(module).__name__} is on: it returns the logits of two "
                "heads in training, of which the first would be trained, and their mean in evaluation. Call its "
                "set_distilled_training(False), so that it is trained as it is evaluated"
            )


def _refuse_rescaled(student: nn.Module) -> None:
    """Raise ValueError for RWKV with `rescale_every`, which divides its weights in place whenever it is evaluated.

    A checkpoint that is saved after an evaluation has the divided weights, which are divided again once it is loaded.
    """
    config = getattr(unwrap_peft_model(student), "config", None)
    every = getattr(config, "rescale_every", 0)
    if config is not None and 0 < every < config.num_hidden_layers:
        raise ValueError(
            f"rescale_every={every} in the student's config divides the weights of its later layers in place whenever "
            "it is evaluated, so that a checkpoint saved after that would have other weights: set "
            "student.config.rescale_every = 0"
        )


def _refuse_unsavable(student: nn.Module) -> None:
    """Raise ValueError for what `save_pretrained` refuses, which otherwise ends the first save.

    Namely a generation_config, and adapters that transformers has put into its model, if it needs a newer PEFT.
    """
    if not isinstance(student, PreTrainedModel):
        return
    if student._hf_peft_config_loaded:
        try:
            student.active_adapters()
        except ValueError as error:
            raise ValueError(
                f"the student's adapters cannot be saved by transformers ({error}): load its base model, and the "
                "adapters by PeftModel.from_pretrained(base, folder, is_trainable=True)"
            ) from error
    if not student.can_generate():
        return
    try:
        with TemporaryDirectory() as folder:  # one that is as it was published may be saved, whatever it has
            student.generation_config.save_pretrained(folder)
    except ValueError as error:
        said = [line for line in str(error).splitlines() if line.startswith("- ")] or [str(error)]
        raise ValueError(
            f"the student's generation_config cannot be saved with it ({' '.join(said)}): change that, such as by "
            "student.generation_config.do_sample = True"
        ) from error


def refuse_prompts(whose: str, network: nn.Module) -> None:
    """Raise ValueError for adapters that prepend virtual tokens: labels have no entries for these."""
    for config in getattr(network, "peft_config", {}).values():
        if config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
            raise ValueError(
                f"the {whose}'s {config.peft_type.value} prepends virtual tokens to each row, so that its logits would "
                "be longer than the labels and the logits of the other network: use LoRA or prefix tuning"
            )
