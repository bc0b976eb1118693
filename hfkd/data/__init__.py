"""Data: images and instructions, from the Hub or from files, as the trainer wants them."""

from hfkd.data.image_arguments import ImageDataArguments
from hfkd.data.images import image_hw, label_names, load_images, num_labels
from hfkd.data.resident import ResidentImages
from hfkd.data.transforms import ImageTransform

__all__ = [
    "ImageDataArguments",
    "ImageTransform",
    "ResidentImages",
    "image_hw",
    "label_names",
    "load_images",
    "num_labels",
]
