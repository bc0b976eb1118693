"""The class names of networks, and the order in which two networks or datasets have the same classes.

C classes.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.trainer_utils import unwrap_peft_model

from hfkd.models.peers import Peers
from hfkd.utils.messages import some

logger = logging.getLogger(__name__)

NUMBERING = re.compile(r"(label|class|c|id)?\s*(\d+)")  # matches a canonical name
WORDNET_ID = re.compile(r"n\d{8}")
SPELT_ALIKE = 0.9


def label_names_of(network: nn.Module) -> tuple[str, ...] | None:
    """A network's class names in the order of its logits; None if it has none, or only numbers."""
    if isinstance(network, Peers):
        return label_names_of(network.peers[network.scored])
    bare: Any = unwrap_peft_model(getattr(network, "_orig_mod", network))
    config = getattr(bare, "config", None)
    if isinstance(config, PreTrainedConfig):
        return label_names_in(config)
    # a bare timm model
    names = tuple(map(str, (getattr(bare, "pretrained_cfg", None) or {}).get("label_names") or ()))
    return names if names and not is_numbering(names) else None


def label_names_in(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """`label_names_of` a network with this configuration."""
    named: dict[int, str] = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    names = tuple(named[i] for i in sorted(named))
    return names if names and not is_numbering(names) else None


def class_names(names: Sequence[str] | None, classes: int) -> dict[str, Any]:
    """What the config of a classifier with this number of classes says of them."""
    if names is None:
        return {"num_labels": classes}
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def warn_of_renamed(name: str, label_names: Sequence[str] | None) -> None:
    """Warn of a stored head of other classes than `label_names`, or of these in another order, which gets these names.

    It trains to the right classes, but starts from wrong ones. name: a Hub id or a saved folder.
    """
    own = label_names_in(AutoConfig.from_pretrained(name, trust_remote_code=False))
    if own is None or label_names is None or is_numbering(label_names) or len(own) != len(label_names):
        return
    said = "the data's classes in another order"
    try:
        if order_of(own, label_names, name, "the data") is None:
            return
    except ValueError:
        said = "other classes than the data's"
    logger.warning(
        "%s has a stored head for %s (%s instead of %s), which gets the data's names and keeps its weights: it starts "
        "from wrong predictions. Start from a new head, or from a network without one.",
        name, said, some(own), some(label_names),
    )  # fmt: skip


def is_numbering(names: Sequence[str]) -> bool:
    """Whether the names are only the indices of the classes: LABEL_0, LABEL_1, ..., or 0, 1, ..."""
    numbers = _numbers(names)
    return numbers == list(range(len(names)))


def out_of_order(names: Sequence[str]) -> bool:
    """Whether the names are numbers that are not ascending, such as folders in the order 0, 1, 10, 2."""
    numbers = _numbers(names)
    return numbers is not None and numbers != sorted(numbers)


def order_of(have: Sequence[str], wanted: Sequence[str], whose: str, others: str) -> list[int] | None:
    """The index in `have` of each of the `wanted` classes; None if the order is the same, or cannot be compared.

    Names are compared without case, hyphens and underscores, and up to the first comma (synonyms follow). The order
    cannot be compared if one side consists of WordNet ids or numbers and the other of words. If at least nine in ten
    names are equal at the same index, the others count as different spellings (automobile, car). Raises ValueError for
    different classes; `whose` describes the owner of `have`, and `others` that of `wanted`.
    """
    mine, its = _compared(have), _compared(wanted)
    if mine == its or cannot_compare(have, wanted):
        return None
    if len(set(mine)) == len(mine) and set(mine) == set(its):
        return [mine.index(name) for name in its]
    in_place = sum(a == b for a, b in zip(mine, its, strict=False))
    if in_place >= len(set(mine) & set(its)) and in_place >= SPELT_ALIKE * len(its):
        return None
    first = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), min(len(mine), len(its)))
    only = f"only in {whose}: {_some(have, mine, its)}; only in {others}: {_some(wanted, its, mine)}"
    raise ValueError(
        f"{whose} does not have the classes of {others}: class {first} of {whose} is {_at(have, first)}, "
        f"that of {others} {_at(wanted, first)} ({only}). Logits are compared class by class: use networks and data "
        "with the same classes, or correct the names (config.id2label)"
    )


def same_names(have: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether both name the same classes in the same order, apart from case, hyphens and synonyms."""
    return _compared(have) == _compared(wanted)


def cannot_compare(have: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether only one of the two names its classes by WordNet ids or numbers."""
    return _is_code(have) != _is_code(wanted)


def _is_code(names: Sequence[str]) -> bool:
    return _numbers(names) is not None or all(WORDNET_ID.fullmatch(name) for name in names)


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as numbers; None if some of them are not numbers."""
    found = [NUMBERING.fullmatch(_canonical(name)) for name in names]
    return [int(match[2]) for match in found if match] if all(found) else None


def _compared(names: Sequence[str]) -> list[str]:
    numbers = _numbers(names)
    return [_canonical(name) for name in names] if numbers is None else [str(number) for number in numbers]


def _canonical(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.split(",")[0]).strip().casefold()


def _at(names: Sequence[str], place: int) -> str:
    return repr(names[place]) if place < len(names) else "none"


def _some(names: Sequence[str], compared: Sequence[str], others: Sequence[str]) -> str:
    missing = [repr(name) for name, key in zip(names, compared, strict=True) if key not in others]
    return some(missing) or "none"
