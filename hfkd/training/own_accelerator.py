"""What accelerate keeps once for the whole process, and each trainer needs as it was when it was built."""

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

NAME, KEPT = "accelerator", "_accelerate_state"
OWNER = "hfkd_owner"  # an entry beside accelerate's own


class OwnAccelerator:
    """The attribute `accelerator` of a trainer; reading it puts accelerate into this trainer's state.

    Training arguments that are made later empty that state, and a trainer that is built later replaces it: the earlier
    one would end in an AttributeError, or compute and report in the precision of the other.
    """

    def __set__(self, trainer: Any, accelerator: Accelerator) -> None:
        state = AcceleratorState._shared_state
        state[OWNER] = object()
        vars(trainer).update({NAME: accelerator, KEPT: dict(state)})

    def __get__(self, trainer: Any, kind: Any = None) -> Any:
        if trainer is None:
            return self
        accelerator, kept = vars(trainer).get(NAME), vars(trainer).get(KEPT)
        if kept is None:
            raise AttributeError(f"{type(trainer).__name__} has no accelerator before it is built")
        state = AcceleratorState._shared_state
        if state.get(OWNER) is not kept[OWNER]:
            state.clear()
            state.update(kept)
        return accelerator


def leave_state() -> None:
    """Before another trainer is built: accelerate would refuse it in the state, such as the precision, of an earlier
    one."""
    if OWNER in AcceleratorState._shared_state:
        AcceleratorState._shared_state.clear()
