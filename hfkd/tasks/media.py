"""Images and sound beside the tokens of a row."""

from torch import nn

from hfkd.data.target_collator import OTHER_INPUTS
from hfkd.models.calling import Call, bare

PICTURES = ("image", "images", "pixel_values")  # columns
COLLATE = "pass a data_collator that makes the model's inputs, such as one that calls its processor"


def unread_media(network: nn.Module, remedy: str = COLLATE) -> dict[str, str]:
    """Columns that a network reads and `TokenCollator` leaves out, each with the message for a row that has it."""
    named = Call.of(network).keywords or frozenset()
    columns = {*(OTHER_INPUTS & named), *(PICTURES if "pixel_values" in named else ())}
    return {
        name: f"the rows have {name}, which a {type(bare(network)).__name__} reads, but batches of tokens alone would "
        f"be made of them: {remedy}, or remove the column"
        for name in columns
    }
