"""The teacher as a frozen network that sees each batch in its own normalisation and size.

B images, H height, W width, C classes, K teachers.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from hfkd.models import InputSpec, input_spec
from hfkd.models.calling import Call

logger = logging.getLogger(__name__)


class LiveTeacher(nn.Module):
    """A network in eval mode, without gradients, that stays so whatever its owner does.

    `received` says how the batches are normalised, `wanted` how the network wants them (by default what it says
    itself); they are re-normalised, and resized (bicubic, antialiased) when `wanted.size` asks for it, on the device
    and in float32, then cast to the network's own precision. Re-normalising is affine, so zero padding and crops come
    out exactly as if made for this teacher.
    """

    def __init__(self, model: nn.Module, received: InputSpec | None = None, wanted: InputSpec | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.call = Call.of(model)
        self.received, self.wanted = received, wanted or input_spec(model)
        self.size = self.wanted.size if self.wanted else None
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        if self.received and self.wanted and self._statistics(self.received) != self._statistics(self.wanted):
            have_mean, have_std = (torch.tensor(v).view(-1, 1, 1) for v in self._statistics(self.received))
            want_mean, want_std = (torch.tensor(v).view(-1, 1, 1) for v in self._statistics(self.wanted))
            self.scale, self.shift = have_std / want_std, (have_mean - want_mean) / want_std
            logger.info("The teacher's images are re-normalised: %s -> %s", self.received, self.wanted)
        self.eval()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The bare networks behind it."""
        return (self.model,)

    @staticmethod
    def _statistics(spec: InputSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return spec.mean, spec.std

    def train(self, mode: bool = True) -> "LiveTeacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, last_hidden: bool = False, each: bool = False, **inputs: Any) -> Tensor:
        """Logits [B, C] or [B, L, V] for the batch that the student gets; or the last hidden states [B, L, H].

        `each` is for several teachers (`Teachers`); one is itself.
        """
        if last_hidden:
            return self.call.hidden(self.model, inputs)
        return self.call(self.model, self._own_view(inputs))

    def extra_repr(self) -> str:
        return f"received={self.received}, wanted={self.wanted}"

    def _own_view(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        images = inputs.get("pixel_values")
        if images is None:
            return inputs
        images = images.float()
        if self.scale is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        if self.size is not None and tuple(images.shape[-2:]) != tuple(self.size):
            images = nn.functional.interpolate(images, size=self.size, mode="bicubic", antialias=True)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), images.dtype)
        return {**inputs, "pixel_values": images.to(dtype)}


class Teachers(LiveTeacher):
    """Several teachers in place of one: to whoever asks for a teacher's logits, their mean.

    `each=True` gives them one by one, [K, B, ...] for K teachers, to an objective that combines them itself.
    """

    def __init__(self, teachers: Sequence[LiveTeacher]) -> None:
        if len(teachers) < 2:
            raise ValueError(f"a list of {len(teachers)} teachers: pass two or more, or one teacher that is no list")
        super().__init__(nn.ModuleList(teachers))
        self.teachers = tuple(teachers)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return tuple(one.model for one in self.teachers)

    @torch.no_grad()
    def forward(self, last_hidden: bool = False, each: bool = False, **inputs: Any) -> Tensor:
        """Logits [B, ...], or [K, B, ...] with `each`. ValueError for hidden states: there are several."""
        if last_hidden:
            raise ValueError(
                "several teachers have no common hidden state: set loss_chunk_size to 0, or use one teacher"
            )
        logits = [teacher(**inputs).float() for teacher in self.teachers]
        if len({one.shape for one in logits}) > 1:
            raise ValueError(f"teachers of {[one.shape[-1] for one in logits]} classes: they must have the same ones")
        return torch.stack(logits) if each else torch.stack(logits).mean(0)


def place(teacher: LiveTeacher, accelerator: Accelerator) -> LiveTeacher:
    """Put the teacher where the student trains, with the same autocast and compilation, and in no checkpoint.

    Every rank holds it whole: under DDP and FSDP alike (Accelerate by itself would leave it on the CPU under FSDP), and
    under DeepSpeed ZeRO 0-2. ZeRO-3 shards any model that is built while it is on, this one too: ValueError.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        if stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO stage 3 would shard the teacher, which takes no part in training: use stage 2, or FSDP"
            )
    prepared = accelerator.prepare_model(teacher, device_placement=True, evaluation_mode=True)
    # The list is what `save_state` writes out, and while it is empty Trainer.evaluate knows to prepare the student.
    accelerator._models = [m for m in accelerator._models if m is not prepared and m is not teacher]
    return prepared.eval()
