"""Where a new head can be requested."""

import os


def refuse_new_head(name: str, checkpoint: str | os.PathLike[str] | None, stored: bool) -> None:
    """Raise ValueError if new_head=True would have no effect: it replaces the head of a network with stored weights."""
    if checkpoint is not None:
        raise ValueError(
            f"new_head=True, but checkpoint={os.fspath(checkpoint)!r} has the weights of the head: leave one of them "
            "out"
        )
    if not stored:
        raise ValueError(
            f"new_head=True replaces the head of a stored network, and {name!r} is not one (a Hub id or a folder of a "
            "transformers model): leave new_head out"
        )
