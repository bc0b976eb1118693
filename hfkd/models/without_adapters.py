"""The base model under a student's adapters, as a teacher that shares the student's weights."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import unwrap_peft_model
from transformers.utils import is_peft_available

from hfkd.models.sharing import changes_its_base
from hfkd.utils.messages import some


def without_adapters(student: nn.Module) -> nn.Module:
    """A student's base model without its adapters (PEFT), as a network of its own that shares the student's weights.

    A model then teaches its own adapters and is in memory once: with other prompts for the teacher (`teacher_prompt`),
    or as the start that the student is to stay near. Modules, buffers and hooks are copies, and parameters are the
    student's own tensors, which stay frozen while its adapters train. A student that gets its adapters from the
    trainer (`peft_config`) is passed as it is; one that trains as a whole is refused by the trainer.
    Adapters that are merged later (`merge_and_unload`) change the teacher too.

    Raises ValueError for adapters that are merged, that changed the base model's weights when they were made (PiSSA,
    OLoRA, CorDA, LoftQ, KaSA), or with which weights of the base model train (`bias="all"`).
    """
    made = deepcopy(student, {id(tensor): tensor for tensor in _weights(student)})
    if not is_peft_available():
        return made
    configs = _configs(made)
    for config in configs:
        _refuse_changed(config)
    bare = made
    while found := next(_wrappers(bare), None):
        name, base = found
        if name == "":
            bare = base
        else:
            bare.set_submodule(name, base)
    if configs:
        _refuse_trained(bare)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(bare).pop(attribute, None)
    return bare


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """The parameters of a network, and the weights that its layers in 8 bits (bitsandbytes) hold outside of these.

    Such a layer takes its weights and their scales out of its parameter when it first runs, and of two layers with one
    parameter the second would take those in 8 bits for weights.
    """
    yield from network.parameters()
    modules: Iterator[Any] = network.modules()
    for module in modules:
        if not hasattr(module, "init_8bit_state"):
            continue
        if module.weight.CB is not None:
            module.init_8bit_state()
        yield from (one for one in vars(module.state).values() if isinstance(one, Tensor))


def _configs(network: nn.Module) -> list[Any]:
    """The PEFT configurations of a network, of a `PeftModel` in it, or of adapters that were put into it."""
    several = [getattr(module, "peft_config", None) or {} for module in network.modules()]
    return list({id(config): config for configs in several for config in configs.values()}.values())


def _wrappers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The name of each `PeftModel`, layer with adapters or layer with a trained copy, outer ones first, and what it
    wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # optional dependency
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, part in network.named_modules():
        if (base := unwrap_peft_model(part)) is not part:
            yield name, base
        elif isinstance(part, AuxiliaryTrainingWrapper):
            yield name, part.original_module
        elif isinstance(part, BaseTunerLayer):
            if part.merged:
                raise ValueError(
                    f"the student's adapters are merged into its weights ({name}): call unmerge_adapter() first"
                )
            yield name, part.get_base_layer()


def _refuse_changed(config: Any) -> None:
    start = changes_its_base(config)
    if start is None and getattr(config, "layer_replication", None):  # changes no weight, but which layers there are
        start = "layer_replication"
    if start:
        raise ValueError(
            f"{start} changes the base model, so that without the adapters it is not the network that it was: load it "
            "once more as the teacher, or leave that out"
        )


def _refuse_trained(bare: nn.Module) -> None:
    if trained := [name for name, parameter in bare.named_parameters() if parameter.requires_grad]:
        raise ValueError(
            f"{some(trained)} of the base model train together with the adapters, and the teacher would change in "
            'training: leave them out of the PEFT configuration (bias="none"), or load the model once more as the '
            "teacher"
        )
