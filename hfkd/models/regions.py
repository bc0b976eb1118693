"""Two-stage detectors of torchvision: called on padded batches, with what their region heads said of each proposal.

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
    """One forward of a detector, and what its region heads saw and said in it.

    Of a batch pixel_values [B, 3, H, W], padded below and to the right; image_sizes [B, 2], each image's own height and
    width; to train boxes [B, G, 4] (x1, y1, x2, y2) and labels [B, G], -100 where there is no box, and iscrowd [B, G],
    boxes to be left out. The output holds by name

    - logits [P, C] of the proposals, image by image: in training those that were sampled, else all;
    - proposals: of each image [.., 4], in the image as the detector resized it; resized: the sizes of these;
    - in training region_labels [P], what each proposal is to be classified as, and losses, the detector's own by name;
    - in evaluation detections: of each image boxes, scores and labels.

    With `proposals` in the batch these are classified, and nothing else is computed: the logits alone are returned.
    Raises ValueError where the detector resizes an image to another size than `resized` says.
    """

    keywords: frozenset[str] | None = None

    def output(self, model: Any, inputs: Mapping[str, Any], **more: Any) -> Any:
        detector: Any = bare(getattr(model, "__self__", model))  # of a bound forward its owner
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
    """Boxes and labels of each image, as torchvision's detectors take them; those of crowds are left out."""
    boxes, labels = inputs["boxes"], inputs["labels"]
    there = labels != IGNORED
    if "iscrowd" in inputs:
        there = there & ~inputs["iscrowd"]
    return [{"boxes": b[k], "labels": c[k]} for b, c, k in zip(boxes, labels, there, strict=True)]


@contextmanager
def watched(heads: Any) -> Iterator[dict[str, Any]]:
    """Within it a mapping gets what the region heads do: proposals, resized, region_labels and logits.

    By hooks on `box_roi_pool` and `box_predictor`, and around `select_training_samples`, which alone knows the labels.
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
        vars(heads).update({k: v for k, v in own.items() if k == "select_training_samples"})  # a user's own
        for hook in hooks:
            hook.remove()


def logits_at(
    detector: Any, images: Sequence[Tensor], proposals: Sequence[Tensor], resized: Sequence[tuple[int, int]]
) -> Tensor:
    """A detector's class logits [P, C] of given proposals: its own transform, backbone, region pooling and head.

    Raises ValueError where it resizes an image to another size than the proposals' one.
    """
    given, _ = detector.transform(list(images))
    sizes = [tuple(size) for size in given.image_sizes]
    if sizes != [tuple(size) for size in resized]:
        mine, its = next((a, b) for a, b in zip(resized, sizes, strict=True) if tuple(a) != b)
        raise ValueError(
            f"the student sees an image at {tuple(mine)} pixels and the teacher at {its}: proposals of the one are no "
            "places in the other; give both detectors the same min_size and max_size"
        )
    features = detector.backbone(given.tensors)
    if isinstance(features, Tensor):
        features = OrderedDict([("0", features)])
    heads, dtype = detector.roi_heads, given.tensors.dtype
    pooled = heads.box_roi_pool(features, [boxes.to(dtype) for boxes in proposals], given.image_sizes)
    return heads.box_predictor(heads.box_head(pooled))[0]
