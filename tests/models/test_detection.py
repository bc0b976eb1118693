"""Detectors by name: torchvision's names of weights, a classifier's weights for the backbone, what is frozen."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from hfkd.models.detection import detector, faster_rcnn

SMALL = {"levels": (1, 2), "fpn_channels": 8, "head_size": 16, "min_size": 48, "max_size": 72, "anchor_size": 8}


def test_a_resnet_is_torchvisions_own():
    theirs = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), 4)
    ours = faster_rcnn("resnet18", 4)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert {k: v for k, v in shapes[0].items() if not k.endswith("num_batches_tracked")} == shapes[1]
    ours.load_state_dict(theirs.state_dict(), strict=False)
    images = [torch.rand(3, 60, 80)]
    ours.eval(), theirs.eval()
    for net in (ours, theirs):
        net.transform.min_size, net.transform.max_size = (64,), 96
    with torch.no_grad():
        (one,), (other,) = ours(images), theirs(images)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_a_classifiers_weights_for_the_backbone(tmp_path):
    torch.manual_seed(1)
    classifier = timm.create_model("test_efficientnet", num_classes=5).eval()
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    net = detector("test_efficientnet", 4, None, tmp_path / "classifier.safetensors", **SMALL)
    images = torch.rand(1, 3, 64, 64)
    wanted = classifier.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    for mine, its in zip(net.backbone.body(images), wanted, strict=True):
        torch.testing.assert_close(mine, its)
    config = classifier.pretrained_cfg
    assert net.transform.image_mean == list(config["mean"])
    assert net.transform.image_std == list(config["std"])
    with pytest.raises(ValueError, match="lacks weights of the backbone test_resnet, or has them in another shape"):
        detector("test_resnet", 4, None, tmp_path / "classifier.safetensors", **SMALL)


def test_the_stem_and_the_first_stages_are_frozen():
    for name in ("resnet18", "test_efficientnet"):
        net = detector(name, 4, **(SMALL | {"levels": (1, 2)}), frozen_stages=1)
        frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
        assert frozen
        first = {
            "resnet18": ("conv1", "bn1", "layer1"),
            "test_efficientnet": ("conv_stem", "bn1", "blocks.0", "blocks.1"),
        }
        assert all(one.startswith(tuple(f"backbone.body.{part}" for part in first[name])) for one in frozen)
        assert any(p.requires_grad for p in net.backbone.body.parameters())


def test_torchvisions_own_detector_is_frozen_as_is_asked_for(tmp_path):
    """By default torchvision trains all of one that it loads no weights for."""
    name, frozen = "fasterrcnn_resnet50_fpn", {"frozen_batch_norm": True, "frozen_stages": 1}
    with torch.device("meta"):
        net = detector(name, 4, **frozen)
        assert not any(isinstance(one, torch.nn.BatchNorm2d) for one in net.backbone.body.modules())
        held = {k.split(".")[0] for k, p in net.backbone.body.named_parameters() if not p.requires_grad}
        assert held == {"conv1", "layer1"}
        assert any(isinstance(one, torch.nn.BatchNorm2d) for one in detector(name, 4).backbone.body.modules())
        for settings in ({"fpn_channels": 64}, {"levels": [2, 3, 4]}, {"anchor_size": 16}):
            with pytest.raises(
                ValueError, match=f"{next(iter(settings))}=.* is for a detector that is built on a back"
            ):
                detector(name, 4, **settings)
        with pytest.raises(ValueError, match="backbone_checkpoint='pretrained' names no weights for fasterrcnn"):
            detector(name, 4, None, "pretrained")
    save_file({"none": torch.zeros(1)}, tmp_path / "classifier.safetensors")
    with torch.device("meta"), pytest.raises(ValueError, match="lacks weights of the backbone fasterrcnn_resnet50_fpn"):
        detector(name, 4, None, tmp_path / "classifier.safetensors")
