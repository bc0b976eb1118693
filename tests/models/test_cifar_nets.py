import naive_nets
import pytest
import timm
import torch
from torch import nn

from hfkd.models import CIFAR_NETS

# name -> parameters at 100 and at 200 classes, feats (channels, size at 32x32), naive reference
NETS = {
    "cifar_resnet8": (83_892, 90_392, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet14": (181_108, 187_608, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet20": (278_324, 284_824, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet32": (472_756, 479_256, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet56": (861_620, 868_120, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet110": (1_736_564, 1_743_064, "16x32 16x32 32x16 64x8", naive_nets.resnet),
    "cifar_resnet8x4": (1_233_540, 1_259_240, "32x32 64x32 128x16 256x8", naive_nets.resnet),
    "cifar_resnet32x4": (7_433_860, 7_459_560, "32x32 64x32 128x16 256x8", naive_nets.resnet),
    "cifar_wrn_16_2": (703_284, 716_184, "16x32 32x32 64x16 128x8", naive_nets.wrn),
    "cifar_wrn_40_1": (569_780, 576_280, "16x32 16x32 32x16 64x8", naive_nets.wrn),
    "cifar_wrn_40_2": (2_255_156, 2_268_056, "16x32 32x32 64x16 128x8", naive_nets.wrn),
    "cifar_wrn_28_4": (5_872_180, 5_897_880, "16x32 64x32 128x16 256x8", naive_nets.wrn),
    "cifar_vgg8": (3_965_028, 4_016_328, "64x32 128x16 256x8 512x4 512x4", naive_nets.vgg),
    "cifar_vgg13": (9_462_180, 9_513_480, "64x32 128x16 256x8 512x4 512x4", naive_nets.vgg),
    "cifar_resnet50": (23_705_252, 23_910_152, "64x32 256x32 512x16 1024x8 2048x4", naive_nets.resnet50),
    "cifar_mobilenetv2": (812_836, 940_936, "16x16 12x16 16x8 48x4 160x2", naive_nets.mobilenetv2),
    "cifar_shufflenetv1": (949_258, 1_045_358, "24x32 240x16 480x8 960x4", naive_nets.shufflenetv1),
    "cifar_shufflenetv2": (1_355_528, 1_458_028, "24x32 116x16 232x8 464x4", naive_nets.shufflenetv2),
}
SMALL = [
    "cifar_resnet20",
    "cifar_wrn_16_2",
    "cifar_vgg8",
    "cifar_mobilenetv2",
    "cifar_shufflenetv1",
    "cifar_shufflenetv2",
]


def with_trained_norms(net: nn.Module) -> nn.Module:
    """Statistics and scales as after training, so that a wrong order of operations shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def test_every_network_is_in_the_table():
    assert set(CIFAR_NETS) == set(NETS)
    assert set(timm.list_models("cifar_*")) == set(NETS)


@pytest.mark.parametrize("name", NETS)
def test_parameter_counts(name):
    with torch.device("meta"):
        counts = [sum(p.numel() for p in timm.create_model(name, num_classes=c).parameters()) for c in (100, 200)]
    assert counts == list(NETS[name][:2])


@pytest.mark.parametrize("name", NETS)
def test_names_feats_and_logits_match_the_naive_network(name):
    torch.manual_seed(0)
    net = with_trained_norms(timm.create_model(name, num_classes=10))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        feats, logits = NETS[name][3](net.state_dict(), x)
        features, maps = net.forward_intermediates(x)
        torch.testing.assert_close(net(x), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
        torch.testing.assert_close(net.forward_head(features), net(x), rtol=0, atol=0)
    assert " ".join(f"{m.shape[1]}x{m.shape[2]}" for m in maps) == NETS[name][2]
    assert net.forward_head(features, pre_logits=True).shape == (2, net.num_features)
    for got, want, info in zip(maps, feats, net.feature_info, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
        assert (info["num_chs"], 32 // info["reduction"]) == got.shape[1:3]
        net.get_submodule(info["module"])


@pytest.mark.parametrize("name", SMALL)
def test_tiny_imagenet_size(name):
    torch.manual_seed(0)
    net = with_trained_norms(timm.create_model(name, num_classes=200))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        _, logits = NETS[name][3](net.state_dict(), x)
        torch.testing.assert_close(net(x), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


@pytest.mark.parametrize("name", ["cifar_wrn_16_2", "cifar_vgg8", "cifar_shufflenetv2"])
def test_channels_last_compile_and_gradients(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = net(x)
        torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), want)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4)
    net.train()
    _, maps = net.forward_intermediates(x)
    sum(m.square().mean() for m in maps).backward()  # raises if an in-place step overwrote a tapped map
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_reset_classifier(name):
    net = timm.create_model(name, num_classes=100, in_chans=1)
    cfg = net.default_cfg
    assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
    assert net.get_submodule(cfg["first_conv"]).in_channels == 1
    names = set(net.state_dict())
    net.reset_classifier(7)
    x = torch.randn(2, 1, 32, 32)
    assert net.num_classes == 7
    assert net(x).shape == (2, 7)
    assert set(net.state_dict()) == names
    net.reset_classifier(0)
    assert net(x).shape == (2, net.num_features) == (2, net.head_hidden_size)
    net.reset_classifier(0, "")
    assert net(x).ndim == 4
    net.reset_classifier(3, "max")
    assert net(x).shape == (2, 3)


def test_default_cfg():
    cfg = timm.create_model("cifar_resnet20").default_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert cfg["num_classes"] == 100
    assert not cfg["fixed_input_size"]
    assert cfg["mean"] == (0.5071, 0.4867, 0.4408)
    assert cfg["std"] == (0.2675, 0.2565, 0.2761)


def test_intermediates_options():
    net = timm.create_model("cifar_wrn_16_2").eval()
    x = torch.randn(1, 3, 32, 32)
    every = net.forward_intermediates(x, intermediates_only=True)
    last_two = net.forward_intermediates(x, indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, every[2:], strict=True))
    features, maps = net.forward_intermediates(x, indices=[0, -2], stop_early=True)
    assert torch.equal(features, maps[-1])
    assert torch.equal(maps[-1], every[2])
    features, _ = net.forward_intermediates(x, indices=[-1], stop_early=True)
    assert torch.equal(features, net.forward_features(x))
    with pytest.raises(ValueError, match="NCHW"):
        net.forward_intermediates(x, output_fmt="NLC")


def test_features_only():
    net = timm.create_model("cifar_vgg8", features_only=True, out_indices=(1, 4))
    assert [m.shape[1] for m in net(torch.randn(1, 3, 32, 32))] == net.feature_info.channels() == [128, 512]


def test_initialisation_follows_the_papers():
    torch.manual_seed(0)
    mobile = timm.create_model("cifar_mobilenetv2")
    depthwise = mobile.blocks[5][1].conv[3].weight
    assert depthwise.std().item() == pytest.approx((2 / (9 * depthwise.shape[0])) ** 0.5, rel=0.05)
    assert mobile.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not mobile.get_classifier().bias.any()
    assert not timm.create_model("cifar_wrn_16_2").fc.bias.any()
    assert timm.create_model("cifar_resnet20").fc.bias.any()
