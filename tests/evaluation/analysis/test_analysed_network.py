"""One pass of a network: its own normalisation, the features its logits are made of, and what is refused."""

import pytest
import torch
from torch import nn
from toys import CLASSES, Net, Rows

from hfkd.evaluation.analysis import AnalysedNetwork, network_pass
from hfkd.models import InputSpec, image_classifier

RAW = InputSpec((0.0,) * 3, (1.0,) * 3, None)


def test_the_head_makes_the_logits_of_the_features():
    net, rows = Net(6), Rows(10)
    found = network_pass(AnalysedNetwork("net", net, RAW), rows, batch_size=4)
    assert found.features.shape == (10, 6)
    assert torch.allclose(net.head(found.features), found.logits, atol=1e-5)
    assert torch.allclose(net(rows.images), found.logits, atol=1e-5)
    assert found.labels.tolist() == rows.labels.tolist()
    assert network_pass(AnalysedNetwork("net", net, RAW), rows, features=False).features.shape == (10, 0)


def test_images_come_as_the_network_was_trained_on_them():
    model = image_classifier("cifar_resnet8", CLASSES)
    spec = model.config.pretrained_cfg
    mean, std = (torch.tensor(spec[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    raw = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = model((raw - mean) / std).logits
    assert torch.allclose(AnalysedNetwork("net", model, RAW).logits(raw), expected, atol=1e-4)


class TwiceAsLarge(Net):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_network_whose_last_linear_layer_is_no_head_has_no_penultimate_features():
    network = AnalysedNetwork("odd", TwiceAsLarge(), RAW)
    with pytest.raises(ValueError, match="odd has no penultimate features"):
        network.check(Rows().images[:2], CLASSES)
    with pytest.raises(ValueError, match="maps has no penultimate features"):
        AnalysedNetwork("maps", nn.Conv2d(3, CLASSES, 8), RAW)
    with pytest.raises(ValueError, match="net has outputs .* 7 classes"):
        AnalysedNetwork("net", Net(), RAW).check(Rows().images[:2], 7)


def test_nan_is_told_with_its_image():
    rows = Rows(6)
    rows.images[4] = torch.nan
    with pytest.raises(ValueError, match="net gives NaN or infinity for 1 of 6 images, the first of them image 4"):
        network_pass(AnalysedNetwork("net", Net(), RAW), rows)
