"""Small real networks and data for the trainer's tests: nothing here stands in for a part of hfkd."""

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.data.transforms import ImageTransform, pack_pixels

CLASSES = 5


class Net(nn.Module):
    """A convolutional classifier without batch norm, so that splitting a batch changes nothing but rounding."""

    def __init__(self, width=4, classes=CLASSES, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Rows(torch.utils.data.Dataset):
    """A plain map-style dataset: `pixel_values` and `labels`, no index, nothing of ours."""

    def __init__(self, n=32, classes=CLASSES, size=8, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % classes
        self.images = torch.randn(n, 3, size, size, generator=g) + self.labels.view(-1, 1, 1, 1) / 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": int(self.labels[i])}


def teacher(classes=CLASSES):
    """Confident about some images and not about others, so that energies and entropies spread."""
    net = Net(16, classes, seed=1)
    with torch.no_grad():
        net.head.weight.mul_(25)
    return net


# What gradient checkpointing is called by this version of transformers.
CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, n))


def arguments(folder, **keywords):
    defaults = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "scan_cache_dir": "",
        "dataloader_pin_memory": False,
    }
    return DistillationArguments(output_dir=str(folder), **(defaults | keywords))


def packed_images(labels):
    """A `datasets.Dataset` of packed images, behind our transform."""
    pixels = [pack_pixels(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())] * len(labels)
    data = Dataset.from_dict({"pixels": pixels, "labels": labels, "index": list(range(len(labels)))})
    return data.with_transform(ImageTransform(augment=True))


def stream_of(labels):
    return Dataset.from_dict({"labels": labels}).to_iterable_dataset()
