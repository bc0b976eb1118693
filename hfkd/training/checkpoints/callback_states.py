"""Callbacks of a resumed run continue from their state in the checkpoint."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hfkd.training.checkpoints.whole import WholeCheckpoints


class CallbackStates(TrainerCallback):
    """Restores what callbacks have counted, such as evaluations without improvement for early stopping.

    Trainer stores it, but restores it only with `restore_callback_states_from_checkpoint`, and then with the settings
    of that run's callbacks; here these are the caller's. A callback that the earlier run did not have starts anew.
    """

    def __init__(self, whole: WholeCheckpoints) -> None:
        self.whole = whole

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.whole.start is None or args.restore_callback_states_from_checkpoint:
            return
        found: dict[str, list[Any]] = {}
        for callback in self.whole.host.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback)
        for name, callbacks in found.items():
            stored = state.stateful_callbacks.get(name, [])
            last = stored[-len(callbacks) :] if isinstance(stored, list) else [stored]  # Trainer appends at each save
            for callback, one in zip(callbacks, last, strict=False):
                vars(callback).update(one.get("attributes", {}))
            states = [callback.state() for callback in callbacks]
            state.stateful_callbacks[name] = states if len(states) > 1 else states[0]
