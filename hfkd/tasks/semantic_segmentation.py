"""A class for each pixel: `ForSemanticSegmentation`, torchvision's segmentation models, other segmentation networks.

B images, C classes, H and W of the labels, h and w of a network's maps.
"""

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.collate import ImageCollator
from hfkd.data.masks import UNLABELLED, MaskCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.functional import interpolated
from hfkd.losses.items import Items, token_items
from hfkd.losses.strips import MapItems, StripLoss, map_items
from hfkd.models.calling import Call, bare, logits_of, unlabelled_index
from hfkd.tasks.base import Batch, Collate, Task, refuse_bool, register_task
from hfkd.utils.argument_types import Count, fitting
from hfkd.utils.devices import device_of
from hfkd.utils.targets import IGNORED, HostTargets, Targets, count_token_items
from hfkd.utils.temporary_settings import setting

logger = logging.getLogger(__name__)

AUXILIARY_WEIGHT = 0.5  # weight of torchvision's auxiliary head, as in its training script
REST_NAME = "auxiliary_loss"
LABELS_ALONE = DistillationLoss(ce_weight=1.0, kd_weight=0.0)


@register_task("semantic_segmentation")
class SemanticSegmentation(Task):
    """An item is a pixel with a label; a sample is an image.

    Labels [B, H, W]; 255 and -100 mean no label. The logits [B, C, h, w] of both networks are resized to the labels
    (`functional.interpolated`), so that the networks' output sizes may differ. With `segmentation_stride` s, the grid
    is every s-th pixel in each direction, the middle of each s x s block, and logits are resized to that. The
    cross-entropy of an auxiliary head is added with the weight in the network's own loss; for torchvision 0.5.
    """

    pipeline_tag = "image-segmentation"
    item = "a pixel"
    one_item_a_row = False
    by_map = True
    ignores = (UNLABELLED, IGNORED)
    without_labels = "add a column 'labels' with the class of each pixel, 255 for no label"
    scanned_items = 1_000_000
    segmentation_stride: int | None = None
    copies: int = 0  # of the networks, by DataParallel

    def configure(self, args: Any) -> None:
        stride = getattr(args, "segmentation_stride", None)
        if getattr(args, "teacher_cache_dir", None):
            raise ValueError(
                f"teacher_cache_dir={args.teacher_cache_dir!r} stores one row of logits per image, but "
                "segmentation has logits for each pixel: leave it out"
            )
        self.segmentation_stride = fitting("DistillationArguments", "segmentation_stride", stride, Count | None)
        self.copies = args.n_gpu

    def check_networks(self, students: Sequence[nn.Module], teachers: Sequence[nn.Module], stored: bool) -> None:
        """DataParallel averages the copies' own losses, whatever the number of labelled pixels that each has."""
        if self.copies > 1 and Call.of(students[0]).unlabelled is not None:
            raise ValueError(
                f"{type(bare(students[0])).__name__} has an auxiliary head that enters its own loss only, which "
                "DataParallel averages over GPUs whatever they have labelled: launch one process per GPU, for example "
                "with torchrun"
            )

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        processor = processing_class if isinstance(processing_class, BaseImageProcessor) else None
        return self.ready(MaskCollator(ImageCollator(processor, columns, shares=False)))

    def ready(self, collate: Collate) -> Collate:
        return PixelCollator(collate, self.segmentation_stride)

    def count(self, batch: Batch) -> Tensor | int:
        return count_token_items(self._flat(batch), **self._known(batch), shift=0)

    def count_samples(self, batch: Batch) -> Tensor | int:
        return Targets(self._flat(batch), **self._known(batch), shift=0).samples_with_items

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        size = self._size(batch)
        mine = interpolated(student, size).flatten(-2).transpose(-1, -2)
        its = mine if teacher is student else interpolated(teacher, size).flatten(-2).transpose(-1, -2)
        items = token_items(mine, its, self._flat(batch), progress=progress, **self._known(batch), shift=0)
        return replace(items, rest_name=REST_NAME)

    def map_items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> MapItems:
        labels, known = self._flat(batch), self._known(batch)
        found = map_items(student, teacher, labels, self._size(batch), progress=progress, **known)
        return found._replace(known=replace(found.known, rest_name=REST_NAME))

    def each_item(
        self, batch: Batch, student: Tensor, teacher: Tensor, values_of: Callable[[Items], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, int]]:
        """Process one image at a time, since the logits of all pixels take much memory."""
        found, rows, labels = [], [], batch["labels"]
        for k in range(len(labels)):
            one = slice(k, k + 1)
            mine = student[one]
            its = mine if teacher is student else teacher[..., one, :, :, :]
            items = self.items({"labels": labels[one]}, mine, its)
            found.append(values_of(items))
            rows.append(torch.full_like(items.sample, k))
        values = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return values, (torch.cat(rows), len(labels))

    def _size(self, batch: Batch) -> list[int]:
        """Height and width of the grid."""
        return [-(-n // (self.segmentation_stride or 1)) for n in batch["labels"].shape[-2:]]

    def _flat(self, batch: Batch) -> Tensor:
        return flat_labels(batch["labels"], self.segmentation_stride)

    def _known(self, batch: Batch) -> dict[str, Any]:
        return {name: batch[name] for name in ("host_targets",) if name in batch}

    # ---- the network's own loss ------------------------------------------------------------------------------------

    @contextmanager
    def as_networks_have_it(self, network: nn.Module) -> Iterator["SemanticSegmentation"]:
        """At the size of the labels, and without the loss of the auxiliary head."""
        whole = copy.copy(self)
        whole.segmentation_stride = None
        config: Any = getattr(network, "config", None)
        weighted = getattr(config, "auxiliary_loss_weight", None) is not None
        with setting(config, auxiliary_loss_weight=0.0) if weighted else nullcontext():
            yield whole

    def given_besides(self, call: Call, batch: Batch) -> dict[str, Any]:
        """The labels, for a model that uses its auxiliary head only in its own loss; at least one pixel is labelled."""
        if call.unlabelled is None:
            return {}
        labels, known = self._whole(batch["labels"])
        first = torch.zeros_like(known).index_fill(-1, torch.zeros(1, dtype=torch.long, device=known.device), True)
        made_up = first & ~known.any()  # so that the mean is not NaN; `added_loss` then discards it
        labels = labels.masked_fill(~known, call.unlabelled).masked_fill(made_up, 0)
        return {"labels": labels.view_as(batch["labels"])}

    def added_loss(self, call: Call, output: Any, batch: Batch) -> Tensor | None:
        own, labels = getattr(output, "loss", None), batch["labels"]
        if isinstance(own, Tensor):
            _, known = self._whole(labels)
            return (own.float() - self._mean_loss(logits_of(output), labels)) * known.any()
        auxiliary = output.get("aux") if isinstance(output, Mapping) else None
        return None if auxiliary is None else AUXILIARY_WEIGHT * self._mean_loss(auxiliary, labels)

    def _mean_loss(self, maps: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy over all pixels with a label; 0 without any."""
        items = map_items(maps, maps.detach(), flat_labels(labels, None), labels.shape[-2:])
        return StripLoss(LABELS_ALONE)(items)[0]

    def _whole(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The labels of all pixels [B H W], and a mask of those that are labelled."""
        flat = flat_labels(labels, None).flatten()
        return flat, flat != IGNORED

    # ---- what is refused -------------------------------------------------------------------------------------------

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 4:
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}, but {self.name} needs [batch, classes, "
                "height, width]: choose a segmentation model, or set another task"
            )
        classes = logits.shape[1]
        if not 2 <= classes <= UNLABELLED:
            raise ValueError(
                f"the student has {classes} classes, but {self.name} needs 2 to {UNLABELLED}: the softmax of one "
                f"class is always 1, and the label {UNLABELLED} means no label; change the number of classes"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        shape, kind = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
        refuse_bool(labels)
        if labels.ndim == 4 and 3 in (labels.shape[1], labels.shape[-1]):
            raise ValueError(
                f"labels have shape {shape} and seem to be colours: convert them to class ids [batch, height, "
                "width] with the palette of the dataset (hfkd.data.masks can read one)"
            )
        if labels.is_floating_point() or labels.ndim != 3:
            raise ValueError(
                f"labels are of type {kind}, shape {shape}: masks must be integers [batch, height, width], one "
                f"class per pixel, {UNLABELLED} for no label"
            )

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        """Warn of black-and-white masks, in which white (255) would count as unlabelled."""
        if batch["labels"].unique().tolist() == [0, UNLABELLED]:
            logger.warning(
                "The masks of the first rows only have the values 0 and %d, but %d means unlabelled, so that "
                "only class 0 would be learned. For black-and-white masks convert white to class 1 (mask > 0).",
                UNLABELLED,
                UNLABELLED,
            )

    def stand_ins(self, batch: Batch, classes: int | None) -> Tensor:
        """Every pixel is an item."""
        images = batch["pixel_values"]
        return torch.zeros(len(images), *images.shape[-2:], dtype=torch.long)

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        """Labels with the network's own index for unlabelled pixels."""
        given, device = batch.get("labels"), device_of(network)
        if given is None or not bool((flat_labels(given, None) != IGNORED).any()):
            classes = getattr(bare(network), "config").num_labels  # noqa: B009
            shape = (len(batch["pixel_values"]), *batch["pixel_values"].shape[-2:])
            return torch.arange(torch.Size(shape).numel(), device=device).view(shape) % classes
        flat = flat_labels(given, None)
        return flat.masked_fill(flat == IGNORED, unlabelled_index(network)).view_as(given)


@dataclass
class PixelCollator:
    """A collator, followed by a check of the sizes; adds the labelled pixels, found on the host, as `host_targets`."""

    collate: Collate
    stride: int | None

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and labels.ndim == 3 and not labels.is_floating_point():
            refuse_other_size(batch)
            batch["host_targets"] = HostTargets.in_place(flat_labels(labels, self.stride))
        return batch


def on_grid(labels: Tensor, stride: int | None) -> Tensor:
    """The middle of each block of stride x stride pixels [.., H, W]; the last pixel for blocks cut by the border."""
    if stride is None or stride == 1:
        return labels
    rows, columns = (
        torch.arange(stride // 2, n + stride // 2, stride, device=labels.device).clamp(max=n - 1)
        for n in labels.shape[-2:]
    )
    return labels.index_select(-2, rows).index_select(-1, columns)


def flat_labels(labels: Tensor, stride: int | None) -> Tensor:
    """Labels [B, H, W] -> [B, P] of the P pixels of the grid, as int64, -100 for no label."""
    flat = on_grid(labels, stride).flatten(1).long()
    return flat.masked_fill(flat == UNLABELLED, IGNORED)


def refuse_other_size(batch: Batch) -> None:
    """Raise ValueError for masks of another size than the images."""
    images, labels = batch.get("pixel_values"), batch.get("labels")
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        return
    if images.ndim == 4 and labels.ndim == 3 and images.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"masks have {tuple(labels.shape[-2:])} pixels, but images {tuple(images.shape[-2:])}: resize and "
            "crop both in the same way (hfkd.data.masks.MaskTransform does, or torchvision.transforms.v2 on tv_tensors)"
        )
