"""Logits that are more than a head on hidden states: scaled and capped ones train in chunks too, others are refused."""

import pytest
import torch
from bad_training import Biased
from text_toys import VOCAB, TokenRows, language_model, taught_model, tokenizer
from toys import arguments
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2LMHeadModel, GraniteConfig

from hfkd import DistillationTrainer
from hfkd.losses.rescaling import Rescaling
from hfkd.training.forward.head_proof import rescaling_of

SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
CONFIGS = {
    "logit_scale": (lambda: CohereConfig(**SIZES), Rescaling(0.0625)),
    "logits_scaling": (lambda: GraniteConfig(**SIZES, logits_scaling=6.0), Rescaling(1 / 6)),
    "final_logit_softcapping": (lambda: Gemma2Config(**SIZES, final_logit_softcapping=3.0), Rescaling(1.0, 3.0)),
    "both, on a tied head": (lambda: ScaledAndCapped, Rescaling(0.5, 2.0)),
    "neither": (lambda: GPT2LMHeadModel, Rescaling()),
}


class ScaledAndCapped(GPT2LMHeadModel):
    """Somebody's own model, which no table knows."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, logits_to_keep=0, **keywords):
        keywords |= {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        output = super().forward(input_ids, **keywords)
        output.logits = 2.0 * torch.tanh(output.logits * 0.5 / 2.0)
        return output


class Scored(GPT2LMHeadModel):
    """Its logits of one token follow another's."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, logits_to_keep=0, **keywords):
        keywords |= {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        output = super().forward(input_ids, **keywords)
        output.logits = output.logits.roll(1, dims=-1)
        return output


class Halved(GPT2LMHeadModel):
    """Its head reads half of the last hidden state."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 2,))


def model(name, seed, spread):
    """With logits that spread over several units, where a scale and a cap are felt."""
    torch.manual_seed(seed)
    made = CONFIGS[name][0]() if isinstance(name, str) else name
    made = made(language_model().config) if isinstance(made, type) else AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(spread)
    return made.eval()


def loss_and_gradients(folder, student, teacher, **settings):
    trainer = DistillationTrainer(
        student,
        teacher,
        arguments(folder, weighting="entropy", temperature="2.0", **settings),
        train_dataset=TokenRows(),
        processing_class=tokenizer(),
    )
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(TokenRows(6).rows))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("vocabulary", [VOCAB, VOCAB + 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_have_the_loss_and_gradients_of_whole_logits(tmp_path, name, vocabulary, monkeypatch):
    monkeypatch.setattr("hfkd.losses.chunked_outputs.BLOCK", 2 * VOCAB)
    student, teacher = model(name, 1, 3.0), model(name, 2, 4.0)
    if vocabulary > VOCAB:
        teacher.resize_token_embeddings(vocabulary, mean_resizing=False)
        student.resize_token_embeddings(vocabulary + 2, mean_resizing=False)
    found = [loss_and_gradients(tmp_path / str(c), student, teacher, loss_chunk_size=c) for c in (0, 5)]
    (dense, expected), (chunked, gradients) = found
    torch.testing.assert_close(chunked, dense, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_done_to_logits_is_found_whatever_the_weights(name, dtype):
    for spread in (0.0, 1.0, 5.0):
        found = rescaling_of(model(name, 1, spread).to(dtype))
        expected = CONFIGS[name][1]
        assert found.scale == pytest.approx(expected.scale, rel=1e-6)
        assert found.cap == (None if expected.cap is None else pytest.approx(expected.cap, rel=1e-6))


def test_plain_logits_are_not_touched():
    found, logits = rescaling_of(model("neither", 1, 1.0)), torch.randn(3, VOCAB)
    assert found == Rescaling()
    assert found(logits) is logits


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("made", [Biased, Scored, Halved])
def test_what_is_more_is_refused_when_the_trainer_is_built(tmp_path, made, role):
    networks = {"student": language_model(), "teacher": taught_model()} | {role: model(made, 1, 3.0)}
    with pytest.raises(
        ValueError, match=f"loss_chunk_size: the logits of {made.__name__} are not its output embedding .*set loss_"
    ):
        loss_and_gradients(tmp_path / "run", *networks.values(), loss_chunk_size=5)
    assert not (tmp_path / "run").exists()
    loss_and_gradients(tmp_path / "run", *networks.values())


def test_the_proof_leaves_the_network_as_it_was():
    network = language_model().train()
    network.transformer.h[0].eval()
    before = [module.training for module in network.modules()]
    rescaling_of(network)
    assert [module.training for module in network.modules()] == before
    assert not network.lm_head._forward_hooks
    assert not network.lm_head._forward_pre_hooks
