"""Images with masks, each wrong in one way: entries for tests/bad_input.py."""

import numpy as np
from bad_training import trainer
from PIL import Image
from task_toys import CLASSES, Pixels, masks
from torch import nn
from transformers import MobileNetV2ImageProcessor, SegformerImageProcessor

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.data.masks import MaskTransform, mask_ids, read_palette
from hfkd.models.segmentation import segmentation_network, segmentation_teacher
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments
from hfkd.teachers import FrozenTeacher

ALONE = {"task": "semantic_segmentation", "kd_weight": 0.0, "ce_weight": 1.0}


def student():
    return Pixels(4)


def labels(change, **more):
    """A student of masks, whose labels are changed."""
    rows = [row | {"labels": change(row["labels"])} for row in masks(8)]
    return trainer(student, None, lambda: rows, ALONE | more)


def taught(teacher, **more):
    return trainer(student, teacher, lambda: masks(8), {"task": "semantic_segmentation"} | more)


def more_classes():
    net = Pixels(4)
    net.head = nn.Conv2d(4, CLASSES + 2, 1)
    return net


def processed(processor):
    """Pictures and their masks, the pictures alone prepared by the processor."""
    rows = [
        {"pixel_values": Image.fromarray(np.full((16, 16, 3), k, np.uint8)), "labels": np.zeros((16, 16), np.uint8)}
        for k in range(8)
    ]
    return trainer(student, None, lambda: rows, ALONE, processing_class=processor)


def palette(content):
    def make(folder):
        (folder / "palette.json").write_text(content)
        return lambda: read_palette(folder / "palette.json")

    return make


def without(call):
    return lambda folder: call


COLOURS = np.array([[[128, 0, 0], [0, 0, 0]]], dtype=np.uint8)
MASKS = {
    "masks: of another size than the images": labels(lambda x: x[:, :-1]),
    "masks: in colour, as tensors": labels(lambda x: x[..., None].repeat(1, 1, 3)),
    "masks: in colour, as pictures": without(lambda: mask_ids(Image.fromarray(COLOURS), 0)),
    "masks: a colour that is not in the palette": without(lambda: mask_ids(COLOURS, 0, {(128, 0, 0): 0})),
    "masks: an image processor that crops": processed(
        MobileNetV2ImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    ),
    "masks: do_reduce_labels=True": processed(SegformerImageProcessor(do_resize=False, do_reduce_labels=True)),
    "masks: floats": labels(lambda x: x.float()),
    "masks: classes 7 and above": labels(lambda x: x.clamp(min=7)),
    "masks: a row without one": without(lambda: mask_ids(None, 3)),
    "palette: two numbers a colour": palette('{"1,2": 0}'),
    "segmentation_stride=0": labels(lambda x: x, segmentation_stride=0),
    "segmentation_stride=2, a classifier": trainer(args={"segmentation_stride": 2}),
    'teacher_cache_dir="kept" of masks': labels(lambda x: x, teacher_cache_dir="kept"),
    "a student of maps of one class": trainer(lambda: nn.Conv2d(3, 1, 1), None, lambda: masks(8), ALONE),
    "a teacher of other classes": taught(more_classes),
    "FrozenTeacher(classes=[0, 7, 1])": taught(lambda: FrozenTeacher(more_classes(), classes=[0, 7, 1])),
    "FrozenTeacher(classes=[0, 0])": without(lambda: FrozenTeacher(more_classes(), classes=[0, 0])),
    "MaskTransform(augment=True)": without(lambda: MaskTransform(augment=True)),
    "image_size=[180]": without(lambda: MaskDataArguments(image_size=[180])),
    "data that name no classes": without(lambda: MaskDataArguments(dataset_name="somewhere").classes),
    'student_name="lraspp_mobilenet"': without(lambda: segmentation_network("lraspp_mobilenet", 3)),
    'teacher_name="fcn_resnet50", no checkpoint': without(lambda: segmentation_teacher("fcn_resnet50", 3)),
    "teacher_size=[360]": without(lambda: SegmentationNetworkArguments(teacher_size=[360])),
    "batch_norm_momentum=0": without(lambda: SegmentationNetworkArguments(batch_norm_momentum=0.0)),
}
