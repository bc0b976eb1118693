"""Compares a student with the network that `from_pretrained` builds of what is saved of it."""

import logging
from collections import defaultdict
from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel

from hfkd.training.student_layers import described_layers
from hfkd.utils.messages import some
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)


def check_structure(student: nn.Module) -> None:
    """Raise ValueError for weights of a transformers student that are tied, and would be loaded untied; warn of others.

    `save_pretrained` writes the configuration, from which `from_pretrained` builds the network: layers that were
    replaced in the student are not in it, and of tied weights one is saved.
    """
    built = _as_its_config_says(student)
    if built is None:
        return
    known = _tied(built)
    for names in _tied(student):
        if not any(names <= others for others in known):
            one, other = sorted(names)[:2]
            raise ValueError(
                f"{one} and {other} of the student are one tensor, which its configuration does not say: one of them "
                "is saved, and from_pretrained gives the other random weights. Set tie_word_embeddings=True in the "
                "configuration if these are its embeddings, else untie them, or tie them in a class of your own"
            )
    own, expected = ({name: t.shape for name, t in net.state_dict().items()} for net in (student, built))
    if other_names := [name for name in own if expected.get(name) != own[name]] or list(expected.keys() - own.keys()):
        logger.warning(
            "%s of the student are not what a %s has by its configuration. Its checkpoints are resumed here, but "
            "from_pretrained will not load them from what is saved: it builds the layers of the configuration, with "
            "new weights. Change the configuration (num_labels, ...), or make the change in a class of your own.",
            some(other_names),
            type(student).__name__,
        )
    else:
        _warn_of_changed_layers(student, built)


def _warn_of_changed_layers(student: nn.Module, built: nn.Module) -> None:
    """Warn of layers with the weights, but not the settings, of the configuration: such as another activation."""
    expected = described_layers(built)
    changed = {
        name: (text, expected[name])
        for name, text in described_layers(student).items()
        if expected.get(name, text) != text
    }
    if changed:
        name, (own, other) = next(iter(changed.items()))
        logger.warning(
            "%s of the student were changed by hand: %s is %s, and a %s has %s there by its configuration, which is "
            "what from_pretrained will build of what is saved. Make the change in the configuration, or in a class of "
            "your own.",
            some(list(changed)),
            name,
            own,
            type(student).__name__,
            other,
        )


def _as_its_config_says(student: nn.Module) -> PreTrainedModel | None:
    """A network without memory as `from_pretrained` builds it; None if there is none."""
    if not isinstance(student, PreTrainedModel) or student._hf_peft_config_loaded:
        return None
    if getattr(student, "hf_quantizer", None) is not None:
        return None
    config = deepcopy(student.config)
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    try:
        with kept_random_state(), torch.device("meta"):
            return type(student)(config)
    except Exception:  # a class may need more than its configuration, or memory
        return None


def _tied(network: nn.Module) -> list[set[str]]:
    """Names of parameters that are the same tensor."""
    names: dict[int, set[str]] = defaultdict(set)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].add(name)
    return [group for group in names.values() if len(group) > 1]
