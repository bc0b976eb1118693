"""Heads that see target positions alone: loss and gradients of whole logits, whatever the network does with them."""

import pytest
import torch
from test_chunked import gpt2, llama, lora
from text_toys import TokenRows, language_model, taught_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from hfkd.data.text_collate import TokenCollator
from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.tasks.causal_lm import CausalLM
from hfkd.teachers import FrozenTeacher
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.micro_batch import MicroBatch
from hfkd.training.forward.target_tokens import TargetForward
from hfkd.utils.targets import IGNORED, Targets

L, V = 7, 19


def gemma():
    """Caps its logits: more than a head on hidden states."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    config = Gemma2Config(
        **sizes, num_key_value_heads=2, vocab_size=V, final_logit_softcapping=2.0, initializer_range=0.5, pad_token_id=0
    )
    return Gemma2ForCausalLM(config).eval()


class Headless(nn.Module):
    """Names an output embedding that its forward does not call."""

    def __init__(self):
        super().__init__()
        self.model = gpt2()

    def forward(self, input_ids):
        return self.model.transformer(input_ids).last_hidden_state @ self.model.lm_head.weight.T

    def get_output_embeddings(self):
        return self.model.lm_head


def batch():
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(V, (3, L), generator=g)
    labels = ids.clone()
    labels[0, :4] = labels[1, 5:] = labels[2] = IGNORED
    return {"input_ids": ids, "labels": labels}


def gradients(step, model, teacher, inputs):
    model.zero_grad()
    loss, parts, count = step(model, teacher, MicroBatch(inputs))
    loss.backward()
    return loss.detach(), parts, count, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "make",
    [gpt2, llama, gemma, Headless, lambda: lora(["c_attn", "lm_head"])],
    ids=["tied", "untied", "capped logits", "head not called", "lora on the head"],
)
@pytest.mark.parametrize("num_classes", [None, V - 3])
def test_the_loss_parts_and_gradients_are_those_of_whole_logits(make, num_classes):
    model, teacher, inputs = make(), FrozenTeacher(gpt2(width=12)), batch()
    loss, call = DistillationLoss("kd", 2.0, "entropy"), Call.of(make())
    inputs["labels"] = torch.where(inputs["labels"] == IGNORED, IGNORED, inputs["labels"].clamp(max=V - 4))
    dense = gradients(DenseForward(call, CausalLM(), loss, num_classes), model, teacher, inputs)
    for heads_on_targets in (True, False):
        ours = gradients(TargetForward(call, CausalLM(), loss, num_classes, heads_on_targets), model, teacher, inputs)
        assert ours[2] == dense[2] == Counts(7, 7)
        torch.testing.assert_close(ours[0], dense[0])
        torch.testing.assert_close(ours[1], dense[1])
        assert ours[3].keys() == dense[3].keys()
        for name, gradient in dense[3].items():
            torch.testing.assert_close(ours[3][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_each_head_sees_the_targets_and_nothing_else_and_keeps_no_hook():
    model, teacher, seen = language_model(), FrozenTeacher(taught_model()), []
    for network in (model, teacher.model):
        network.lm_head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    inputs = TokenCollator(0)(TokenRows(5).rows)
    targets = Targets(inputs["labels"])
    TargetForward(Call.of(model), CausalLM(), DistillationLoss(temperature=2.0))(model, teacher, MicroBatch(inputs))
    assert seen == [(1, len(targets))] * 2
    assert 0 < len(targets) < inputs["labels"].numel() / 2
    assert not model.lm_head._forward_pre_hooks
    assert not teacher.model.lm_head._forward_pre_hooks


def test_without_distillation_the_teacher_does_not_run():
    def forbidden(**inputs):
        raise AssertionError

    teacher = FrozenTeacher(taught_model())
    teacher.forward = forbidden
    model, inputs = language_model(), TokenCollator(0)(TokenRows(5).rows)
    loss, parts, _ = TargetForward(Call.of(model), CausalLM(), DistillationLoss(ce_weight=1.0, kd_weight=0.0))(
        model, teacher, MicroBatch(inputs)
    )
    assert loss.item() == pytest.approx(parts["ce"].item())
