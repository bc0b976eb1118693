"""Faster R-CNN with a feature pyramid by name: torchvision's or timm's backbones, fresh, pretrained or from a file.

C classes with the background.
"""

import difflib
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torchvision
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from hfkd.models.checkpoints import load_checkpoint, read_state_dict, some

RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RATIOS = (0.5, 1.0, 2.0)
WHOLE = "fasterrcnn_"  # torchvision's detectors, whose names begin so


class TimmPyramid(nn.Module):
    """The stages of a timm network and a feature pyramid over them: [B, 3, H, W] -> maps by name, finest first."""

    def __init__(self, name: str, levels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=tuple(levels))
        info: Any = self.body.feature_info
        channels = info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(k), one) for k, one in enumerate(self.body(images))))


def faster_rcnn(
    backbone: str,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    levels: Sequence[int] = (1, 2, 3, 4),
    fpn_channels: int = 256,
    head_size: int = 1024,
    anchor_size: int = 32,
    proposals: int = 512,
    frozen_batch_norm: bool = True,
    frozen_stages: int = 0,
) -> FasterRCNN:
    """torchvision's FasterRCNN with the defaults of the literature, fresh.

    backbone: one of torchvision's ResNets, or a network of timm's with features ("mobilenetv2_100",
    "tf_efficientnet_lite0"). levels: the stages that the pyramid is built on, 1 at a quarter of the image's size.
    anchor_size: of the finest map, doubled with each. proposals: sampled of each image in training.
    frozen_batch_norm: the backbone's, as usual where it was pretrained. frozen_stages: so many of its stages, and the
    stem before them, are not trained (detectron2: 1). Images are normalised as timm has it for the
    backbone, for torchvision's by ImageNet's statistics. Raises ValueError for another name.
    """
    made = _backbone(backbone, levels, fpn_channels)
    if frozen_batch_norm:
        made.body = freeze_batch_norm_2d(made.body)
    if frozen_stages:
        _freeze(made.body, frozen_stages)
    names = [str(k) for k in range(len(levels))]
    sizes = tuple((anchor_size << k,) for k in range(len(levels) + 1))
    return FasterRCNN(
        made,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(fpn_channels * 7 * 7, head_size),
        box_predictor=FastRCNNPredictor(head_size, num_classes),
        box_batch_size_per_image=proposals,
        **_statistics(backbone),
    )


def detector(
    name: str,
    num_classes: int,
    checkpoint: str | os.PathLike[str] | None = None,
    backbone_checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> FasterRCNN:
    """A Faster R-CNN by name: `faster_rcnn` on a backbone, or torchvision's own ("fasterrcnn_resnet50_fpn").

    checkpoint: a file of weights for the whole of it; "torchvision": those that torchvision publishes, trained on COCO
    (91 classes), which are loaded from the network. backbone_checkpoint: a file of a classifier's weights for the
    backbone alone; "pretrained": those that timm or torchvision publish. `settings` are `faster_rcnn`'s; a detector of
    torchvision's own takes of them the sizes and `proposals`. Raises ValueError for another name, and for files that do
    not fit.
    """
    if name.startswith(WHOLE):
        made = _torchvision_detector(name, num_classes, checkpoint == "torchvision", settings)
    else:
        made = faster_rcnn(name, num_classes, **settings)
        if checkpoint == "torchvision":
            raise ValueError(f"torchvision publishes no detector on {name}: give one of {_published()}, or a file")
    if backbone_checkpoint is not None and not name.startswith(WHOLE):
        load_backbone(made.backbone.body, name, backbone_checkpoint)
    if checkpoint is not None and checkpoint != "torchvision":
        load_checkpoint(made, checkpoint)
    return made.eval()


def load_backbone(body: nn.Module, name: str, path: str | os.PathLike[str]) -> None:
    """Give `body`, the stages of a classifier, that classifier's weights; what comes after them is left out.

    path: a file, or "pretrained" for what timm or torchvision publish. Raises ValueError where one is missing.
    """
    found = _published_backbone(name) if path == "pretrained" else read_state_dict(path)
    own = body.state_dict()
    wrong = [k for k, v in own.items() if k not in found or found[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(
            f"the backbone {name} has {some(wrong)}, and {path} has no such weights, or of another shape: give those "
            "of this architecture"
        )
    body.load_state_dict(own | {k: found[k] for k in own if k in found})


def _published_backbone(name: str) -> dict[str, Tensor]:
    if name in RESNET:
        return dict(torchvision.models.get_model(name, weights="DEFAULT").state_dict())
    return dict(timm.create_model(name, pretrained=True).state_dict())


def _torchvision_detector(name: str, num_classes: int, published: bool, settings: dict[str, Any]) -> Any:
    if name not in _published():
        raise ValueError(f"unknown detector {name!r}: torchvision has {_published()}")
    taken = {"min_size": "min_size", "max_size": "max_size", "proposals": "box_batch_size_per_image"}
    more = {its: settings[own] for own, its in taken.items() if own in settings}
    weights = "DEFAULT" if published else None
    return torchvision.models.get_model(
        name, weights=weights, weights_backbone=None, num_classes=None if published else num_classes, **more
    )


def _published() -> list[str]:
    return [name for name in torchvision.models.list_models(torchvision.models.detection) if name.startswith(WHOLE)]


def _backbone(name: str, levels: Sequence[int], out_channels: int) -> Any:
    if name in RESNET:
        body: Any = torchvision.models.get_model(name, weights=None)
        widths = [body.inplanes >> (4 - k) for k in levels]
        return BackboneWithFPN(body, {f"layer{k}": str(i) for i, k in enumerate(levels)}, widths, out_channels)
    if timm.is_model(name):
        return TimmPyramid(name, levels, out_channels)
    close = difflib.get_close_matches(name, {*RESNET, *timm.list_models()}, n=5, cutoff=0.5)
    raise ValueError(
        f"unknown backbone {name!r}: give one of torchvision's {list(RESNET)}, a detector of its own "
        f"({_published()[0]}), or one of timm's" + (f" ({', '.join(close)}?)" if close else "")
    )


def _freeze(body: Any, stages: int) -> None:
    """Parameters of the stem and the first `stages` stages get no gradient."""
    info = getattr(body, "feature_info", None)
    last = f"layer{stages}" if info is None else {row["reduction"]: row["module"] for row in info}.get(2 << stages)
    names = [name for name, _ in body.named_parameters()]
    inside = [place for place, name in enumerate(names) if last is not None and name.startswith(f"{last}.")]
    if not inside:
        raise ValueError(f"frozen_stages={stages}: the backbone has no such stage")
    for parameter in list(body.parameters())[: inside[-1] + 1]:
        parameter.requires_grad = False


def _statistics(name: str) -> dict[str, list[float]]:
    """How a backbone wants its images; torchvision's as its detectors have it."""
    config = None if name in RESNET else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if config is None else {"image_mean": list(config.mean), "image_std": list(config.std)}
