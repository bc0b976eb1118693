"""The flags that name an image data set, and the two splits they give."""

from dataclasses import dataclass, field

from datasets import Dataset

from hfkd.data.images import load_images
from hfkd.data.resident import resident
from hfkd.data.transforms import CIFAR_MEAN, CIFAR_STD, ImageTransform


@dataclass
class ImageDataArguments:
    """Which images to learn from. The defaults are CIFAR-100 as the Hub has it."""

    dataset_name: str = field(default="uoft-cs/cifar100", metadata={"help": "Hub id or local folder of the images."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set, if it has any."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; unset: test or validation."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; unset: found by its name."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; unset: found by its name."})
    image_size: int | None = field(default=None, metadata={"help": "Fit images to this size; unset: the first's size."})
    crop_padding: int = field(default=4, metadata={"help": "Black pixels around a training image before its crop."})
    flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    views: int = field(default=1, metadata={"help": "2: each training image also in a strong view (RandAugment)."})
    resident: bool = field(
        default=True,
        metadata={"help": "Hold images of up to 1 GiB as one tensor, on the GPU if there is one: the same, faster."},
    )
    max_train_images: int | None = field(default=None, metadata={"help": "Use the first images only, for a quick try."})
    max_test_images: int | None = field(default=None, metadata={"help": "Evaluate on the first images only."})

    def load(
        self, mean: tuple[float, ...] = CIFAR_MEAN, std: tuple[float, ...] = CIFAR_STD, seed: int = 0
    ) -> tuple[Dataset, Dataset]:
        """The training images, augmented anew each epoch, and the test images, normalised with `mean` and `std`."""
        loaded = load_images(
            self.dataset_name,
            name=self.dataset_config,
            train_split=self.train_split,
            test_split=self.test_split,
            image_column=self.image_column,
            label_column=self.label_column,
            image_size=self.image_size,
        )
        train, test = _first(loaded["train"], self.max_train_images), _first(loaded["test"], self.max_test_images)
        transform = ImageTransform(mean, std, True, self.crop_padding, self.flip, seed, self.views)
        if self.resident:
            train, test = resident(train), resident(test)
        return train.with_transform(transform), test.with_transform(transform.clean())


def _first(dataset: Dataset, count: int | None) -> Dataset:
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))
