"""Datasets of images, masks, boxes and texts, from the Hub or files, in the format of the trainer."""

from hfkd.data.columns import label_names, num_labels
from hfkd.data.few_labels import few_labels
from hfkd.data.he_da import add_high_energy
from hfkd.data.image_arguments import ImageDataArguments
from hfkd.data.images import image_hw, load_images
from hfkd.data.large_images import LargeImageTransform
from hfkd.data.longtail import long_tail
from hfkd.data.resident import ResidentImages
from hfkd.data.transforms import ImageTransform

__all__ = [
    "ImageDataArguments",
    "ImageTransform",
    "LargeImageTransform",
    "ResidentImages",
    "add_high_energy",
    "few_labels",
    "image_hw",
    "label_names",
    "load_images",
    "long_tail",
    "num_labels",
]
