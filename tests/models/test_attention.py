"""Queries, keys and values on their way into attention functions."""

import pytest
import torch
from test_stages import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from hfkd.models.feature_capture import FeatureCapture, Probe


def kept(network, inputs, *keys):
    capture = FeatureCapture(network, keys, "student")
    try:
        return Probe(capture).run(lambda: network(**inputs))
    finally:
        capture.remove()


def gpt2():
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 50}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **tokens)).eval(), tiny("llama")[1]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [lambda: tiny("llama"), lambda: tiny("distilbert"), lambda: tiny("vit"), gpt2])
@torch.no_grad()
def test_the_scores_of_what_is_kept_are_the_networks_attentions(implementation, make):
    network, inputs = make()
    if "input_ids" in inputs:
        inputs = inputs | {"attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    network.set_attn_implementation(implementation)
    plain = network(**inputs).logits
    output, found = kept(network, inputs, "attention:1:")
    torch.testing.assert_close(output.logits, plain, rtol=0, atol=0)
    assert network.config._attn_implementation == implementation
    network.set_attn_implementation("eager")
    attentions = network(**inputs, output_attentions=True).attentions
    assert list(found) == [f"attention:{k + 1}" for k in range(len(attentions))]
    for one, want in zip(found.values(), attentions, strict=True):
        key = one.key.repeat_interleave(one.query.shape[1] // one.key.shape[1], 1)
        scores = one.scale * one.query @ key.transpose(-1, -2)
        if one.mask is not None:
            assert one.mask.shape[0] == len(one.query)
            scores = scores.masked_fill(~one.mask, -1e9) if one.mask.dtype == torch.bool else scores + one.mask
        torch.testing.assert_close(scores.softmax(-1), want, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_causal_networks_say_so_without_a_mask_of_their_own():
    network, inputs = tiny("llama")
    _, found = kept(network, inputs, "attention:-1")
    (one,) = found.values()
    assert torch.equal(one.mask[0, 0], torch.ones(6, 6).bool().tril())


@torch.no_grad()
def test_two_captures_of_one_network_do_not_meet():
    network, inputs = tiny("vit")
    first, second = (FeatureCapture(network, ("attention:1",), "student") for _ in range(2))
    first.run(lambda: network(**inputs))
    assert not second.found
    first.remove()
    assert second.run(lambda: network(**inputs))[1]
    second.remove()
    assert network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("key", "message"),
    [("attention:0", "has the stages 'attention:1', 'attention:2'"), ("attention:3", "has the stages")],
)
def test_blocks_are_counted_from_1(key, message):
    with pytest.raises(ValueError, match=message):
        FeatureCapture(tiny("vit")[0], (key,), "student")


def test_networks_without_such_attention_are_refused():
    import timm

    with pytest.raises(ValueError, match="the stages of a CifarResNet that attend are not known"):
        FeatureCapture(timm.create_model("cifar_resnet8"), ("attention:1",), "student")
    network, inputs = tiny("vit")
    network.vit.layers[0].attention.forward = lambda states, *more, **keywords: (states, None)
    with pytest.raises(ValueError, match="block vit.layers.0 of the student does not call transformers' attention"):
        kept(network, inputs, "attention:1")
