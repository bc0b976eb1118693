"""The optimizer that Trainer has made for one training, and goes on with in the next."""

import logging
from collections.abc import Iterator
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import TrainerCallback

from hfkd.training.host import Host
from hfkd.training.nonfinite import WHOLE
from hfkd.training.run_settings import ADAM
from hfkd.utils.messages import some
from hfkd.utils.optimizers import steps_in_backward

logger = logging.getLogger(__name__)

SETTINGS = (
    "learning_rate",
    "weight_decay",
    "optim",
    "optim_args",
    "optim_target_modules",
    "decay_bias_and_norm",
    *ADAM,
)


class MadeOptimizer(TrainerCallback):
    """Has the optimizer made anew for a training that needs another one; names parameters that no optimizer has.

    Trainer keeps the one of the training before, whatever has changed since: another learning rate would have no
    effect, and layers that require a gradient only now would stay as they are.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._made: Any = None
        self._settings: dict[str, Any] = {}
        self._trained: list[nn.Parameter] = []
        self._said = [] if host.optimizer is None else self._left_out()  # of optimizers= it has been said

    def renew(self, resumed: bool) -> None:
        """Called before each training. Raises ValueError where another optimizer would be needed and cannot be made.

        resumed: from a checkpoint, whose state, the learning rate too, the optimizer then gets, as in a new trainer.
        """
        host = self.host
        if host.optimizer is None or _inner(host.optimizer) is not self._made or host.is_deepspeed_enabled:
            return  # the first training, the caller's own, or made for each training
        if host.callers_optimizer is not None or host.callers_scheduler is not None:
            return
        changed = {name: was for name, was in self._settings.items() if was != getattr(host.args, name)}
        why = [f"{name} is {getattr(host.args, name)!r} in place of {was!r}" for name, was in changed.items()]
        before = {id(parameter) for parameter in self._trained}
        left_out = [] if host.is_fsdp_enabled else self._left_out()  # whose parameters are others
        new = [name for name, parameter in left_out if id(parameter) not in before]
        why += [f"{some(new)} require a gradient too"] if new else []
        if why:
            self._refuse_renewal(why, bool(new))
            if not resumed:
                logger.warning(
                    "The optimizer of the training before is replaced by another one, without its state (momentum): "
                    "%s.",
                    "; ".join(why),
                )
            host.optimizer = None

    def _refuse_renewal(self, why: list[str], unfrozen: bool) -> None:
        kind, args = self.host.accelerator.distributed_type, self.host.args
        synced = unfrozen and self.host.accelerator.num_processes > 1  # DDP holds the parameters of its first training
        hooked = steps_in_backward(args.optim) or steps_in_backward(self._settings["optim"])  # which stay on parameters
        if synced or hooked or kind not in WHOLE:
            raise ValueError(
                f"{'; '.join(why)}: train() would go on with the optimizer of the training before, in which that has "
                "no effect; build a new trainer with this student"
            )

    def _left_out(self) -> list[tuple[str, nn.Parameter]]:
        """The student's parameters that require a gradient, and that the optimizer does not have."""
        groups = getattr(self.host.optimizer, "param_groups", None)
        if groups is None:  # an object of the user's own, around several optimizers
            return []
        known = {id(p) for group in groups for p in group["params"]}
        return [(name, p) for name, p in self._trainable() if id(p) not in known]

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.host.model.named_parameters() if p.requires_grad)

    def remember(self) -> None:
        """Called when the optimizer is made for a training, which may end in an error before it begins, and when one
        begins."""
        self._made = _inner(self.host.optimizer)
        self._settings = {name: getattr(self.host.args, name) for name in SETTINGS}
        self._trained = [parameter for _, parameter in self._trainable()]

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.remember()
        self._say_left_out(args)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._say_left_out(args)

    def _say_left_out(self, args: Any) -> None:
        """Warn, once for each, of parameters that require a gradient and are in no optimizer."""
        if self.host.is_deepspeed_enabled or self.host.is_fsdp_enabled or steps_in_backward(args.optim):
            return  # whose parameters are elsewhere
        said = {id(parameter) for _, parameter in self._said}
        if found := [(name, p) for name, p in self._left_out() if id(p) not in said]:
            self._said += found
            logger.warning(
                "%s: require a gradient, but the optimizer does not have them, so that they stay as they are. It has "
                "what required a gradient when training started: freeze layers in a callback's on_train_begin to "
                "unfreeze them later, or call train() for each stage.",
                some([name for name, _ in found]),
            )


def _inner(optimizer: Any) -> Any:
    """The optimizer in accelerate's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
