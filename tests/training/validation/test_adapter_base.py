"""Adapters are refused on a base model that is not stored where they will look for it."""

import pytest
import torch
from text_toys import language_model, token_dataset
from toys import arguments
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, BertModel
from versions import since

from hfkd import DistillationTrainer
from hfkd.models import prune_layers
from hfkd.models.language import causal_lm

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning"),
]


def lora(**keywords):
    return peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True, **keywords)


def make(folder, student, config):
    args = arguments(folder, max_steps=2, learning_rate=0.5, ce_weight=1, kd_weight=0)
    return DistillationTrainer(student, None, args, peft_config=config, train_dataset=token_dataset())


@pytest.fixture
def saved(tmp_path):
    language_model(layers=4).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def merged(saved):
    trainer = make(saved.parent / "adapter", causal_lm(saved), lora())
    trainer.train()
    trainer.save_model()
    return causal_lm(saved.parent / "adapter")


CHANGED = {
    "an adapter that was merged": merged,
    "two of four layers": lambda saved: prune_layers(causal_lm(saved), 2),
    "the first two layers": lambda saved: prune_layers(causal_lm(saved), 2, "first"),
    "random weights": lambda saved: causal_lm(saved, from_config=True),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_base_that_differs_from_the_stored_one_is_refused(saved, tmp_path, changed):
    student = changed(saved)
    with pytest.raises(ValueError, match=r"other weights than .*base, onto which its adapters would be loaded"):
        make(tmp_path / "run", student, lora())


def test_a_base_saved_as_it_is_serves(saved, tmp_path):
    prune_layers(causal_lm(saved), 2).save_pretrained(tmp_path / "pruned")
    trainer = make(tmp_path / "run", causal_lm(tmp_path / "pruned"), lora())
    trainer.train()
    trainer.save_model()
    tokens = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        trained, loaded = (m.eval()(input_ids=tokens).logits for m in (trainer.model, causal_lm(tmp_path / "run")))
    torch.testing.assert_close(loaded, trained)


def test_random_weights_of_a_configuration_are_refused(tmp_path):
    language_model().config.save_pretrained(tmp_path / "config")
    with pytest.raises(ValueError, match=r"no weights of .*config are stored here"):
        make(tmp_path / "run", causal_lm(tmp_path / "config", from_config=True), lora())


UNCHANGED = {
    "bfloat16": lambda saved: causal_lm(saved, "bfloat16"),
    "rounded to bfloat16": lambda saved: causal_lm(saved, "bfloat16").float(),
    "in memory alone": lambda saved: language_model(),
}


@pytest.mark.parametrize("student", UNCHANGED.values(), ids=UNCHANGED)
def test_other_bases_serve(saved, tmp_path, student):
    make(tmp_path / "run", student(saved), lora())


def test_several_files_without_the_heads_prefix_serve(saved, tmp_path):
    causal_lm(saved).transformer.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    make(tmp_path / "run", causal_lm(tmp_path / "parts"), lora())
    make(tmp_path / "head", causal_lm(tmp_path / "parts"), lora(modules_to_save=["lm_head"]))
    make(tmp_path / "pissa", causal_lm(tmp_path / "parts"), lora(init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="other weights than"):
        make(tmp_path / "other", prune_layers(causal_lm(tmp_path / "parts"), 2), lora())


def test_a_start_that_is_not_repeated_when_adapters_are_loaded_is_refused(saved, tmp_path):
    """PiSSA by a randomised SVD takes another part out of the base each time: what was saved fitted none of them."""
    adapters = peft.get_peft_model(causal_lm(saved), lora(init_lora_weights="pissa_niter_2"))
    adapters.save_pretrained(tmp_path / "adapters")
    again = peft.PeftModel.from_pretrained(causal_lm(saved), tmp_path / "adapters")
    states = [network.state_dict() for network in (adapters, again)]
    assert not all(torch.allclose(states[0][name], states[1][name]) for name in states[0])
    for start in ("pissa_niter_2", "lora_ga"):
        with pytest.raises(ValueError, match=f"init_lora_weights='{start}' changes the base model's weights"):
            make(tmp_path / start, causal_lm(saved), lora(init_lora_weights=start))
    make(tmp_path / "exact", causal_lm(saved), lora(init_lora_weights="pissa"))


@pytest.mark.parametrize("targets", [["query"], ["query", "classifier"]])
def test_a_new_head_that_would_not_be_saved_is_refused(tmp_path, targets):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=14)
    BertModel(config).save_pretrained(tmp_path / "bert")
    rows = [{"input_ids": [3, 4, 5 + i % 2], "labels": i % 2} for i in range(8)]
    args = arguments(tmp_path / "run", ce_weight=1, kd_weight=0)

    def build(**keywords):
        student = BertForSequenceClassification.from_pretrained(tmp_path / "bert")
        adapters = peft.LoraConfig(r=2, **keywords)
        return DistillationTrainer(student, None, args, peft_config=adapters, train_dataset=rows)

    with pytest.raises(ValueError, match=r"classifier.weight, classifier.bias of the student have random weights"):
        build(target_modules=targets)
    build(target_modules=["query"], task_type="SEQ_CLS")


def adapter(saved):
    make(saved.parent / "adapter", causal_lm(saved), lora()).save_model()
    return saved.parent / "adapter"


def loaded_for_inference(saved):
    return peft.PeftModel.from_pretrained(causal_lm(saved), adapter(saved))


def frozen(saved):
    return causal_lm(saved).requires_grad_(False)


@pytest.mark.parametrize(
    ("student", "remedy"), [(loaded_for_inference, "is_trainable=True"), (frozen, "call requires_grad_")]
)
def test_a_student_of_which_nothing_trains_is_refused(saved, tmp_path, student, remedy):
    with pytest.raises(ValueError, match=f"no parameter of the student requires a gradient: .*{remedy}"):
        make(tmp_path / "run", student(saved), None)


@since("transformers", "5.23", "do not read the head that was saved with an adapter")
def test_adapters_that_are_frozen_beside_a_trained_head_are_refused(saved, tmp_path):
    make(saved.parent / "adapter", causal_lm(saved), lora(modules_to_save=["lm_head"])).save_model()
    student = AutoModelForCausalLM.from_pretrained(saved.parent / "adapter")
    assert {name.split(".")[1] for name, p in student.named_parameters() if p.requires_grad} == {"modules_to_save"}
    with pytest.raises(ValueError, match="adapters are frozen, so that only its other parameters would train"):
        make(tmp_path / "run", student, None)
    trained = peft.PeftModel.from_pretrained(causal_lm(saved), saved.parent / "adapter", is_trainable=True)
    make(tmp_path / "trained", trained, None)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model", "ignore:Already found a `peft_config`")
def test_adapters_of_an_earlier_trainer_on_other_layers_are_refused(tmp_path):
    """They are in the student itself, and would train without being saved."""
    peft = pytest.importorskip("peft")

    def make(student, *layers, **more):
        config = peft.LoraConfig(r=2, target_modules=[*layers], fan_in_fan_out=True, task_type="CAUSAL_LM", **more)
        args = arguments(tmp_path, kd_weight=0.0, ce_weight=1.0)
        return DistillationTrainer(student, None, args, train_dataset=token_dataset(), peft_config=config)

    student = language_model()
    make(student, "c_attn")
    again = make(student, "c_attn", lora_dropout=0.1)  # PEFT makes them anew
    assert any(isinstance(part, torch.nn.Dropout) and part.p == 0.1 for part in again.model.modules())
    with pytest.raises(
        ValueError, match="still has adapters of another PEFT configuration, on transformer.h.0.attn.c_attn,"
    ):
        make(student, "c_fc")
    make(make(language_model(), "c_attn").model.unload(), "c_fc")
