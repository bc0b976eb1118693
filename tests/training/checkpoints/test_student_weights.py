"""What training left is what a resumed run, or the best checkpoint's loading, gives back: every tensor, or an error."""

import shutil
from importlib import metadata

import peft
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from text_toys import VOCAB, TokenRows
from torch import nn
from toys import CLASSES, Net, Rows, arguments
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BloomConfig,
    BloomForCausalLM,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.models import Peers, image_classifier, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft

CNN = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": CLASSES}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PATCHES = {"image_size": 8, "patch_size": 4, "num_labels": CLASSES} | LAYERS
WORDS = {"vocab_size": VOCAB, "max_position_embeddings": 32, "pad_token_id": 0} | LAYERS
GROUPED = {"num_key_value_heads": 1} | WORDS
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8} | GROUPED

IMAGES = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(**PATCHES)),
    "DeiT": lambda: DeiTForImageClassification(DeiTConfig(**PATCHES)),
    "BEiT": lambda: BeitForImageClassification(BeitConfig(use_relative_position_bias=True, **PATCHES)),
    "DINOv2": lambda: Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **PATCHES)),
    "ViTMSN": lambda: ViTMSNForImageClassification(ViTMSNConfig(**PATCHES)),
    "Swin": lambda: SwinForImageClassification(
        SwinConfig(
            image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, num_labels=CLASSES
        )
    ),
    "SegFormer": lambda: SegformerForImageClassification(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            num_labels=CLASSES,
        )
    ),
    "ConvNeXt": lambda: ConvNextForImageClassification(
        ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
    ),
    "ResNet": lambda: ResNetForImageClassification(ResNetConfig(**CNN)),
    "MobileNetV2": lambda: MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.1, min_depth=2, finegrained_output=False, num_labels=CLASSES)
    ),
    "timm": lambda: image_classifier("cifar_resnet8", CLASSES),
    "bare": lambda: Net(seed=int(torch.randint(99, ()))),
    "tied bare": lambda: Tied(),
    "wrapped": lambda: Wrapped(),
    "compiled": lambda: torch.compile(IMAGES["ViT"](), backend="eager"),
    "Peers": lambda: Peers([IMAGES["ViT"](), IMAGES["ViT"]()]),
}
TEXTS = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
    "OPT": lambda: OPTForCausalLM(
        OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **{k: v for k, v in WORDS.items() if k != "intermediate_size"})
    ),
    "BLOOM": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2)),
    "GPT-NeoX": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WORDS)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "Qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "Gemma": lambda: GemmaForCausalLM(GemmaConfig(head_dim=8, **GROUPED)),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=4, **EXPERTS)),
    "Qwen3-MoE": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=4, moe_intermediate_size=8, **EXPERTS)),
    "Jamba": lambda: JambaForCausalLM(
        JambaConfig(
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
            **GROUPED,
        )
    ),
}


class Tied(nn.Module):
    """Two layers with one matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()))


class Wrapped(nn.Module):
    """A user's module around a transformers model."""

    def __init__(self):
        super().__init__()
        self.network = IMAGES["ViT"]()

    def forward(self, x):
        return self.network(pixel_values=x).logits


def lora(**keywords):
    torch.manual_seed(0)  # a checkpoint has the adapters alone
    network = IMAGES["ViT"]()
    name = keywords.pop("adapter_name", "default")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], **keywords)
    return peft.get_peft_model(network, config, adapter_name=name)


def vera():
    if Version(metadata.version("peft")) < Version("0.21"):
        pytest.skip("earlier ones do not name the shared tensors, and such checkpoints are refused")
    torch.manual_seed(0)
    return peft.get_peft_model(IMAGES["ViT"](), peft.VeraConfig(target_modules=["q_proj", "v_proj"], r=4))


def native_lora():
    torch.manual_seed(0)
    network = IMAGES["ViT"]()
    network.add_adapter(peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    return network


ADAPTERS = {
    "LoRA": lora,
    "LoRA and head": lambda: lora(modules_to_save=["classifier"]),
    "LoRA and biases": lambda: lora(bias="all"),
    "VeRA, shared by the layers": lambda: vera(),
    "LoRA under a name": lambda: lora(adapter_name="student"),
    "adapters of transformers": native_lora,
}


def trainer(folder, student, tokens=False, **keywords):
    labels = {} if isinstance(student, Peers) else {"ce_weight": 1.0, "kd_weight": 0.0}
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "optim": "adamw_torch"}
    rows = (
        {"train_dataset": TokenRows(8), "data_collator": TokenCollator(0)}
        if tokens
        else {"train_dataset": Rows(64), "eval_dataset": Rows(8)}
    )
    more = {k: keywords.pop(k) for k in ("compute_metrics",) if k in keywords}
    return DistillationTrainer(student, None, arguments(folder, **(saving | labels | keywords)), **rows, **more)


def differing(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "compiled")) for n in [*IMAGES, *TEXTS, *ADAPTERS]]
)
def test_every_tensor_comes_back(tmp_path, name):
    make = (IMAGES | TEXTS | ADAPTERS)[name]
    first, second = trainer(tmp_path, make(), name in TEXTS), trainer(tmp_path, make(), name in TEXTS)
    assert differing(first.model, second.model) or name in ADAPTERS  # another draw of the same architecture
    first.train()
    second.train(resume_from_checkpoint=True)  # which has had all of its steps
    assert second.state.global_step == 1
    assert differing(first.model, second.model) == []


def prefix(**keywords):
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **keywords)
    return peft.get_peft_model(TEXTS["GPT-2"](), config)


@pytest.mark.filterwarnings("ignore:.past_key_values:FutureWarning")  # peft
def test_a_prompt_comes_back(tmp_path):
    first, second = (trainer(tmp_path, prefix(), tokens=True) for _ in range(2))
    first.train()
    second.train(resume_from_checkpoint=True)
    assert differing(first.model, second.model) == []
    assert differing(first.model, prefix())  # it has learned


@pytest.mark.filterwarnings("ignore:.past_key_values:FutureWarning")  # peft
def test_of_a_computed_prompt_training_does_not_go_on(tmp_path):
    first, second = (trainer(tmp_path, prefix(prefix_projection=True, encoder_hidden_size=4), True) for _ in range(2))
    first.train()
    with pytest.raises(ValueError, match=r"does not fit the student's adapter .*PEFT saves the result alone"):
        second.train(resume_from_checkpoint=True)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **keywords):
        control.should_training_stop = state.global_step == self.step


def test_a_resumed_vit_is_the_uninterrupted_one(tmp_path):
    def run(folder, stop=None, **resume):
        torch.manual_seed(0)
        made = trainer(tmp_path / folder, IMAGES["ViT"](), learning_rate=0.01, max_steps=6, save_steps=3)
        made.add_callback(StopAt(stop))
        made.train(**resume)
        return made.model

    whole = run("whole")
    run("cut", stop=3)
    assert differing(whole, run("cut", resume_from_checkpoint=True)) == []


@pytest.mark.parametrize("name", ["ViT", "LoRA under a name"])
def test_the_best_model_is_the_best_checkpoint(tmp_path, name):
    """The measure falls: the first of three checkpoints is the best."""
    falling = iter([3.0, 2.0, 1.0])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "falling", "greater_is_better": True}
    every = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3} | best
    make = (IMAGES | ADAPTERS)[name]
    trained = trainer(tmp_path, make(), compute_metrics=lambda _: {"falling": next(falling)}, **every)
    trained.train()
    assert trained.state.best_model_checkpoint.endswith("checkpoint-1")
    for step, same in ((1, True), (3, False)):
        shutil.copytree(tmp_path / f"checkpoint-{step}", tmp_path / str(step) / f"checkpoint-{step}")
        stored = trainer(tmp_path / str(step), make(), max_steps=step)
        stored.train(resume_from_checkpoint=True)
        assert (differing(stored.model, trained.model) == []) == same


def test_a_saved_compiled_student_is_a_plain_model(tmp_path):
    made = trainer(tmp_path, IMAGES["compiled"]())
    made.save_model(str(tmp_path / "saved"))
    loaded, missing = ViTForImageClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(missing.values())
    assert differing(made.model._orig_mod, loaded) == []


def test_a_model_that_was_loaded_comes_back_too(tmp_path):
    """transformers remembers how it converted the weights of a loaded model, and undoes the same when it saves."""
    for name, kind in (("ViT", ViTForImageClassification), ("Mixtral", MixtralForCausalLM)):
        (IMAGES | TEXTS)[name]().save_pretrained(tmp_path / "start" / name)
        pair = [
            trainer(tmp_path / name, kind.from_pretrained(tmp_path / "start" / name), name in TEXTS) for _ in range(2)
        ]
        pair[0].train()
        pair[1].train(resume_from_checkpoint=True)
        assert differing(pair[0].model, pair[1].model) == []


def test_weights_in_shards_come_back(tmp_path):
    """The experts of a Mixtral in two files, which are one tensor in the model."""
    first, second = (trainer(tmp_path, TEXTS["Mixtral"](), tokens=True) for _ in range(2))
    first.train()
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "files.json").unlink()
    first.model.save_pretrained(checkpoint, max_shard_size="8KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 2
    second.train(resume_from_checkpoint=str(checkpoint))
    assert differing(first.model, second.model) == []


HARM = {
    "missing": lambda weights: weights.pop("vit.embeddings.cls_token") and weights,
    "unexpected": lambda weights: weights | {"vit.embeddings.more": torch.zeros(1)},
    "wrong-shaped": lambda weights: weights | {"classifier.bias": torch.zeros(CLASSES + 1)},
}


@pytest.mark.parametrize("harm", HARM)
def test_what_does_not_fit_is_an_error_and_changes_nothing(tmp_path, harm):
    made = trainer(tmp_path, IMAGES["ViT"]())
    made.train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    if harm == "missing":
        weights = load_file(file)
        weights.pop("vit.embeddings.cls_token")
    else:
        weights = HARM[harm](load_file(file))
    (tmp_path / "checkpoint-1" / "files.json").unlink()
    save_file(weights, file, metadata={"format": "pt"})
    other = trainer(tmp_path, IMAGES["ViT"]())
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"does not fit ViTForImageClassification: 1 {harm}"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(before[name], tensor) for name, tensor in other.model.state_dict().items())


def of_unknown_run(checkpoint):
    """As plain Trainer's checkpoints: what run it is of is not recorded, so that its weights have to tell."""
    for name in ("files.json", "distillation.json"):
        (checkpoint / name).unlink()


@pytest.mark.parametrize(
    ("other", "fault"), [({"r": 4}, "size mismatch"), ({"modules_to_save": ["classifier"]}, "classifier")]
)
def test_an_adapter_with_other_settings_is_an_error(tmp_path, other, fault):
    trainer(tmp_path, lora()).train()
    of_unknown_run(tmp_path / "checkpoint-1")
    student = trainer(tmp_path / "other", lora(**other))
    with pytest.raises(ValueError, match=rf"does not fit the student's adapter 'default' .*{fault}"):
        student.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_without_weights_is_an_error(tmp_path):
    trainer(tmp_path, lora()).train()
    of_unknown_run(tmp_path / "checkpoint-1")
    whole = trainer(tmp_path / "other", IMAGES["ViT"]())
    with pytest.raises(ValueError, match=r"has no weights of the student"):
        whole.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_two_values_for_tied_weights_are_an_error(tmp_path):
    trainer(tmp_path, Tied()).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    (tmp_path / "checkpoint-1" / "files.json").unlink()
    save_file(weights | {"second.weight": weights["first.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"different values for first.weight and second.weight"):
        trainer(tmp_path, Tied()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def unfrozen_head():
    student = lora()
    student.base_model.model.classifier.requires_grad_(True)
    return student


def batch_norm():
    return peft.get_peft_model(IMAGES["ResNet"](), peft.LoraConfig(target_modules=["convolution"]))


@pytest.mark.parametrize(("student", "lost"), [(unfrozen_head, "classifier.weight"), (batch_norm, "running_mean")])
def test_what_a_checkpoint_of_adapters_would_lose_is_refused(tmp_path, student, lost):
    with pytest.raises(ValueError, match=rf"{lost}.*only the adapters are saved"):
        trainer(tmp_path, student())


def test_a_file_of_former_names_is_a_checkpoint_for_a_new_model(tmp_path):
    trained, fresh = IMAGES["ViT"](), IMAGES["ViT"]()
    trained.save_pretrained(tmp_path)
    load_checkpoint(fresh, tmp_path / "model.safetensors")
    assert differing(trained, fresh) == []
