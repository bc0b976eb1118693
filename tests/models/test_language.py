import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import is_bitsandbytes_available

from hfkd.models.language import causal_lm, load_tokenizer, refuse_unused_tokenizer
from hfkd.models.lora import LoraArguments
from hfkd.models.vocabulary import same_tokenizer
from hfkd.teachers import FrozenTeacher

SIZE = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
IDS = torch.arange(6)[None]


@pytest.fixture
def saved(tmp_path):
    """A small model stored in half precision, without a tokenizer."""
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(**SIZE)).half().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_folder_in_float32_unless_said_otherwise(saved):
    assert causal_lm(saved).dtype == torch.float32
    assert causal_lm(saved, "auto").dtype == torch.float16
    assert causal_lm(str(saved), "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("place", [".", "config.json"])
def test_from_config_makes_fresh_weights(saved, place):
    torch.manual_seed(2)
    fresh = causal_lm(saved / place, from_config=True)
    assert fresh.config.n_embd == 16
    assert fresh.dtype == torch.float32
    assert not torch.allclose(logits(fresh), logits(causal_lm(saved)))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_comes_with_its_base(saved, tmp_path):
    peft = pytest.importorskip("peft")
    config = LoraArguments(use_peft=True, lora_r=2, lora_target_modules=["c_attn"]).config()
    config.fan_in_fan_out = True
    adapted = peft.get_peft_model(causal_lm(saved), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = causal_lm(tmp_path / "adapter")
    assert isinstance(loaded, GPT2LMHeadModel)
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(loaded), logits(causal_lm(saved)))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_base_of_an_adapter_may_be_an_adapter(saved, tmp_path):
    peft = pytest.importorskip("peft")
    base = saved
    for name in ("first", "second"):
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        adapted = peft.get_peft_model(causal_lm(base), config)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / name, save_embedding_layers=False)
        base = tmp_path / name
    torch.testing.assert_close(logits(causal_lm(base)), logits(adapted), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_comes_with_the_revision_of_its_base(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    hub = tmp_path / "hub" / "models--someone--base"
    (hub / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v1")):
        (hub / "refs" / revision).write_text(commit := str(seed) * 40)
        torch.manual_seed(seed)
        GPT2LMHeadModel(GPT2Config(**SIZE)).save_pretrained(hub / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in (None, "main", "v1"):
        base = GPT2LMHeadModel.from_pretrained("someone/base", revision=revision or "main")
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, revision=revision)
        adapted = peft.get_peft_model(base, config, revision=revision)
        adapted.save_pretrained(tmp_path / str(revision), save_embedding_layers=False)
        loaded = causal_lm(tmp_path / str(revision))
        torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(loaded), logits(causal_lm("someone/base")))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("on", [["lm_head"], ["wte"], ["lm_head", "wte"]])
def test_an_adapter_of_tied_weights_leaves_the_other_ones_alone(saved, tmp_path, on):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(causal_lm(saved), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=on))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = causal_lm(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(causal_lm(tmp_path / "merged")), logits(loaded), rtol=1e-4, atol=1e-4)


def test_no_adapters_without_the_flag():
    assert LoraArguments().config() is None
    for given in ({"lora_r": 8}, {"lora_alpha": 8}, {"lora_target_modules": ["c_attn"]}):
        with pytest.raises(ValueError, match="has no effect without use_peft: set use_peft too"):
            LoraArguments(**given)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"from_config": True, "load_in_8bit": True}, "random weights, which are not quantised"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "choose one"),
    ],
)
def test_settings_that_do_not_go_together(saved, keywords, message):
    with pytest.raises(ValueError, match=message):
        causal_lm(saved, **keywords)


@pytest.mark.skipif(is_bitsandbytes_available(), reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_fewer_bits_without_bitsandbytes_say_what_to_install(saved, bits):
    with pytest.raises(ValueError, match="need bitsandbytes, which is not installed: pip install bitsandbytes"):
        causal_lm(saved, **{bits: True})


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="pip install bitsandbytes")
@pytest.mark.parametrize(("bits", "kind"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_a_teacher_of_fewer_bits_is_near_the_whole_one(tmp_path, bits, kind):
    torch.manual_seed(1)
    size = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2)).save_pretrained(tmp_path)
    teacher = FrozenTeacher(causal_lm(tmp_path, "auto", **{bits: True}))
    assert kind in {type(module).__name__ for module in teacher.modules()}
    whole = logits(causal_lm(tmp_path))
    error = (teacher(input_ids=IDS).float() - whole).abs().max()
    assert 0 < error < 0.3 * whole.std()


def test_tokenizers(saved, data_dir):
    gpt2, stories = data_dir / "gpt2-tokenizer", data_dir / "stories260K"
    assert len(load_tokenizer(gpt2)) == len(load_tokenizer(saved, gpt2)) == 50257
    assert len(load_tokenizer(saved / "config.json", stories)) == 512
    with pytest.raises(ValueError, match="has no tokenizer: save one with the model, or pass --tokenizer_name"):
        load_tokenizer(saved)
    with pytest.raises(ValueError, match=r"student \(.*gpt2-tokenizer\) and the teacher \(.*stories260K\) differ"):
        same_tokenizer(load_tokenizer(gpt2), load_tokenizer(stories))
    both = [load_tokenizer(gpt2), load_tokenizer(saved, stories)]
    refuse_unused_tokenizer(str(stories), both)
    refuse_unused_tokenizer(None, both)
    with pytest.raises(ValueError, match=r"^teacher_tokenizer='.*stories260K' .* than that of .*gpt2-tokenizer, which"):
        refuse_unused_tokenizer(str(stories), both[:1], "teacher_tokenizer")
    own = AutoTokenizer.from_pretrained(gpt2)
    own.add_tokens(["<new>"])
    own.save_pretrained(saved)
    with pytest.raises(ValueError, match="1 of 50258 tokens have different ids"):
        same_tokenizer(load_tokenizer(saved), load_tokenizer(gpt2))
