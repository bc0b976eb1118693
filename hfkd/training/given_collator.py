"""The collator that a trainer makes of `data_collator=`, or of none, and the tokenizer in it."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.arguments import DistillationArguments
from hfkd.data.collate import ImageCollator, with_wrapped
from hfkd.data.text_collate import TokenCollator
from hfkd.data.used_columns import only_used
from hfkd.models.calling import Call
from hfkd.models.inputs import image_channels
from hfkd.tasks.base import Collate, Task


def chosen_collator(
    given: Any,
    processing_class: Any,
    call: Call,
    networks: Sequence[nn.Module],
    task: Task,
    args: DistillationArguments,
) -> Collate:
    """The task's collator, or the user's; batches keep what one of the `networks`, the student's first, takes.

    `call`: the student's, for these rows. For example, a BERT that teaches a DistilBERT gets the `token_type_ids` of
    sentence pairs, which the student does not take.
    """
    calls = [Call.of(network) for network in networks]
    names = args.label_names or ()
    if given is None:
        wanted = {name for one in calls for name in one.keywords or ()} | {*names}
        collate = task.collator(call, processing_class, wanted)
        if isinstance(collate, ImageCollator):
            collate.channels = image_channels(networks[0])
        return collate
    if isinstance(given, TokenCollator):
        return task.ready(given)  # it chooses the columns itself, and reads some that no network takes (seq_lengths)
    takes, always = [call.takes for call in calls], bool(args.remove_unused_columns)
    return task.ready(only_used(given, takes, ("view", *names), always))


def tokenizer_in(collate: Any) -> Any:
    """The `tokenizer` of a collator, which may be wrapped (`chosen_collator`); None without one that can be saved."""
    found = (getattr(one, "tokenizer", None) for one in with_wrapped(collate))
    return next((one for one in found if callable(getattr(one, "save_pretrained", None))), None)


def tokenizer_of_rows(processing_class: Any, collate: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the rows are in: the `processing_class`, that of a processor, or that of the collator."""
    given = (processing_class, getattr(processing_class, "tokenizer", None), tokenizer_in(collate))
    return next((one for one in given if isinstance(one, PreTrainedTokenizerBase)), None)
