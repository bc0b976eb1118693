"""Real digits as files on disk and a network that has seen them, for recipes that take a data set and a teacher."""

from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits

from hfkd.models import image_classifier


def write_digits(folder, train=48, test=32, hidden=0):
    """`train` and `test` images of 8 x 8 pixels as parquet files that `load_images` reads.

    The last `hidden` test images have the label -1, as in test splits of the Hub whose labels are not published.
    """
    digits = load_digits()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(d) for d in range(10)])})
    folder.mkdir(parents=True)
    for split, rows in {"train": range(train), "test": range(train, train + test)}.items():
        pictures = [Image.fromarray((digits.images[i] * 15).astype("uint8")) for i in rows]
        labels = digits.target[list(rows)]
        labels[len(labels) - hidden * (split == "test") :] = -1
        columns = {"image": pictures, "label": labels}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def save_network(folder, name="cifar_resnet20"):
    image_classifier(name, 10).save_pretrained(folder)
    return folder


def flags(data, **more):
    """The command line of a run that is small, quick and quiet."""
    given = {
        "dataset_name": data,
        "crop_padding": 1,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "num_train_epochs": 2,
        "lr_decay_epochs": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "scan_cache_dir": "",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }
    return [f"--{name}={value}" for name, value in (given | more).items()]
