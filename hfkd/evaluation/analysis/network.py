"""A network to analyse, and its forward pass over images: logits and penultimate features.

n images, B of a batch, C classes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hfkd.data.collate import ImageCollator
from hfkd.models.feature_capture import FeatureCapture, Probe, refuse_other_head
from hfkd.models.inputs import InputSpec
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.class_order import order_for

PENULTIMATE = "pooled"  # the input of the last linear layer


@dataclass(frozen=True)
class NetworkPass:
    """A network's outputs for n images, on the CPU: logits [n, C] float32, features [n, D] float32; labels [n]."""

    logits: Tensor
    features: Tensor
    labels: Tensor


class AnalysedNetwork:
    """A frozen network that gets images in its own normalisation, with its classes in the data's order.

    received: how the images are normalised; they are re-normalised and resized if the network needs it
    (`FrozenTeacher`). names: the data's classes. `wanted` and `classes`: as of `FrozenTeacher`. Raises ValueError for a
    network without a linear last layer, or with other classes.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        received: InputSpec,
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        wanted: InputSpec | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.name, self.model, self.received, self.device = name, model.to(device), received, torch.device(device)
        try:
            self.capture = FeatureCapture(model, [PENULTIMATE], name)
        except ValueError as error:
            raise ValueError(f"{name} has no penultimate features: {error}") from error
        self.frozen = FrozenTeacher(model, wanted=wanted, classes=classes)
        if self.frozen.label_names is not None and names is not None:
            self.frozen.reorder(order_for(self.frozen, names, name))

    def logits(self, images: Tensor) -> Tensor:
        """[B, C], float32, on the network's device."""
        with self.frozen.receiving(self.received):
            logits: Tensor = self.frozen(pixel_values=images.to(self.device))
        return logits.float()

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and penultimate features [B, D], float32."""
        logits, found = self.capture.run(lambda: self.logits(images))
        return logits, found[PENULTIMATE].float().flatten(1)

    def check(self, images: Tensor, classes: int) -> None:
        """Raise ValueError unless a few images give logits with `classes` classes, computed from the features."""
        logits, found = Probe(self.capture).run(lambda: self.logits(images))
        if logits.ndim != 2 or logits.shape[-1] != classes:
            raise ValueError(
                f"{self.name} has outputs of shape {tuple(logits.shape)} for {len(images)} images, but the data "
                f"has {classes} classes: use a network trained on this data"
            )
        order = None if self.frozen.order is None else self.frozen.order.tolist()
        try:
            refuse_other_head(self.capture, found, logits, order)
        except ValueError as error:
            raise ValueError(f"{self.name} has no penultimate features: {error}") from error


def network_pass(network: AnalysedNetwork, dataset: Any, batch_size: int = 256, features: bool = True) -> NetworkPass:
    """Run the network once over `dataset`, whose rows have `pixel_values` and `labels`.

    features=False leaves the features out ([n, 0]). Raises ValueError for NaN or infinite outputs, naming the first
    image.
    """
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=ImageCollator())
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in tqdm(loader, desc=network.name, disable=None, leave=False):
        images = batch["pixel_values"]
        logits, inner = (
            network.outputs(images) if features else (network.logits(images), images.new_zeros(len(images), 0))
        )
        parts.append((logits.cpu(), inner.cpu(), batch["labels"].cpu()))
    found = NetworkPass(*(torch.cat(column) for column in zip(*parts, strict=True)))
    wrong = ~(found.logits.isfinite().all(-1) & found.features.isfinite().all(-1))
    if wrong.any():
        raise ValueError(
            f"{network.name} gives NaN or infinity for {int(wrong.sum())} of {len(wrong)} images, the first "
            f"of them image {int(wrong.nonzero()[0])}: its training diverged; leave it out"
        )
    return found
