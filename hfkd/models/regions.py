"""Two-stage detectors of torchvision: calls on padded batches, with the outputs of their region heads per proposal.

B images, G boxes of an image, P proposals of the batch, C classes with the background as class 0, H and W pixels.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from hfkd.models.calling import CALLS, Call, bare
from hfkd.utils.targets import IGNORED

INPUTS = frozenset({"pixel_values", "image_sizes", "boxes", "labels", "iscrowd", "proposals", "resized"})


@dataclass(frozen=True)
class DetectorCall(Call):
    """One forward pass of a detector, with the inputs and outputs of its region heads.

    The batch has pixel_values [B, 3, H, W], padded at the bottom and right; image_sizes [B, 2], the height and width of
    each image; and for training boxes [B, G, 4] (x1, y1, x2, y2), labels [B, G], -100 where there is no box, and
    iscrowd [B, G], boxes to leave out. The output has by name

    - logits [P, C] of the proposals, image by image: in training of the sampled ones, otherwise of all;
    - proposals: of each image [.., 4], in pixels of the resized image; resized: the sizes of the resized images;
    - in training region_labels [P], the target class of each proposal, and losses, the detector's own losses by name;
    - in evaluation detections: the boxes, scores and labels of each image.

    With `proposals` in the batch, only these are classified, and only their logits are returned. Raises ValueError if
    the detector resizes an image to another size than `resized`.
    """

    keywords: frozenset[str] | None = None

    def output(self, model: Any, inputs: Mapping[str, Any], **more: Any) -> Any:
        detector: Any = bare(model)
        images = unpadded(inputs)
        if "proposals" in inputs:
            return {"logits": logits_at(detector, images, inputs["proposals"], inputs["resized"])}
        with watched(detector.roi_heads) as seen:
            made = model(images, targets_of(inputs)) if detector.training else model(images)
        return seen | ({"losses": made} if detector.training else {"detections": made})

    def takes(self, name: str) -> bool:
        return name in INPUTS


CALLS[GeneralizedRCNN] = DetectorCall


def unpadded(inputs: Mapping[str, Any]) -> list[Tensor]:
    """Each image [3, h, w] without its padding."""
    sizes = inputs["image_sizes"].tolist()
    return [image[:, :height, :width] for image, (height, width) in zip(inputs["pixel_values"], sizes, strict=True)]


def targets_of(inputs: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Boxes and labels of each image as torchvision's detectors take them, without crowds."""
    boxes, labels = inputs["boxes"], inputs["labels"]
    there = labels != IGNORED
    if "iscrowd" in inputs:
        there = there & ~inputs["iscrowd"]
    return [{"boxes": b[k], "labels": c[k]} for b, c, k in zip(boxes, labels, there, strict=True)]


@contextmanager
def watched(heads: Any) -> Iterator[dict[str, Any]]:
    """Within the context, a mapping receives the region heads' proposals, resized, region_labels and logits.

    This uses hooks on `box_roi_pool` and `box_predictor`, and wraps `select_training_samples`, which assigns the
    labels.
    """
    seen: dict[str, Any] = {}

    def pooled(module: nn.Module, arguments: Any) -> None:
        seen["proposals"], seen["resized"] = list(arguments[1]), list(arguments[2])

    def predicted(module: nn.Module, arguments: Any, output: Any) -> None:
        seen["logits"] = output[0]

    select, own = heads.select_training_samples, dict(vars(heads))

    def selected(*arguments: Any) -> Any:
        found = select(*arguments)
        seen["region_labels"] = torch.cat(found[2])
        return found

    hooks = [heads.box_roi_pool.register_forward_pre_hook(pooled), heads.box_predictor.register_forward_hook(predicted)]
    vars(heads)["select_training_samples"] = selected
    try:
        yield seen
    finally:
        del vars(heads)["select_training_samples"]
        vars(heads).update({k: v for k, v in own.items() if k == "select_training_samples"})  # an override of the user
        for hook in hooks:
            hook.remove()


def logits_at(
    detector: Any, images: Sequence[Tensor], proposals: Sequence[Tensor], resized: Sequence[tuple[int, int]]
) -> Tensor:
    """A detector's class logits [P, C] for given proposals, from its transform, backbone, region pooling and head.

    Raises ValueError if it resizes an image to another size than that of the proposals.
    """
    given, _ = detector.transform(list(images))
    sizes = [tuple(size) for size in given.image_sizes]
    if sizes != [tuple(size) for size in resized]:
        mine, its = next((a, b) for a, b in zip(resized, sizes, strict=True) if tuple(a) != b)
        raise ValueError(
            f"the student resizes an image to {tuple(mine)} pixels and the teacher to {its}, so that proposals of one "
            "do not fit the other: give both detectors the same min_size and max_size"
        )
    features = detector.backbone(given.tensors)
    if isinstance(features, Tensor):
        features = OrderedDict([("0", features)])
    heads, dtype = detector.roi_heads, given.tensors.dtype
    pooled = heads.box_roi_pool(features, [boxes.to(dtype) for boxes in proposals], given.image_sizes)
    return heads.box_predictor(heads.box_head(pooled))[0]
