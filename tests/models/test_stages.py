"""Which modules are meant by "stage 2", and what they give while the network runs."""

import copy
import pickle

import naive_nets
import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.nn.functional import batch_norm
from toys import CHECKPOINTING
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hfkd.models import image_classifier
from hfkd.models.feature_capture import FeatureCapture, Probe, refuse_other_head
from hfkd.models.stages import expanded, tap_of

NAIVE = {
    "cifar_resnet8": naive_nets.resnet,
    "cifar_wrn_16_2": naive_nets.wrn,
    "cifar_vgg8": naive_nets.vgg,
    "cifar_mobilenetv2": naive_nets.mobilenetv2,
    "cifar_shufflenetv1": naive_nets.shufflenetv1,
    "cifar_shufflenetv2": naive_nets.shufflenetv2,
    "cifar_resnet50": naive_nets.resnet50,
}


def captured(network, inputs, *keys):
    capture = FeatureCapture(network, keys, "student")
    try:
        return Probe(capture).run(lambda: network(**inputs) if isinstance(inputs, dict) else network(inputs))[1]
    finally:
        capture.remove()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAIVE)
@torch.no_grad()
def test_stages_of_the_cifar_networks_are_the_feats_of_the_literature(name, image):
    network = timm.create_model(name, num_classes=10).eval()
    feats, _ = NAIVE[name](network.state_dict(), image)
    found = captured(network, image, "0:")
    assert list(found) == [str(k) for k in range(len(feats))]
    for got, want in zip(found.values(), feats, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", NAIVE)
@torch.no_grad()
def test_before_the_last_activation_a_map_has_negative_entries_and_its_activation_is_the_stage(name, image):
    network = timm.create_model(name, num_classes=10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    before, after = captured(network, image, "pre:0:"), captured(network, image, "0:")
    norms = {0: "block1.layer.0.bn1", 1: "block2.layer.0.bn1", 2: "block3.layer.0.bn1", 3: "bn1"}
    for k, (pre, stage) in enumerate(zip(before.values(), after.values(), strict=True)):
        assert pre.min() < 0
        if name == "cifar_wrn_16_2":
            bn = network.get_submodule(norms[k])
            normalised = batch_norm(stage, bn.running_mean, bn.running_var, bn.weight, bn.bias)
            torch.testing.assert_close(pre, normalised)
        elif name == "cifar_shufflenetv2" and k:
            torch.testing.assert_close(naive_nets.shuffle(pre.relu(), 2), stage, rtol=0, atol=0)
        elif name == "cifar_mobilenetv2" and k:
            torch.testing.assert_close(pre, stage, rtol=0, atol=0)  # a linear bottleneck
        else:
            torch.testing.assert_close(pre.relu(), stage, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_2", "cifar_shufflenetv2"])
def test_capturing_changes_neither_logits_nor_gradients_nor_running_statistics(name, image):
    plain, tapped = (timm.create_model(name, num_classes=10).train() for _ in range(2))
    tapped.load_state_dict(plain.state_dict())
    capture = FeatureCapture(tapped, ("0:", "pre:0:", "pooled"), "student")
    Probe(capture)
    logits, found = capture.run(lambda: tapped(image))
    want = plain(image)
    for z in (logits, want):
        z.square().sum().backward()
    torch.testing.assert_close(logits, want, rtol=0, atol=0)
    for a, b in zip(plain.parameters(), tapped.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0)
    for a, b in zip(plain.buffers(), tapped.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)
    assert found["pooled"].shape[1] == plain.num_features


@torch.no_grad()
def test_timm_stages_are_those_of_feature_info_with_the_stem_as_stage_0(image):
    image = image.repeat(1, 1, 2, 2)
    for name, shapes in {
        "resnet18": [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
        "mobilenetv2_050": [(16, 32), (8, 32), (16, 16), (16, 8), (48, 4), (160, 2)],
        "convnext_atto": [(40, 16), (40, 16), (80, 8), (160, 4), (320, 2)],
    }.items():
        network = timm.create_model(name, num_classes=10).eval()
        found = captured(network, image, "0:")
        assert [tuple(f.shape[1:3]) for f in found.values()] == shapes, name
        intermediates = network.forward_intermediates(image, intermediates_only=True)
        for got, want in zip(reversed(found.values()), reversed(intermediates), strict=False):
            torch.testing.assert_close(got, want)


@torch.no_grad()
def test_timm_maps_with_channels_last_come_channels_first(image):
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1),
        num_classes=3,
    ).eval()  # fmt: skip
    found = captured(network, image, "1:")
    for got, want in zip(found.values(), network.forward_intermediates(image, intermediates_only=True), strict=True):
        torch.testing.assert_close(got, want)


@torch.no_grad()
def test_timm_maps_come_channels_first_where_a_network_does_not_say_that_they_are_last():
    small = {"embed_dims": (8, 16), "num_heads": (1, 1), "mlp_ratios": (1, 1)}
    pvt = timm.create_model("pvt_v2_b0", depths=(1, 1), sr_ratios=(1, 1), **small)
    found = captured(pvt.eval(), torch.randn(2, 3, 32, 48), "0:")
    assert [tuple(feature.shape[1:]) for feature in found.values()] == [(8, 8, 12), (8, 8, 12), (16, 4, 6)]
    with torch.device("meta"):
        volo = timm.create_model("volo_d1_224", img_size=32).eval()
        found = captured(volo, torch.randn(2, 3, 32, 32), "0:")
    assert [tuple(feature.shape[1:3]) for feature in found.values()] == [(192, 4)] * 2 + [(384, 2)] * 3


@torch.no_grad()
def test_timm_resnets_before_their_last_activation(image):
    for name in ("resnet18", "resnet26"):
        network = timm.create_model(name, num_classes=10, zero_init_last=False).eval()
        before, after = captured(network, image, "pre:0:"), captured(network, image, "0:")
        for pre, stage in zip(before.values(), after.values(), strict=True):
            assert pre.min() < 0
            torch.testing.assert_close(pre.relu(), stage, rtol=0, atol=0)


def tiny(kind):
    tokens = {"input_ids": torch.randint(1, 50, (2, 6))}
    if kind == "llama":
        sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 50}
        return LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=3, **sizes)).eval(), tokens
    if kind == "distilbert":
        config = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=50)
        return DistilBertForMaskedLM(config).eval(), tokens
    sizes = {"num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(hidden_size=32, num_hidden_layers=2, **sizes)).eval(), {
        "pixel_values": torch.randn(2, 3, 32, 32)
    }


@pytest.mark.parametrize("kind", ["llama", "distilbert", "vit"])
@torch.no_grad()
def test_stages_of_a_transformer_are_its_hidden_states_before_any_final_norm(kind):
    network, inputs = tiny(kind)
    found, states = captured(network, inputs, "0:"), network(**inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(states)
    for k, (got, want) in enumerate(zip(found.values(), states, strict=True)):
        if kind == "llama" and k == len(states) - 1:
            got = network.model.norm(got)
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft
@torch.no_grad()
def test_names_reach_into_peft_and_into_the_wrapper_of_timm(image):
    from peft import LoraConfig, get_peft_model

    inside = image_classifier("cifar_resnet8", 10)
    assert tap_of(inside, "2").path == tap_of(inside, "layer2").path == "timm_model.layer2"
    assert set(captured(inside, image, "2", "layer2", "timm_model.layer2", "pooled")) == {
        "2", "layer2", "timm_model.layer2", "pooled"
    }  # fmt: skip
    network, inputs = tiny("llama")
    plain = captured(network, inputs, "1", "model.layers.0.mlp")
    adapted = captured(
        get_peft_model(network, LoraConfig(target_modules=["q_proj"])), inputs, "1", "model.layers.0.mlp"
    )
    for key, value in plain.items():
        torch.testing.assert_close(adapted[key], value)


def test_gradient_checkpointing_keeps_the_features_gradient():
    network, inputs = tiny("llama")
    network.train()
    want = []
    for kept in (False, True):
        if kept:
            getattr(network, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
        network.zero_grad()
        capture = FeatureCapture(network, ("1", "model.layers.0.mlp"), "student")
        output, found = capture.run(lambda: network(**inputs, use_cache=False))
        (output.logits.sum() + sum(f.square().sum() for f in found.values())).backward()
        assert not capture.found  # what the backward pass runs again is not kept
        want.append(network.model.embed_tokens.weight.grad.clone())
        capture.remove()
    torch.testing.assert_close(*want)


@torch.no_grad()
def test_a_layer_that_is_written_over_is_copied(image):
    network = torchvision.models.resnet18(num_classes=10).eval()
    network.bn1.bias.fill_(-0.5)
    assert captured(network, image, "bn1")["bn1"].min() < 0
    torch.testing.assert_close(captured(network, image, "0")["0"], captured(network, image, "bn1")["bn1"].relu())


def test_a_dropout_in_place_reaches_no_feature(image):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.head = nn.Conv2d(3, 4, 3), nn.Dropout(0.5, inplace=True), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.drop(self.conv(x)).mean((2, 3)))

    network = Dropping().eval()
    capture = FeatureCapture(network, ("conv",), "student")
    with torch.no_grad():
        Probe(capture).run(lambda: network(image))
    network.train()
    _, found = capture.run(lambda: network(image))
    torch.testing.assert_close(found["conv"], network.conv(image))


def test_a_network_with_hooks_can_be_pickled_and_copied(image):
    network = timm.create_model("cifar_resnet8", num_classes=10).eval()
    capture = FeatureCapture(network, ("2", "pre:2"), "student")
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(other(image), network(image))
    assert not capture.found


def test_other_heads_are_no_pooled_features(image):
    class Bottlenecked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.unused = nn.Linear(3, 10), nn.Linear(10, 10)

        def forward(self, x):
            return self.unused(self.head(x.mean((2, 3)))).log_softmax(-1)

    network = Bottlenecked()
    capture = FeatureCapture(network, ("pooled",), "student")
    logits, found = capture.run(lambda: network(image))
    with pytest.raises(
        ValueError, match="'pooled': the logits of the student are not the output of its last linear layer"
    ):
        refuse_other_head(capture, found, logits)


def test_tiny_logits_are_no_proof_of_a_head(image):
    """SwiftFormer's are the mean of two heads, and about 1e-7 when it is new."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.dist_head = nn.Linear(12, 3), nn.Linear(12, 3)

        def forward(self, x):
            pooled = 1e-6 * x.flatten(1)[:, :12]
            return (self.head(pooled) - self.head.bias + self.dist_head(pooled) - self.dist_head.bias) / 2

    network = TwoHeads()
    with torch.no_grad():
        network.dist_head.bias.zero_()
    capture = FeatureCapture(network, ("head:in", "pooled"), "student")
    logits, found = capture.run(lambda: network(image))
    with pytest.raises(ValueError, match="the logits of the student are not the output of its last linear layer"):
        refuse_other_head(capture, found, logits)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("4", "CifarResNet has the stages 0, 1, 2, 3"),
        ("pre:7", "has the stages 'pre:0', 'pre:1', 'pre:2', 'pre:3'"),
        ("layer9", r"no such module: name one of \['bn1', 'conv1', 'fc', .*or one of the stages 0, 1, 2, 3"),
        ("layer2.3.conv1", r"name one of \['layer2.0'\]"),
    ],
)
def test_a_layer_that_there_is_not_is_refused_with_the_choices(key, message):
    network = timm.create_model("cifar_resnet8")
    with pytest.raises(ValueError, match=message):
        FeatureCapture(network, [key], "student")


@pytest.mark.parametrize(
    ("network", "key"),
    [
        (torchvision.models.mobilenet_v3_small(), "2"),
        (torchvision.models.resnet18(), "pre:2"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "1"),
        (timm.create_model("convnext_atto"), "pre:1"),
        (timm.create_model("hrnet_w18_small"), "1"),
    ],
)
def test_stages_that_nobody_knows_are_refused_with_paths_to_choose(network, key):
    with pytest.raises(
        ValueError, match=f"layer '{key}': the stages of a .* are not known: name a module by its path, such as"
    ):
        expanded(network, [key])


def test_a_module_that_runs_twice_or_never_is_refused(image):
    network = torchvision.models.resnet18(num_classes=10).eval()
    with pytest.raises(ValueError, match=r"calls layer1\.0\.relu:in 2 times in one forward pass"):
        captured(network, image, "layer1.0.relu:in")
    network.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the forward pass of the student did not call spare for layer 'spare'"):
        captured(network, image, "spare")


@pytest.mark.slow
def test_compiled_networks_give_their_features(image):
    network = timm.create_model("cifar_resnet8", num_classes=10).train()
    capture = FeatureCapture(network, ("2", "pre:2"), "student")
    Probe(capture).run(lambda: network.eval()(image))
    network.train()
    compiled = torch.compile(network, backend="aot_eager")
    for _ in range(2):
        _, found = capture.run(lambda: compiled(image))
        assert found["pre:2"].min() < 0
        torch.testing.assert_close(found["pre:2"].relu(), found["2"])
        network.zero_grad()
        found["2"].square().sum().backward()
        assert network.conv1.weight.grad.abs().sum() > 0


def test_encoder_decoders_name_their_blocks_by_path():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 20}
    network = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))
    with pytest.raises(ValueError, match="the stages of a BartForConditionalGeneration are not known"):
        expanded(network, ["1"])
    assert tap_of(network, "model.decoder.layers.0").path == "model.decoder.layers.0"
