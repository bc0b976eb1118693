"""The memory banks of CRD: an embedding of every training image from each network.

B images, D dimensions, N training images.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

STATE = ("student", "teacher", "normalizers", "pending_rows", "pending_student", "pending_teacher")


class RowNumbers:
    """The place 0 to N - 1 of each row in the training set, from the `index` of the rows in their order [N].

    With None a row's index is its place.
    """

    def __init__(self, index: Tensor | None) -> None:
        self.ordered: Tensor | None = None
        self.places: Tensor | None = None
        if index is not None:
            self.ordered, self.places = index.sort()

    def __call__(self, index: Tensor) -> Tensor:
        """[B] -> [B]"""
        if self.ordered is None or self.places is None:
            return index
        if self.ordered.device != index.device:
            self.ordered, self.places = self.ordered.to(index.device), self.places.to(index.device)
        return self.places[torch.searchsorted(self.ordered, index)]


class MemoryBank(nn.Module):
    """Embeddings of length 1 of N images, `student` and `teacher` [N, D], and the two normalizers.

    The updates of a step are applied when the next step begins (`arrive`), so that all micro-batches of a step use the
    same memory. The rows of all ranks are gathered in each micro-batch (`remember`), so that all ranks hold the same
    memory and any of them can save it. The tensors are not buffers, because DDP would broadcast buffers before each
    forward pass.
    """

    student: Tensor
    teacher: Tensor
    normalizers: Tensor
    pending_rows: Tensor
    pending_student: Tensor
    pending_teacher: Tensor

    def __init__(self, num_rows: int, dimension: int, momentum: float, seed: int) -> None:
        super().__init__()
        self.momentum, self.step, self.normalized = momentum, -1, {"student": False, "teacher": False}
        generator = torch.Generator().manual_seed(seed)
        bound = (dimension / 3) ** -0.5
        self.student, self.teacher = bound * (2 * torch.rand(2, num_rows, dimension, generator=generator) - 1)
        self.normalizers = torch.ones(2)
        self._forget()

    def _forget(self) -> None:
        self.pending_rows = torch.zeros(0, dtype=torch.long, device=self.student.device)
        self.pending_student = self.pending_teacher = self.student.new_zeros(0, self.student.shape[1])

    @torch.no_grad()
    def arrive(self, step: int, device: torch.device) -> None:
        """Begin a micro-batch of optimizer step `step`; at the first one of a step, apply the pending updates."""
        if self.student.device != device:
            for name in STATE:
                setattr(self, name, getattr(self, name).to(device))
        if step == self.step:
            return
        self.step, rows = step, self.pending_rows
        for memory, v in ((self.student, self.pending_student), (self.teacher, self.pending_teacher)):
            before = memory[rows]
            moved = self.momentum * before + (1 - self.momentum) * v
            moved = moved / moved.norm(dim=-1, keepdim=True)
            # NaN values of a skipped step (on_nan="skip") must not enter the memory, where later steps would read them.
            memory[rows] = moved.where(moved.isfinite().all(-1, keepdim=True), before)
        self._forget()

    @torch.no_grad()
    def remember(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Keep the new embeddings [B, D] of this micro-batch's images [B] until the step is over, from all ranks."""
        self.pending_rows = torch.cat([self.pending_rows, _of_all_ranks(rows)])
        self.pending_student = torch.cat([self.pending_student, _of_all_ranks(student.to(self.student.dtype))])
        self.pending_teacher = torch.cat([self.pending_teacher, _of_all_ranks(teacher.to(self.teacher.dtype))])

    @torch.no_grad()
    def normalizer(self, network: str, exponentials: Tensor) -> Tensor:
        """Z of one network: N times the mean of the first batch of finite exponentials on the first rank."""
        place = list(self.normalized).index(network)
        if not self.normalized[network]:
            first = len(self.student) * exponentials.mean()
            if _ranks() > 1:
                dist.broadcast(first, 0)
            self.normalizers[place] = first
            self.normalized[network] = bool(first.isfinite())
        return self.normalizers[place].clone()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in STATE:
            destination[prefix + name] = getattr(self, name)
        destination[prefix + "step"] = torch.tensor(self.step)
        destination[prefix + "normalized"] = torch.tensor(list(self.normalized.values()))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], left: Any, errors: Any
    ) -> None:
        found = {name: state_dict.get(prefix + name) for name in (*STATE, "step", "normalized")}
        missing += [prefix + name for name, value in found.items() if value is None]
        if missing:
            return
        for name in ("student", "teacher"):
            if found[name].shape != getattr(self, name).shape:
                shapes = tuple(found[name].shape), tuple(getattr(self, name).shape)
                errors.append(f"{prefix}{name} has the shape {shapes[0]} instead of {shapes[1]}")
                return
        self.step = int(found.pop("step"))
        self.normalized = dict(zip(self.normalized, found.pop("normalized").tolist(), strict=True))
        for name, value in found.items():
            setattr(self, name, value.clone().to(self.student.device))


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_ranks(x: Tensor) -> Tensor:
    """The rows of all ranks, in their order; ranks may have different numbers of them."""
    if _ranks() == 1:
        return x.detach().clone()
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(_ranks())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    most = int(max(counts))
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]).contiguous()
    parts = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
