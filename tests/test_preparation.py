"""A saved student says how its images were prepared, so that a picture becomes what it was trained on."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from toys import Net, arguments
from transformers import AutoImageProcessor, CLIPImageProcessor, ViTConfig, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.images import decode
from hfkd.models import image_classifier
from hfkd.preparation import record_inputs

SIZE = (8, 8)
TRANSFORM = ImageTransform(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def vit(image_size):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=image_size, patch_size=4, num_labels=3))


def pictures(size=SIZE):
    g = np.random.default_rng(0)
    coarse = [Image.fromarray(g.integers(0, 256, (3, 3, 3), dtype=np.uint8)) for _ in range(4)]
    return [picture.resize(size[::-1], Image.Resampling.BICUBIC) for picture in coarse]  # smooth, as photographs are


def images(size=SIZE):
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=3)})
    stored = Dataset.from_dict({"image": pictures(size), "label": [0, 1, 2, 0]}, features=features)
    return decode(stored, size=SIZE).with_transform(TRANSFORM)


@pytest.mark.parametrize("student", ["timm", "transformers"])
@pytest.mark.parametrize("size", [SIZE, (12, 20)])
def test_the_processor_of_the_saved_student_makes_what_it_was_trained_on(tmp_path, student, size):
    model = image_classifier("cifar_resnet20", 3) if student == "timm" else vit(SIZE[0])
    rows = images(size)
    trainer = DistillationTrainer(model, None, arguments(tmp_path), ce_weight=1, kd_weight=0, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    made = processor(pictures(size), return_tensors="pt")["pixel_values"]
    assert made.shape == (4, 3, *SIZE)
    if size == SIZE:
        torch.testing.assert_close(made, rows[:]["pixel_values"])
    else:  # both fit to cover and crop the centre, one before and one after resizing, so half a pixel may lie between
        assert (made - rows[:]["pixel_values"]).abs().mean() < 0.2  # squashed it would be 0.32


def test_a_processor_that_was_given_stays(tmp_path):
    model, given = vit(SIZE[0]), CLIPImageProcessor(image_mean=[0.1, 0.1, 0.1])
    rows = images()
    args = arguments(tmp_path)
    trainer = DistillationTrainer(
        model, None, args, ce_weight=1, kd_weight=0, train_dataset=rows, processing_class=given
    )
    trainer.train()
    assert trainer.processing_class is given


def test_a_bare_module_and_foreign_rows():
    assert record_inputs(Net(), [{"pixel_values": torch.zeros(3, 8, 8)}]) is None
    assert record_inputs(Net(), images()).image_mean == TRANSFORM.mean
