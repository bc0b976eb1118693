from dataclasses import FrozenInstanceError

import pytest
import timm
from torch import nn
from transformers import ViTImageProcessor

from hfkd.models import InputSpec, image_classifier, input_spec

CIFAR = InputSpec((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), None)
HALF = (0.5, 0.5, 0.5)


def test_convolutional_networks_take_any_size():
    assert input_spec(timm.create_model("cifar_resnet20")) == CIFAR
    assert input_spec(image_classifier("cifar_vgg8", 10)) == CIFAR
    assert input_spec(timm.create_model("resnet18")).size is None


def test_transformers_fix_their_size():
    assert input_spec(image_classifier("vit_tiny_patch16_224", 10)) == InputSpec(HALF, HALF, (224, 224))
    assert input_spec(timm.create_model("vit_tiny_patch16_224", img_size=64)).size == (64, 64)


def test_the_config_of_a_wrapper_wins():
    model = image_classifier("cifar_resnet20", 10)
    model.config.pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    assert input_spec(model) == InputSpec((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), None)
    model.config.pretrained_cfg = None
    assert input_spec(model) == CIFAR


def test_a_module_that_does_not_say():
    assert input_spec(nn.Linear(1, 1)) is None


def test_hub_models_are_asked_for_their_image_processor(saved_vit):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    processor = ViTImageProcessor(size={"height": 16, "width": 24}, image_mean=mean, image_std=std)
    processor.save_pretrained(saved_vit)
    assert input_spec(image_classifier(saved_vit, 4)) == InputSpec(mean, std, (16, 24))
    processor.do_normalize = False
    processor.save_pretrained(saved_vit)
    assert input_spec(image_classifier(saved_vit, 4)) == InputSpec((0.0,) * 3, (1.0,) * 3, (16, 24))


def test_hub_models_without_one(saved_vit):
    model = image_classifier(saved_vit, 4)
    assert input_spec(model) is None
    assert input_spec(type(model)(model.config)) is None


def test_a_spec_does_not_change():
    with pytest.raises(FrozenInstanceError):
        CIFAR.size = (32, 32)
