"""Small real detectors of torchvision, and images with boxes, without augmentation or dropout."""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 4  # with the background
EVERY = {"box_batch_size_per_image": 100_000, "rpn_batch_size_per_image": 100_000}  # so that nothing is drawn


class Body(nn.Module):
    """Two convolutions without batch norm, so that splitting a batch changes nothing but rounding."""

    def __init__(self, width):
        super().__init__()
        self.out_channels = width
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))

    def forward(self, x):
        return self.layers(x)


def detector(width=4, seed=0, classes=CLASSES, sharp=1.0, **more):
    """`sharp`: what the class logits are multiplied by, so that entropies spread."""
    torch.manual_seed(seed)
    net = FasterRCNN(
        Body(width),
        rpn_anchor_generator=AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(9 * width, 16),
        box_predictor=FastRCNNPredictor(16, classes),
        **({"min_size": 48, "max_size": 72, "box_batch_size_per_image": 16, "rpn_batch_size_per_image": 32} | more),
    )
    with torch.no_grad():
        net.roi_heads.box_predictor.cls_score.weight.mul_(sharp)
    return net


def boxed(counts=(2, 0, 1, 3), seed=0):
    """A row for each of `counts`, so many boxes in it, of images of several sizes."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for index, count in enumerate(counts):
        height, width = 40 + 4 * (index % 3), 60 - 6 * (index % 2)
        corner, size = torch.rand(count, 2, generator=g) * 20, 8 + 10 * torch.rand(count, 2, generator=g)
        rows.append(
            {
                "pixel_values": torch.rand(3, height, width, generator=g),
                "boxes": torch.cat([corner, corner + size], 1),
                "labels": torch.randint(1, CLASSES, (count,), generator=g),
                "index": index,
            }
        )
    return rows
