"""One way to call any network."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from hfkd.models import image_classifier
from hfkd.models.calling import Call, logits_of

X = torch.randn(2, 3, 16, 16)
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
BATCH = {"pixel_values": X, "labels": torch.tensor([0, 1]), "index": torch.tensor([5, 6]), "note": ["a", "b"]}


class Positional(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


class Named(nn.Module):
    def forward(self, pixel_values, labels=None):
        assert labels is None, "a network that gets labels computes a loss of its own"
        return SimpleNamespace(logits=pixel_values.mean((2, 3)))


@pytest.mark.parametrize("build", [Positional, Named])
def test_a_module_by_position_or_by_keyword(build):
    model = build()
    assert torch.equal(Call.of(model)(model, BATCH), X.mean((2, 3)))


def test_a_hub_model_gets_what_its_forward_names_and_no_labels():
    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=4)).eval()
    call = Call.of(model)
    assert "labels" not in call.keywords
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, set(kwargs))), with_kwargs=True)
    logits = call(model, BATCH)
    assert seen == [((), {"pixel_values"})]
    assert torch.equal(logits, model(pixel_values=X).logits)


def test_a_text_model_gets_its_mask():
    config = BertConfig(**SIZES, vocab_size=10, max_position_embeddings=8, num_labels=4)
    model = BertForSequenceClassification(config).eval()
    batch = {"input_ids": torch.tensor([[1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 0]]), "labels": X, "row": X}
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(Call.of(model)(model, batch), expected)
    assert not torch.equal(expected, model(input_ids=batch["input_ids"]).logits)


@pytest.mark.parametrize("way", ["logits", "hidden"])
def test_a_language_model_keeps_no_keys_and_values(way):
    """They are for generating. A teacher would copy and hold two [B, L, H] tensors a layer for nothing."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=10)).eval()
    assert model.config.use_cache
    call, outputs = Call.of(model), []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    (call if way == "logits" else call.hidden)(model, {"input_ids": torch.tensor([[1, 2, 0]])})
    assert outputs[0].past_key_values is None


def test_a_timm_model_bare_and_in_transformers_wrapper():
    wrapped = image_classifier("cifar_resnet20", 7)
    bare = wrapped.timm_model
    with torch.no_grad():
        assert torch.equal(Call.of(wrapped)(wrapped, BATCH), Call.of(bare)(bare, BATCH))


def test_what_wraps_the_network_is_called_as_the_network_was():
    bare = Named()
    call = Call.of(bare)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bare

        def forward(self, *arguments, **keywords):
            return self.inner(*arguments, **keywords)

    assert torch.equal(call(Wrapper(), BATCH), X.mean((2, 3)))


@pytest.mark.parametrize("output", [(), (1, X), {"logits": 1}, None, SimpleNamespace(logits=None)])
def test_an_output_without_logits_is_refused(output):
    with pytest.raises(ValueError, match=f"the model returned a {type(output).__name__} without logits: return"):
        logits_of(output)
