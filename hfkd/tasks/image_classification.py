"""One label per image: timm and torchvision classifiers, `ForImageClassification`, any network of `pixel_values`."""

from hfkd.tasks.base import register_task
from hfkd.tasks.rows import PerRow


@register_task("image_classification")
class ImageClassification(PerRow):
    """An item is an image, or one of its views; labels may be soft labels of MixUp or CutMix."""

    pipeline_tag = "image-classification"
    item = "an image"
    problem_type = "single_label_classification"
    mixes = True
