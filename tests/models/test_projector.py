import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from hfkd.models import image_classifier, with_projector


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_2", "cifar_vgg8"])
def test_a_projector_is_part_of_the_network_and_saved_with_it(tmp_path, name):
    model = with_projector(image_classifier(name, 7), 24)
    x = torch.randn(2, 3, 32, 32)
    logits = model(pixel_values=x).logits
    network = model.timm_model
    pooled = network.global_pool(network.forward_features(x))
    torch.testing.assert_close(logits, network.get_classifier()(network.projector(pooled)))
    assert network.get_classifier().in_features == 24
    assert network.forward_head(network.forward_features(x), pre_logits=True).shape == (2, 24)
    model.save_pretrained(tmp_path)
    for loaded in (AutoModelForImageClassification.from_pretrained(tmp_path), image_classifier(tmp_path, 7)):
        torch.testing.assert_close(loaded(pixel_values=x).logits, logits)


def test_without_one_nothing_is_there():
    names = image_classifier("cifar_resnet8", 7).timm_model.state_dict()
    assert not [name for name in names if "projector" in name]


def test_other_networks_and_widths_are_refused():
    with pytest.raises(ValueError, match="ResNet does not support a projector"):
        with_projector(image_classifier("resnet10t", 7), 24)
    with pytest.raises(ValueError, match="Linear does not support a projector"):
        with_projector(nn.Linear(2, 2), 24)
    for width in (0, 2.5, True):
        with pytest.raises(ValueError, match="number of features of the teacher"):
            with_projector(image_classifier("cifar_resnet8", 7), width)
