"""Stages run one by one: each gives what the network's own forward has there, and the head its logits."""

import pytest
import timm
import torch
import torchvision
from toys import CLASSES

from hfkd.models import image_classifier
from hfkd.models.feature_capture import FeatureCapture
from hfkd.models.running import stage_runner

NETWORKS = {
    **{name: (lambda name=name: image_classifier(name, CLASSES)) for name in ("cifar_resnet8", "cifar_wrn_16_2")},
    **{
        name: (lambda name=name: timm.create_model(name, num_classes=CLASSES))
        for name in ("resnet10t", "resnet18", "mobilenetv2_035", "mobilenetv3_small_050", "efficientnet_lite0")
    },
    "mobilenetv1_100": lambda: timm.create_model("mobilenetv1_100", num_classes=CLASSES),
    "torchvision's resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stages_in_turn_are_the_network(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    runner, x = stage_runner(network), torch.randn(2, 3, 64, 64)
    keys = [str(k) for k in range(runner.last + 1)]
    capture = FeatureCapture(network, ["0", "1:"], "network")
    with torch.no_grad():
        output, found = capture.run(lambda: network(x))
        assert list(capture.keys) == keys
        for key, stage in zip(keys, runner.stages, strict=True):
            x = stage(x)
            torch.testing.assert_close(x, found[key])
        torch.testing.assert_close(runner.head(x), getattr(output, "logits", output))


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_others_are_not_known(name):
    assert stage_runner(timm.create_model(name, num_classes=CLASSES)) is None
