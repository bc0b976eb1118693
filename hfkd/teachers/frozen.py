"""The teacher as a frozen network that gets each batch in its own normalisation and size.

B images, H height, W width, C classes, K teachers.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from hfkd.losses.outputs import Outputs
from hfkd.models import InputSpec, input_spec, same_statistics
from hfkd.models.calling import Call, class_dim, output_head
from hfkd.models.inputs import IMAGE_DIMS, image_channels, in_channels
from hfkd.models.label_names import label_names_of
from hfkd.models.target_logits import outputs_at_targets
from hfkd.teachers.base import Teacher
from hfkd.teachers.freezing import Freezing
from hfkd.teachers.sharding import shard_networks
from hfkd.utils.devices import device_of, is_spread
from hfkd.utils.prepared import unprepared
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
SOUND = ("input_values", "input_features")


class FrozenTeacher(nn.Module, Teacher):
    """A network in eval mode and without gradients, until `unfreeze`.

    After that the network has its previous state, and is frozen only during each forward pass, or `with frozen()`.

    `received` is the normalisation of the batches, `wanted` that which the network expects (by default from its
    config); images are re-normalised, with their channels reversed if only one of the two is `bgr`, and resized
    (bicubic, antialiased) if `wanted.size` is set, on the device and in float32, then cast to the network's precision.
    Re-normalising is affine, so that zero padding and crops are exactly as if made for this teacher. `label_names` are
    the names of its classes, by default from its config; the trainer reorders the logits if the data's order of classes
    differs (`reorder`). `classes` selects those of the network's classes that the data has: its class `classes[i]` is
    class i of the data, and its other logits are dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        received: InputSpec | None = None,
        wanted: InputSpec | None = None,
        label_names: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.freezing, self.compiled = model, Freezing([model]), False
        self.call = Call.of(model)
        self.wanted = wanted or input_spec(model)
        self.size = self.wanted.size if self.wanted else None
        self.channels = image_channels(model)
        self.classes = None if classes is None else _distinct(classes)
        own = label_names_of(model)
        if own is not None and self.classes is not None:
            own = tuple(own[i] for i in self.classes if i < len(own))
        self.label_names = own if label_names is None else tuple(label_names)
        self.register_buffer("order", None, persistent=False)
        self.reorder(None)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self._receive(received)
        self._say()
        self.training = False
        self.freeze()

    def _say(self) -> None:
        if self.scale is not None:
            logger.info("The teacher's images are re-normalised: %s -> %s", self.received, self.wanted)

    @property
    def networks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        return (self.model,)

    def _receive(self, received: InputSpec | None) -> None:
        self.received, self.reverses, self.scale, self.shift = received, False, None, None
        if received is None or self.wanted is None or same_statistics(received, self.wanted):
            return
        self.reverses = received.bgr != self.wanted.bgr
        wanted = self.wanted.reversed() if self.reverses else self.wanted
        device = device_of(self.model)
        have_mean, have_std, want_mean, want_std = (
            torch.tensor(v, device=device).view(-1, 1, 1)
            for v in (received.mean, received.std, wanted.mean, wanted.std)
        )
        self.scale, self.shift = have_std / want_std, (have_mean - want_mean) / want_std

    @contextmanager
    def receiving(self, received: InputSpec | None) -> Iterator[None]:
        """Context for batches with the normalisation `received`, of another dataset. None: unchanged."""
        before = self.received, self.reverses, self.scale, self.shift
        try:
            self._receive(received or self.received)
            yield
        finally:
            self.received, self.reverses, self.scale, self.shift = before

    def for_batches(self, received: InputSpec | None) -> Self:
        """A copy, also of a subclass, for batches normalised by `received`, in the network's own order of classes."""
        made = copy(self)
        made._buffers, made.freezing, made.compiled = dict(self._buffers), Freezing(self.networks), False
        unprepared(made)
        made.reorder(None)
        made._receive(received)
        made._say()
        return made

    def take_as_given(self) -> None:
        """Pass images to the network unchanged: a model that generates text was trained with its own processor."""
        self.size, self.reverses, self.scale, self.shift = None, False, None, None

    def reorder(self, order: Sequence[int] | None) -> None:
        """Return class `order[i]`, of the selected classes, as class i from now on; None: the original order.

        The trainer says it anew for its data: an order of one's own is `classes`.
        """
        self.aligned = False
        if self.classes is not None:
            order = self.classes if order is None else [self.classes[i] for i in order]
        self.order = None if order is None else torch.tensor(order, device=device_of(self.model))

    def train(self, mode: bool = True) -> "FrozenTeacher":
        return self

    def compile(self, *arguments: Any, **keywords: Any) -> None:
        super().compile(*arguments, **keywords)
        self.compiled = True

    def uncompiled(self, **inputs: Any) -> Tensor:
        """A call for a few rows, without compiling for their batch size."""
        return self.forward(**inputs)

    def at_targets(
        self, inputs: Mapping[str, Any], targets: Targets, num_classes: int | None, on_heads: bool
    ) -> tuple[Outputs, Tensor | None]:
        logits, picked = outputs_at_targets(self.model, partial(self, **inputs), targets, num_classes, on_heads)
        return Outputs(picked), logits

    def placed(self, accelerator: Accelerator, shard: bool = False) -> "FrozenTeacher":
        return place(self, accelerator, shard)

    def hidden(self, inputs: Mapping[str, Any]) -> tuple[Tensor, nn.Module]:
        return self(last_hidden=True, **inputs), output_head(self.model)

    def freeze(self) -> None:
        self.freezing.do()

    def unfreeze(self) -> "FrozenTeacher":
        self.freezing.undo()
        return self

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context in which the network is frozen; its state is restored afterwards."""
        if self.freezing.done:
            yield
            return
        self.freeze()
        try:
            yield
        finally:
            self.unfreeze()

    def channels_last(self) -> None:
        """Keep the weights in channels_last memory format while they are frozen."""
        was_frozen = self.freezing.done
        self.unfreeze()
        self.freezing.channels_last = True
        if was_frozen:
            self.freeze()

    @torch.no_grad()
    def forward(self, last_hidden: bool = False, each: bool = False, **inputs: Any) -> Tensor:
        """Logits [B, C] or [B, L, V] for the student's batch; or the last hidden states [B, L, H].

        `each` has an effect for several teachers only (`TeacherEnsemble`).
        """
        if self.freezing.done:
            return self._outputs(last_hidden, each, inputs)
        with self.frozen():
            return self._outputs(last_hidden, each, inputs)

    def _outputs(self, last_hidden: bool, each: bool, inputs: Mapping[str, Any]) -> Tensor:
        with own_precision(self.model, inputs):
            if last_hidden:
                return self.call.hidden(self.model, inputs)
            logits = self.call(self.model, self._own_view(inputs))
        its = logits.shape[class_dim(logits)]
        if self.classes is not None and max(self.classes) >= its:
            raise ValueError(
                f"classes={list(self.classes)} of a teacher with {its} classes (0 to {its - 1}): pass existing classes"
            )
        return logits if self.order is None else logits.index_select(class_dim(logits), self.order)

    def extra_repr(self) -> str:
        order = "" if self.order is None else f", order={self.order.tolist()}"
        return f"received={self.received}, wanted={self.wanted}{order}"

    def _own_view(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        dtype = own_dtype(self.model)
        if dtype in HALF:  # audio
            inputs = {k: v.to(dtype) if k in SOUND and v.is_floating_point() else v for k, v in inputs.items()}
        images = inputs.get("pixel_values")
        if images is None:
            return inputs
        self._refuse_patches(images)
        images = images.float()
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        if self.reverses:
            images = images.flip(-3)
        images = in_channels(images, self.channels)
        if self.size is not None and tuple(images.shape[-2:]) != tuple(self.size):
            images = nn.functional.interpolate(images, size=self.size, mode="bicubic", antialias=True)
        return {**inputs, "pixel_values": images.to(dtype or images.dtype)}

    def _refuse_patches(self, images: Tensor) -> None:
        """Raise ValueError for images cut into patches [B, N, D] that would have to be changed."""
        if images.ndim < IMAGE_DIMS and (self.scale is not None or self.size is not None):
            raise ValueError(
                f"images of the shape {tuple(images.shape)}, cut into patches, cannot be re-normalised or resized from "
                f"{self.received} to {self.wanted}: choose networks with the same image processor, or give whole images"
            )


def _distinct(classes: Sequence[int]) -> tuple[int, ...]:
    """The classes. Raises ValueError unless they are distinct non-negative integers."""
    found = tuple(classes)
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ValueError(f"FrozenTeacher: classes={list(found)} must be distinct class ids of the teacher, 0 or more")
    return found


def own_dtype(network: nn.Module) -> torch.dtype | None:
    """The floating-point dtype of a network's weights; None without any."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), None)


def own_precision(network: nn.Module, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Context that disables autocast for a network whose weights are in the other half precision.

    Autocast would cast some of its tensors, but not the weights of its norms.
    """
    device = next((v.device.type for v in inputs.values() if isinstance(v, Tensor)), "cpu")
    dtype = own_dtype(network)
    other = dtype in HALF and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != dtype
    return torch.autocast(device, enabled=False) if other else nullcontext()


def place(teacher: FrozenTeacher, accelerator: Accelerator, shard: bool = False) -> FrozenTeacher:
    """Move the teacher to the student's device, with the same autocast and compilation, but keep it out of checkpoints.

    Every rank has the whole teacher: under DDP and FSDP (where Accelerate itself would leave it on the CPU), and under
    DeepSpeed ZeRO 0-2; with `shard` each rank has a shard (`shard_networks`). A network that Accelerate has spread over
    devices (`device_map`) stays there: it returns its logits on the device of its inputs. Raises ValueError for ZeRO-3:
    models loaded while it is active have empty weights, which only its engine can gather.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        if stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO stage 3 is not supported: a teacher loaded while it is active has empty weights, "
                "which only the DeepSpeed engine can gather; use stage 2, or FSDP with shard_teacher"
            )
    if shard:
        shard_networks(teacher.networks, accelerator)
    stays = any(map(is_spread, teacher.networks))
    if stays:
        _move_others(teacher, accelerator.device)
    prepared = accelerator.prepare_model(teacher, device_placement=not (shard or stays), evaluation_mode=True)
    if isinstance(prepared, OptimizedModule):  # the wrapper lacks the teacher's methods: compile in place instead
        prepared = teacher
        prepared.compile(**accelerator.state.dynamo_plugin.to_kwargs())
    # `save_state` would write models of this list, and Trainer.evaluate prepares the student only if it is empty.
    accelerator._models = [m for m in accelerator._models if m is not prepared and m is not teacher]
    return prepared.eval()


def _move_others(teacher: FrozenTeacher, device: torch.device) -> None:
    """Move what a teacher adds to its networks to a device, and those networks that are not spread over several."""
    for one in {teacher, *teacher.members}:
        for name, buffer in one.named_buffers(recurse=False):
            setattr(one, name, buffer.to(device))
    for network in teacher.networks:
        if not is_spread(network):
            network.to(device)
