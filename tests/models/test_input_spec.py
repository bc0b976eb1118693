from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from transformers import (
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PPLCNetImageProcessor,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from hfkd.models import InputSpec, image_classifier, input_spec, processor_spec
from hfkd.models.inputs import image_channels

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


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_of_a_network_are_those_of_its_images(channels):
    """A TResNet's first convolution reads 4 x 4 pixels at once."""
    with torch.device("meta"):
        networks = [timm.create_model(name, in_chans=channels) for name in ("tresnet_m", "test_resnet", "test_vit")]
        networks.append(nn.Sequential(nn.Conv2d(channels, 4, 3)))
        by_hand = timm.create_model("test_convnext")
        by_hand.stem[0] = nn.Conv2d(channels, 24, 4, 4)
    assert [image_channels(network) for network in networks] == [channels] * 4
    assert image_channels(by_hand) == channels


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"image_processor_type": "Unheard"}', "Unrecognized image processor"),
        ('{"image_mean": [0.1,', "valid JSON file"),
        ('{"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"}', "custom code"),
    ],
)
def test_a_stored_image_processor_that_cannot_be_read_is_named(saved_vit, content, said):
    (saved_vit / "preprocessor_config.json").write_text(content)
    with pytest.warns(UserWarning, match=rf"cannot be read \([\s\S]*{said}[\s\S]*wanted=InputSpec"):
        assert input_spec(image_classifier(saved_vit, 4)) is None


def test_models_of_sound_and_text_are_not_asked_for_an_image_processor(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    convolutions = {"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (4,), "num_feat_extract_layers": 1}
    config = Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert input_spec(Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path)) is None  # warnings are errors


def test_a_spec_does_not_change():
    with pytest.raises(FrozenInstanceError):
        CIFAR.size = (32, 32)


BYTES = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EfficientNetImageProcessor, {"include_top": True}),
        (EfficientNetImageProcessor, {"include_top": True, "image_std": [0.47, 0.48, 0.49]}),
        (EfficientNetImageProcessor, {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
        (MobileViTImageProcessor, {"do_center_crop": False}),
        (MobileViTImageProcessor, {"do_center_crop": False, "do_flip_channel_order": False}),
        (PPLCNetImageProcessor, {"do_center_crop": False}),
        (ViTImageProcessor, {"image_mean": 0.4, "image_std": 0.2}),
    ],
)
def test_the_spec_of_a_processor_is_what_it_does_to_pixels(kind, settings):
    processor = kind(do_resize=False, **settings)
    spec = processor_spec(processor)
    made = processor([Image.fromarray(BYTES)], return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(BYTES).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    torch.testing.assert_close(made, ((pixels.flip(0) if spec.bgr else pixels) - mean) / std, atol=1e-4, rtol=1e-4)
    assert spec.bgr is (kind is PPLCNetImageProcessor or processor.to_dict().get("do_flip_channel_order", False))


def test_the_size_of_a_processor_is_that_of_what_it_makes():
    assert processor_spec(PerceiverImageProcessor()).size == (224, 224)  # it crops to 256


def test_a_processor_whose_settings_say_it_all_is_taken_at_its_word():
    said = processor_spec(ViTImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]))
    assert said == InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    assert repr(said) == "InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=(224, 224))"
    assert "bgr=True" in repr(said.reversed())
