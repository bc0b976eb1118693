"""A student's base model as its teacher: the same weights in memory, and the network from before its adapters."""

from copy import deepcopy
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from teacher_prompt_toys import rows as prompt_rows
from text_toys import TokenRows, taught_model, tokenizer
from toys import Rows, arguments
from transformers import LlamaConfig, LlamaForCausalLM

from hfkd import DistillationTrainer
from hfkd.models import image_classifier, without_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]
IDS = torch.arange(3, 11)[None]
LORA = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
KINDS = {
    "LoRA": LoraConfig(**LORA),
    "DoRA": LoraConfig(**LORA, use_dora=True),
    "a start of its own": LoraConfig(**LORA, init_lora_weights="gaussian"),
    "a head that trains": LoraConfig(**LORA, modules_to_save=["ln_f"]),
    "new tokens": LoraConfig(**LORA, trainable_token_indices=[3, 5]),
    "parameters": LoraConfig(target_modules=[], target_parameters=["c_fc.weight"]),
    "IA3": IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True),
    "LoHa": LoHaConfig(target_modules=["mlp.c_fc"]),
    "OFT": OFTConfig(target_modules=["lm_head"], r=0, oft_block_size=4),
    "VeRA": VeraConfig(target_modules=["lm_head"]),
    "norms": LNTuningConfig(target_modules=["ln_1"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def moved(student):
    """The student with other adapters than those it started with."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return student


def trained(student, teacher, folder, **keywords):
    given = {"train_dataset": TokenRows(), "processing_class": tokenizer()} | keywords
    trainer = DistillationTrainer(student, teacher, arguments(folder, max_steps=4), **given)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_network_from_before_the_adapters(name):
    base = taught_model().eval()
    if name == "LoHa":  # is made for linear layers
        base.transformer.h[0].mlp.c_fc = torch.nn.Linear(24, 96)
    expected = base(input_ids=IDS).logits
    student = moved(get_peft_model(deepcopy(base), KINDS[name])).eval()
    assert not torch.allclose(student(input_ids=IDS).logits[:, -8:], expected, atol=1e-3)
    teacher = without_adapters(student)
    assert type(teacher) is type(base)
    assert torch.equal(teacher.eval()(input_ids=IDS).logits, expected)
    assert teacher.state_dict().keys() == base.state_dict().keys()
    own = {parameter.data_ptr() for parameter in student.parameters()}
    assert {parameter.data_ptr() for parameter in teacher.parameters()} <= own
    assert not {id(module) for module in teacher.modules()} & {id(module) for module in student.modules()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_student_learns_as_from_another_copy_of_the_model(tmp_path):
    """Bit for bit, with the teacher's own prompts, from which alone there is anything to learn."""
    data = prompt_rows()
    students = []
    for number, shared in enumerate((True, False)):
        torch.manual_seed(0)
        student = get_peft_model(taught_model(), LoraConfig(**LORA))
        before = deepcopy(student.state_dict())
        teacher = without_adapters(student) if shared else taught_model()
        trained(student, teacher, tmp_path / str(number), train_dataset=data, ce_weight=0.0, kd_weight=1.0)
        after = student.state_dict()
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed
        assert all("lora_" in name for name in changed)
        students.append(after)
    torch.testing.assert_close(*students, rtol=0, atol=0)


def test_a_student_that_gets_its_adapters_from_the_trainer(tmp_path):
    base = taught_model()
    teacher = without_adapters(base)
    expected = taught_model().eval()(input_ids=IDS).logits
    more = {"ce_weight": 1.0, "kd_weight": 1.0, "peft_config": LoraConfig(**LORA)}
    trainer = trained(base, teacher, tmp_path, **more)
    assert not torch.equal(trainer.model.eval()(input_ids=IDS).logits, expected)
    assert torch.equal(teacher(input_ids=IDS).logits, expected)


class Around(torch.nn.Module):
    """A network of one's own with a model that has adapters."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids)


@pytest.mark.parametrize("config", [KINDS["LoRA"], KINDS["prompt"]])
def test_adapters_in_a_part_of_the_student(config):
    base = taught_model().eval()
    student = Around(moved(get_peft_model(deepcopy(base), config))).eval()
    assert torch.equal(without_adapters(student).eval()(IDS).logits, base(input_ids=IDS).logits)


def test_a_part_of_the_student_that_is_not_as_it_was():
    student = Around(get_peft_model(taught_model(), LoraConfig(**LORA, init_lora_weights="pissa")))
    with pytest.raises(ValueError, match="init_lora_weights='pissa' changes the base model"):
        without_adapters(student)


class InEightBits(torch.nn.Linear):
    """As bitsandbytes has it: weights and scales move from the parameter into `state` when it first runs."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.weight.requires_grad_(False)
        self.state = SimpleNamespace(CB=None, SCB=None, threshold=6.0)
        self.weight.SCB = self.weight.abs().max(1, keepdim=True).values / 127
        self.weight.data = (self.weight / self.weight.SCB).round()
        self.weight.CB = self.weight.data

    def init_8bit_state(self):
        self.state.CB, self.state.SCB = self.weight.CB, self.weight.SCB
        self.weight.CB = self.weight.SCB = None

    def forward(self, x):
        if self.weight.CB is not None:
            self.init_8bit_state()
        if self.state.CB is None:
            self.state.CB, self.state.SCB = self.weight.data, 1.0
        return x @ (self.state.CB * self.state.SCB).T


@pytest.mark.parametrize("first", ["student", "teacher"])
def test_layers_in_eight_bits(first):
    torch.manual_seed(0)
    base, x = torch.nn.Sequential(InEightBits(8), torch.nn.Linear(8, 8)), torch.rand(2, 8)
    weights = base[0].weight
    expected = torch.nn.functional.linear(x, weights.CB * weights.SCB)
    student = moved(get_peft_model(base, LoraConfig(target_modules=["1"])))
    teacher = without_adapters(student)
    for one in (student, teacher) if first == "student" else (teacher, student):
        one(x)
    assert torch.equal(teacher[0](x), expected)
    assert torch.equal(student.base_model.model[0](x), expected)
    assert teacher[0].state.CB is student.base_model.model[0].state.CB


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(**LORA, init_lora_weights="pissa"), r"init_lora_weights='pissa' of peft_config changes"),
        (LoraConfig(**LORA, bias="all"), r"the teacher shares .*bias.* with the student, and would change"),
    ],
)
def test_adapters_from_the_trainer_that_would_change_the_teacher(config, message, tmp_path):
    base = taught_model()
    with pytest.raises(ValueError, match=message):
        trained(base, without_adapters(base), tmp_path, peft_config=config)
    assert trained(taught_model(), taught_model(), tmp_path, peft_config=config)  # a teacher of its own


def test_a_student_that_trains_as_a_whole_is_refused(tmp_path):
    student = taught_model()
    with pytest.raises(ValueError, match=r"the teacher shares .* with the student, and would change in training"):
        DistillationTrainer(student, without_adapters(student), arguments(tmp_path), train_dataset=TokenRows())


def test_adapters_that_were_put_into_a_model():
    base = taught_model().eval()
    expected = base(input_ids=IDS).logits
    student = moved(inject_adapter_in_model(LoraConfig(**LORA), deepcopy(base))).eval()
    assert not torch.equal(student(input_ids=IDS).logits, expected)
    assert torch.equal(without_adapters(student).eval()(input_ids=IDS).logits, expected)


def test_running_statistics_stay_those_of_the_start(tmp_path):
    """Batch norms of the student go on in training; those of its teacher do not."""
    torch.manual_seed(0)
    base = image_classifier("cifar_resnet8", 5)
    student = get_peft_model(base, LoraConfig(target_modules=["fc"], modules_to_save=["bn1", "bn2", "downsample.1"]))
    teacher = without_adapters(student)
    before = deepcopy(teacher.state_dict())
    args = arguments(tmp_path, max_steps=3)
    DistillationTrainer(student, teacher, args, train_dataset=Rows()).train()
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    after = student.state_dict()
    running = [name for name in after if name.endswith("modules_to_save.default.running_mean")]
    assert running
    assert not any(
        torch.equal(after[n], after[n.replace("modules_to_save.default", "original_module")]) for n in running
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(**LORA, init_lora_weights="pissa"), r"init_lora_weights='pissa' changes the base model"),
        (LoraConfig(**LORA, init_lora_weights="olora"), r"init_lora_weights='olora' changes the base model"),
        (LoraConfig(**LORA, bias="all"), r"train together with the adapters, and the teacher would change"),
    ],
)
def test_a_base_that_is_not_as_it_was_is_refused(config, message):
    student = get_peft_model(taught_model(), config)
    with pytest.raises(ValueError, match=message):
        without_adapters(student)


def test_a_base_that_kasa_has_truncated_is_refused():
    if not hasattr(peft, "KasaConfig"):
        pytest.skip("this version of PEFT has no KaSA")
    student = get_peft_model(taught_model(), LoraConfig(target_modules=["lm_head"], r=4, kasa_config=peft.KasaConfig()))
    with pytest.raises(ValueError, match="kasa_config changes the base model"):
        without_adapters(student)


def test_merged_adapters_are_refused():
    student = moved(get_peft_model(taught_model(), LoraConfig(**LORA)))
    student.merge_adapter()
    with pytest.raises(ValueError, match=r"are merged into its weights \(.*c_attn\): call unmerge_adapter"):
        without_adapters(student)
    student.unmerge_adapter()
    assert without_adapters(student)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # puts its prompts into the attention itself, where no wrapper shows them
        (AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"), "train together with the adapt"),
        (
            LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)]),
            "layer_replication changes the base",
        ),
    ],
)
def test_parts_that_stay_in_the_model_are_refused(config, message):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
    base = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=2))
    with pytest.raises(ValueError, match=message):
        without_adapters(get_peft_model(base, config))
