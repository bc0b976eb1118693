"""A student of some of its teacher's layers computes what the teacher computes with the others skipped."""

import pytest
import torch
from task_toys import tokenizer
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hfkd.models import prune_layers
from hfkd.models.text_network_arguments import TextNetworkArguments

SIZE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 6, "vocab_size": 40}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
HEADS = {"num_heads": 2, "d_kv": 8, "d_ff": 24}
WHISPER = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
WHISPER |= {"encoder_layers": 4, "decoder_layers": 6, "num_mel_bins": 8, "max_source_positions": 8}
MODELS = {  # a model, and where its layers are
    "bert": (lambda: BertForSequenceClassification(BertConfig(**SIZE)), ["bert.encoder.layer"]),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=6, vocab_size=40, **IDS)),
        ["transformer.h"],
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZE, **IDS)), ["model.layers"]),
    "qwen2, windows in its last layers": (
        lambda: Qwen2ForCausalLM(
            Qwen2Config(**SIZE, **IDS, num_key_value_heads=2, use_sliding_window=True, max_window_layers=3)
        ),
        ["model.layers"],
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, num_layers=6, **HEADS, **IDS)),
        ["encoder.block", "decoder.block"],
    ),
    "whisper": (
        lambda: WhisperForConditionalGeneration(WhisperConfig(vocab_size=40, d_model=16, **WHISPER, **IDS)),
        ["model.encoder.layers", "model.decoder.layers"],
    ),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def logits(model):
    if model.main_input_name == "input_features":
        inputs = {"input_features": torch.linspace(-1, 1, 2 * 8 * 16).view(2, 8, 16)}
        return model(**inputs, decoder_input_ids=torch.tensor([[1, 5, 7], [1, 9, 11]])).logits
    ids = torch.tensor([[5, 7, 9, 11, 13], [6, 8, 3, 12, 14]])
    more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more, use_cache=False).logits if model.can_generate() else model(input_ids=ids).logits


def skipping(name, keep):
    """The model itself, with the other layers taken out of its lists."""
    model = made(name)
    for path in MODELS[name][1]:
        parent, _, child = path.rpartition(".")
        layers = model.get_submodule(path)
        kept = nn.ModuleList(layers[i] for i in keep[path])
        if 0 not in keep[path] and name == "t5":
            first = layers[0].layer[0].SelfAttention
            kept[0].layer[0].SelfAttention.relative_attention_bias = first.relative_attention_bias
            kept[0].layer[0].SelfAttention.has_relative_attention_bias = True
        setattr(model.get_submodule(parent), child, kept)
    for config in (model.config, *(getattr(model, part).config for part in ("encoder", "decoder") if name == "t5")):
        if hasattr(config, "layer_types"):
            config.layer_types = [config.layer_types[i] for i in keep[MODELS[name][1][0]]]
    for stack in (model.encoder, model.decoder) if name == "t5" else ():
        stack.config.num_layers = len(stack.block)
    if hasattr(model.config, "num_hidden_layers") and not model.config.is_encoder_decoder:
        model.config.num_hidden_layers = len(keep[MODELS[name][1][0]])
    return model


@pytest.mark.parametrize("keep", [[0, 2, 5], [1, 3]], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_teacher_with_layers_skipped(name, keep):
    part = {"part": "decoder"} if name == "whisper" else {}
    places = dict.fromkeys(MODELS[name][1], keep)
    if name == "whisper":
        places["model.encoder.layers"] = [0, 1, 2, 3]
    student = prune_layers(made(name), keep, **part)
    torch.testing.assert_close(logits(student), logits(skipping(name, places)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2, windows in its last layers"])
def test_it_generates_with_a_cache_and_loads_by_auto_classes(name, tmp_path):
    student = prune_layers(made(name), 3, how="last")
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(student))
    ids = {"input_ids": torch.tensor([[5, 7, 9]]), "attention_mask": torch.ones(1, 3), "max_new_tokens": 8}
    cached, plain = (again.generate(**ids, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_the_teacher_stays_as_it_was():
    teacher = made("llama")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = prune_layers(teacher, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teacher.config.num_hidden_layers == 6
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("keep", "how", "layers"),
    [
        (3, "uniform", [0, 2, 5]),
        (1, "uniform", [0]),
        (6, "uniform", [0, 1, 2, 3, 4, 5]),
        (2, "first", [0, 1]),
        (2, "last", [4, 5]),
    ],
)
def test_which_layers_a_number_keeps(keep, how, layers):
    teacher = made("llama")
    student = prune_layers(teacher, keep, how)
    first = [layer.mlp.up_proj.weight for layer in teacher.model.layers]
    assert [
        [torch.equal(layer.mlp.up_proj.weight, weight) for weight in first].index(True)
        for layer in student.model.layers
    ] == layers


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (lambda: made("llama"), {"keep": 7}, "keep from 1 to 6 layers"),
        (lambda: made("llama"), {"keep": [0, 6]}, "ascending layer indices from 0 to 5"),
        (lambda: made("llama"), {"keep": [2, 1]}, "ascending"),
        (lambda: made("llama"), {"keep": 2, "how": "even"}, "how='even'"),
        (lambda: made("llama"), {"keep": 2, "part": "encoder"}, "is not an encoder-decoder"),
        (lambda: nn.Linear(2, 2), {"keep": 1}, "Linear is not a transformers PreTrainedModel"),
        (lambda: AlbertForMaskedLM(AlbertConfig(**SIZE, embedding_size=8)), {"keep": 2}, "share a single layer"),
        (
            lambda: GPT2LMHeadModel(
                GPT2Config(n_embd=16, n_head=2, n_layer=4, vocab_size=40, scale_attn_by_inverse_layer_idx=True)
            ),
            {"keep": [0, 2]},
            "scaling of layer 2 is",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(model, settings, said):
    with pytest.raises(ValueError, match=said):
        prune_layers(model(), **settings)


def test_the_flags_of_recipes(tmp_path):
    made("bert").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    flags = {"teacher_name_or_path": str(tmp_path), "student_init": "teacher", "student_layers": [2]}
    networks = TextNetworkArguments(**flags, student_layers_from="first")
    student = networks.student(AutoModelForSequenceClassification, tokenizer(), num_labels=2)
    teacher = made("bert")
    assert student.config.num_hidden_layers == 2
    assert torch.equal(
        student.bert.encoder.layer[1].output.dense.weight, teacher.bert.encoder.layer[1].output.dense.weight
    )
    for wrong, said in (
        ({"student_layers": None}, "would be the teacher itself"),
        ({"teacher_name_or_path": None}, "needs a teacher to take layers from"),
        ({"student_name_or_path": "other/model"}, "leave one out"),
        ({"from_config": True}, "but from_config is set"),
        ({"student_layers_from": "middle"}, "'uniform', 'first', 'last'"),
        ({"student_layers_from": "last", "student_layers": [0, 2]}, "give one number"),
    ):
        with pytest.raises(ValueError, match=said):
            TextNetworkArguments(**(flags | wrong))


def test_the_layers_of_a_fresh_student_are_counted_too(tmp_path):
    made("bert").save_pretrained(tmp_path)
    networks = TextNetworkArguments(student_name_or_path=str(tmp_path), from_config=True, student_layers=[2])
    student = networks.student(AutoModelForSequenceClassification, tokenizer(), num_labels=2)
    assert made("bert").config.num_hidden_layers > 2
    assert (student.config.num_hidden_layers, len(student.bert.encoder.layer)) == (2, 2)
