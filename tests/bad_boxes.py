"""Detectors and images with boxes, each wrong in one way: entries for tests/bad_input.py."""

import json

import numpy as np
import torch
from bad_training import trainer
from detection_toys import CLASSES, Body, boxed, detector
from PIL import Image
from torchvision.models.detection import MaskRCNN, RetinaNet
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from hfkd.data.box_arguments import BoxDataArguments
from hfkd.data.coco import load_coco
from hfkd.models.detection import detector as by_name
from hfkd.models.detection_arguments import DetectionNetworkArguments
from hfkd.teachers import Teacher

T = {"temperature": "1.0"}
DEEP = np.full((64, 64), 1000, dtype=np.uint16)


def boxes(change, **more):
    """A detector and its teacher, whose rows are changed."""
    return trainer(
        detector, lambda: detector(8, seed=1), lambda: [row | change(row) for row in boxed((2, 1))], T | more
    )


def between(student, taught, **more):
    return trainer(student, taught, boxed, T | more)


def settings(**more):
    return boxes(lambda row: {}, **more)


def annotated(height=20, **annotation):
    """A folder in COCO's format with one annotation."""

    def make(folder):
        (folder / "train").mkdir()
        Image.new("RGB", (30, 20)).save(folder / "train" / "a.png")
        one = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | annotation
        listed = [{"id": 1, "file_name": "a.png", "height": height, "width": 30}]
        content = {"images": listed, "categories": [{"id": 1, "name": "cat"}], "annotations": [one]}
        (folder / "instances_train.json").write_text(json.dumps(content))
        return lambda: load_coco(folder / "train", folder / "instances_train.json")

    return make


def other_classes(folder):
    for split, name in (("train", "cat"), ("val", "dog")):
        content = {"images": [], "categories": [{"id": 1, "name": name}], "annotations": []}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return lambda: BoxDataArguments(str(folder)).load()


def mask_rcnn():
    return MaskRCNN(Body(4), CLASSES)


def retina():
    return RetinaNet(Body(4), CLASSES)


class Stored(Teacher):
    """A teacher of which no network runs."""

    def __call__(self, *, each=False, **inputs):
        return torch.zeros(1, CLASSES)


def detr():
    backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, out_features=["stage4"])
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, **sizes, **heads
    )
    return DetrForObjectDetection(config)


def without(call):
    return lambda folder: call


BOXES = {
    "boxes: outside of the image": boxes(lambda row: {"boxes": row["boxes"] + 40}),
    "boxes: of no width": boxes(lambda row: {"boxes": row["boxes"][:, [0, 1, 0, 3]]}),
    "boxes: as (x, y, width, height)": boxes(
        lambda row: {"boxes": torch.tensor([[20.0, 10, 8, 6]] * len(row["boxes"]))}
    ),
    "boxes: as shares of the image": boxes(lambda row: {"boxes": row["boxes"] / 60}),
    "boxes: labels from 0 on": boxes(lambda row: {"labels": row["labels"] * 0}),
    "boxes: labels beyond the head": boxes(lambda row: {"labels": row["labels"] + CLASSES}),
    "boxes: one label too few": boxes(lambda row: {"labels": row["labels"][1:]}),
    "boxes: images that are normalised already": boxes(lambda row: {"pixel_values": row["pixel_values"] * 4 - 2}),
    "boxes: a picture of 16 bits": boxes(lambda row: {"pixel_values": Image.fromarray(DEEP)}),
    "boxes: rows of image and objects": trainer(
        detector, None, lambda: [{"image": 1, "objects": 2}], {"kd_weight": 0.0}
    ),
    "COCO: a box of no height": annotated(bbox=[1, 2, 3, 0]),
    "COCO: a box outside of its image": annotated(bbox=[29, 2, 3, 4]),
    "COCO: a picture of another size than its entry": annotated(height=10),
    "COCO: a category that is not listed": annotated(category_id=7),
    "COCO: boxes of images that are not listed": annotated(image_id="1"),
    "COCO: an annotation without a box": annotated(bbox=[]),
    "COCO: boxes as shares of the image": annotated(bbox=[0.1, 0.2, 0.3, 0.4]),
    "COCO: splits of other classes": other_classes,
    'detector("fasterrcnn_resnet50_fpn", fpn_channels=64)': without(
        lambda: by_name("fasterrcnn_resnet50_fpn", 4, fpn_channels=64)
    ),
    'detector("fasterrcnn_mobilenet_v3_large_320_fpn", backbone_checkpoint="pretrained")': without(
        lambda: by_name("fasterrcnn_mobilenet_v3_large_320_fpn", 4, None, "pretrained")
    ),
    "a teacher that detects other classes": between(detector, lambda: detector(8, classes=CLASSES + 2)),
    "a teacher without region heads": between(detector, retina),
    "a student without region heads": between(retina, detector),
    "a teacher that segments too": between(detector, mask_rcnn),
    "a student that segments too": between(mask_rcnn, detector),
    "DETR, a student": between(detr, detector),
    "a teacher that resizes otherwise": between(detector, lambda: detector(min_size=64)),
    "a student of several min_size": between(lambda: detector(min_size=(40, 48)), detector),
    "a detector, a stored teacher": between(detector, Stored),
    'temperature="energy", a detector': settings(temperature="energy"),
    'temperature="energy(thresholds=(-1.0, 1.0))", a detector': settings(temperature="energy(thresholds=(-1.0, 1.0))"),
    "label_smoothing_factor=0.1, a detector": settings(label_smoothing_factor=0.1),
    "teacher_cache_dir, a detector": settings(teacher_cache_dir="kept"),
    "torch_compile, a detector": settings(torch_compile=True),
    "load_best_model_at_end by the loss, a detector": settings(
        load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1
    ),
    'student_name="resnet19", a detector': without(lambda: by_name("resnet19", CLASSES)),
    'teacher_name="resnet101", no checkpoint': without(
        lambda: DetectionNetworkArguments(teacher_name="resnet101").teacher(CLASSES)
    ),
    'checkpoint="torchvision" on resnet18': without(lambda: by_name("resnet18", CLASSES, "torchvision")),
    "frozen_stages=9": without(lambda: by_name("test_efficientnet", CLASSES, levels=(1, 2), frozen_stages=9)),
    "student_levels=[1, 3]": without(lambda: DetectionNetworkArguments(student_levels=[1, 3])),
    'box_format="cxcywh"': lambda folder: lambda: BoxDataArguments(str(folder), box_format="cxcywh").load(),
}
