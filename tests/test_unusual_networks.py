"""Networks that are no ordinary module of float weights: trained with, or refused by name."""

import numpy as np
import pytest
import task_toys
import timm
import torch
from accelerate import dispatch_model
from peft import PromptTuningConfig, TaskType, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from text_toys import language_model, taught_model, token_dataset
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import (
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2ImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother

from hfkd import DistillationTrainer
from hfkd.models import InputSpec
from hfkd.teachers import FrozenTeacher

TOKENS = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}] * 16


def trained(folder, student=None, taught=None, rows=None, args=None, **keywords):
    taught = teacher() if taught is None else taught
    rows = Rows() if rows is None else rows
    made = DistillationTrainer(
        Net() if student is None else student, taught, arguments(folder, **(args or {})), train_dataset=rows, **keywords
    )
    made.train()
    return made


class Normed(nn.Module):
    """Norms beside a convolution: under autocast their weights are met by inputs of another precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.batch, self.layer = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixel_values):
        return self.head(self.layer(self.batch(self.conv(pixel_values)).mean((2, 3))))


# ---- teachers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_under_autocast(tmp_path, dtype):
    made = trained(tmp_path, taught=Normed().to(dtype), args={"bf16": True})
    images = Rows().images[:4]
    with torch.autocast("cpu", torch.bfloat16):
        given = made.teacher(pixel_values=images)
    with torch.no_grad():
        torch.testing.assert_close(given.float(), Normed().eval()(images), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_in_half_precision_is_named(tmp_path, dtype):
    """The error was about the size of its images."""
    with pytest.raises(ValueError, match=r"cannot process the training images.* load it in float32"):
        trained(tmp_path, Net().to(dtype), args={"bf16": True})


def test_a_language_model_in_float16_under_autocast(tmp_path):
    trained(tmp_path, task_toys.gpt2(8), task_toys.gpt2(8).half(), TOKENS, {"bf16": True})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_teacher_of_torchscript_is_frozen_and_teaches_the_same(tmp_path):
    scripted = torch.jit.script(teacher())
    of_script = trained(tmp_path / "a", taught=scripted)
    plain = trained(tmp_path / "b")
    for one, other in zip(of_script.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert all(parameter.requires_grad for parameter in scripted.parameters()), "its owner's again"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_teacher_is_known_by_its_bytes(tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(teacher(), {nn.Linear}, dtype=torch.qint8)
    first = trained(tmp_path / "a", taught=quantized).record.teacher
    again = torch.ao.quantization.quantize_dynamic(teacher(), {nn.Linear}, dtype=torch.qint8)
    assert trained(tmp_path / "b", taught=again).record.teacher == first
    other = teacher()
    other.head.weight.data.mul_(2)
    other = torch.ao.quantization.quantize_dynamic(other, {nn.Linear}, dtype=torch.qint8)
    assert trained(tmp_path / "c", taught=other).record.teacher != first


def test_a_function_is_no_network(tmp_path):
    with pytest.raises(ValueError, match="the teacher is a function, not an nn.Module: wrap it"):
        trained(tmp_path, taught=lambda images: images)
    with pytest.raises(ValueError, match="the student is a function: pass an nn.Module, or the name"):
        DistillationTrainer(lambda images: images, teacher(), arguments(tmp_path), train_dataset=Rows())


def test_a_teacher_for_images_of_another_size_is_told_how_to_get_them(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=CLASSES))
    with pytest.raises(ValueError, match=r"cannot process the training images, which have the size \(8, 8\)"):
        trained(tmp_path, taught=vit)
    spec = InputSpec((0.0,) * 3, (1.0,) * 3, (16, 16))
    trained(tmp_path, taught=FrozenTeacher(vit, received=spec, wanted=spec))


def vit16(channels=3):
    """A ViT of timm for images of 16 pixels."""
    more = {"img_size": 16, "dynamic_img_size": False}
    return timm.create_model("test_vit", num_classes=CLASSES, in_chans=channels, **more)


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_images_of_other_channels_than_a_network_has_are_named(tmp_path, whose):
    rows = [{"pixel_values": torch.rand(4, 16, 16), "labels": i % CLASSES} for i in range(8)]
    student, taught = (vit16(3 if whose == name else 4) for name in ("student", "teacher"))
    said = rf"the {whose}, a VisionTransformer, cannot process the training images, .* \(16, 16\) and 4 channels \("
    with pytest.raises(ValueError, match=said):
        trained(tmp_path, student, taught, rows)


def test_images_of_another_size_than_a_student_has_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"size \(8, 8\) \(Input height \(8\).*\): resize them in .*img_size="):
        trained(tmp_path, vit16())


def test_heads_that_are_averaged_in_evaluation_alone_are_refused(tmp_path):
    """DeiT's: the first would be trained, and the mean with the other one, which is not, be evaluated."""
    deit = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, img_size=16, depth=1)
    rows = [{"pixel_values": torch.rand(3, 16, 16), "labels": i % CLASSES} for i in range(8)]
    deit.set_distilled_training(True)
    with pytest.raises(ValueError, match=r"logits of two heads in .* Call its set_distilled_training\(False\)"):
        trained(tmp_path, deit, rows=rows)
    deit.set_distilled_training(False)
    trained(tmp_path, deit, rows=rows)


@pytest.mark.parametrize("student_channels", [1, 3])
def test_a_teacher_of_other_channels_gets_grey_or_coloured_images(tmp_path, caplog, student_channels):
    """Repeated for one that is of colours, averaged for one that is grey."""

    def of(channels, width):
        torch.manual_seed(width)
        return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, CLASSES))

    images = Rows().images[:, :student_channels]
    rows = [{"pixel_values": image, "labels": i % CLASSES} for i, image in enumerate(images)]
    taught = of(4 - student_channels, 8)
    made = trained(tmp_path, of(student_channels, 4), taught, rows)
    expected = images.expand(-1, 3, -1, -1) if student_channels == 1 else images.mean(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(made.teacher(pixel_values=images), taught(expected))
    assert ("repeated" if student_channels == 1 else "averaged") in caplog.text


class Grey(Rows):
    """Rows of as many channels as asked for, in a size that a deep network takes."""

    def __init__(self, channels):
        super().__init__(8, size=32)
        self.images = self.images[:, :channels]


@pytest.mark.filterwarnings("ignore:The teacher was trained on images of mean:UserWarning")
@pytest.mark.parametrize(("student_channels", "teacher_channels"), [(1, 1), (1, 3), (3, 1)])
def test_each_timm_network_gets_its_own_statistics_in_its_own_channels(tmp_path, student_channels, teacher_channels):
    """A network of one channel that names those of pictures in colour is given their mean; MNIST's are its own."""
    mnist = {"mean": (0.1307,), "std": (0.3081,)} if teacher_channels == 1 else {}
    networks = [
        timm.create_model("resnet10t", num_classes=CLASSES, in_chans=channels, pretrained_cfg_overlay=more)
        for channels, more in ((student_channels, {}), (teacher_channels, mnist))
    ]
    made = trained(tmp_path, *networks, Grey(student_channels), args={"max_steps": 1})
    images = Grey(student_channels).images
    colours = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    mine = colours if student_channels == 3 else colours.mean(1, keepdim=True)
    its = torch.tensor([[0.1307], [0.3081]]) if mnist else colours
    pixels = images * mine[1].view(-1, 1, 1) + mine[0].view(-1, 1, 1)
    pixels = pixels.mean(1, keepdim=True) if teacher_channels == 1 else pixels.expand(-1, 3, -1, -1)
    networks[1].eval()
    with torch.no_grad():
        expected = networks[1]((pixels - its[0].view(-1, 1, 1)) / its[1].view(-1, 1, 1))
        torch.testing.assert_close(made.teacher(pixel_values=images), expected, rtol=1e-4, atol=1e-5)


def naflex(seed):
    """A SigLIP 2 classifier, which takes patches, a mask of those that there are, and their numbers."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**sizes, "patch_size": 8, "num_patches": 16}
    text = {**sizes, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    return Siglip2ForImageClassification(Siglip2Config(vision_config=vision, text_config=text, num_labels=3))


def test_all_that_an_image_processor_makes_reaches_the_networks(tmp_path):
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 24, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture[:, : 12 + 4 * i]) for i, picture in enumerate(pixels)]
    rows = [{"pixel_values": picture, "labels": i % 3} for i, picture in enumerate(pictures)]
    settings = arguments(tmp_path, max_steps=1, per_device_train_batch_size=2)
    more = {"train_dataset": rows, "eval_dataset": rows, "processing_class": processor}
    trainer = DistillationTrainer(naflex(0), naflex(1), settings, **more)
    with torch.no_grad():
        right = naflex(1).eval()(**processor(pictures, return_tensors="pt")).logits
    torch.testing.assert_close(trainer.teacher(**trainer.data_collator(rows)), right, rtol=1e-4, atol=1e-4)
    trainer.train()
    assert trainer.predict(rows).predictions.shape == (4, 3)


def test_patches_are_not_made_a_teachers_own(tmp_path):
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    rows = [{"pixel_values": Image.new("RGB", (24, 24)), "labels": i % 3} for i in range(4)]
    teacher = FrozenTeacher(naflex(1), wanted=InputSpec((0.1,) * 3, (0.2,) * 3, None))
    with pytest.raises(ValueError, match=r"\(2, 16, 192\), cut into patches, cannot be re-normalised"):
        DistillationTrainer(naflex(0), teacher, arguments(tmp_path), train_dataset=rows, processing_class=processor)


def test_classes_that_a_teacher_masks_are_named(tmp_path):
    masked = teacher()
    masked.head.bias.data[2] = float("-inf")
    with pytest.raises(ValueError, match="the teacher's logits are -inf for some classes"):
        trained(tmp_path, taught=masked)


# ---- students ---------------------------------------------------------------------------------------------------


class Returning(Net):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, pixel_values, labels=None):
        return self.make(super().forward(pixel_values))


RETURNED = {
    "dict": lambda logits: {"logits": logits},
    "tuple": lambda logits: (logits, logits.exp()),
    "output": lambda logits: ImageClassifierOutput(logits=logits),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_logits_in_a_dict_a_tuple_or_an_output(tmp_path, kind):
    made, plain = trained(tmp_path / "a", Returning(RETURNED[kind])), trained(tmp_path / "b")
    for one, other in zip(made.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    predictions = made.predict(Rows(13)).predictions
    logits = predictions[0] if kind == "tuple" else predictions
    assert logits.shape == (13, CLASSES)


def test_a_network_without_logits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="returned a dict without logits"):
        trained(tmp_path, Returning(lambda logits: {"scores": logits}))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_compiled_student_is_saved_as_itself(tmp_path, channels_last):
    args = {"channels_last": channels_last, "save_strategy": "steps", "save_steps": 3}
    trained(tmp_path, torch.compile(Net(), backend="eager"), args=args)
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert saved.keys() == Net().state_dict().keys()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, pixel_values):
        return self.head(self.second(self.first(pixel_values.flatten(1))))


def test_a_student_with_shared_tensors_is_saved_and_resumed(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 2}
    trained(tmp_path, Tied(), args=args)
    again = DistillationTrainer(Tied(), teacher(), arguments(tmp_path, **args), train_dataset=Rows())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.model.second.weight is again.model.first.weight


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, pixel_values):
        return self.head(self.norm(self.body(pixel_values.flatten(1))))


def test_a_last_batch_of_one_row_and_batch_norm(tmp_path):
    args = {"max_steps": -1, "num_train_epochs": 1}
    with pytest.raises(ValueError, match="17 rows in batches of 8 leave a last batch of one"):
        trained(tmp_path, Batched(), rows=Rows(17), args=args)
    assert (
        trained(tmp_path, Batched(), rows=Rows(17), args=args | {"dataloader_drop_last": True}).state.global_step == 2
    )
    assert trained(tmp_path / "before", Batched(), rows=Rows(17), args={"max_steps": 2}).state.global_step == 2
    trained(tmp_path / "maps", nn.Sequential(nn.BatchNorm2d(3), Net()), rows=Rows(17), args=args)


class Behind(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *arguments, **keywords):
        return self.network(*arguments, **keywords)


def test_a_network_behind_a_forward_that_hands_on_everything(tmp_path):
    made = trained(tmp_path / "a", Behind(task_toys.gpt2(8)), task_toys.gpt2(8), TOKENS)
    assert made.task.name == "causal_lm"
    images, plain = trained(tmp_path / "b", Behind(Net())), trained(tmp_path / "c")
    for one, other in zip(images.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prompts_that_lengthen_the_rows_are_refused(tmp_path):
    tuning = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    with pytest.raises(ValueError, match="the student's PROMPT_TUNING prepends virtual tokens to each row"):
        trained(tmp_path, task_toys.gpt2(8), task_toys.gpt2(8), TOKENS, peft_config=tuning)
    with pytest.raises(ValueError, match="the teacher's PROMPT_TUNING prepends virtual tokens to each row"):
        trained(tmp_path, task_toys.gpt2(8), get_peft_model(task_toys.gpt2(8), tuning), TOKENS)


PARTS = ("transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h", "transformer.ln_f", "lm_head")


def spread(network, folder, parts=PARTS):
    """As from_pretrained(device_map="auto") loads a network that is too large: some weights come when they are read."""
    devices = {part: "cpu" if number % 2 else "disk" for number, part in enumerate(parts)}
    return dispatch_model(network, devices, offload_dir=str(folder))


@pytest.mark.parametrize("keywords", [{}, {"args": {"seq_kd": True, "on_policy_max_new_tokens": 3}}, {"several": True}])
def test_a_teacher_that_is_spread_over_devices(tmp_path, keywords):
    rows, several = token_dataset(), keywords.pop("several", False)

    def of(name, made):
        network = made(taught_model(), tmp_path / "offloaded")
        taught = [network, taught_model(12)] if several else network
        return trained(tmp_path / name, language_model(), taught, rows, **keywords)

    plain, elsewhere = of("a", lambda network, folder: network), of("b", spread)
    assert any(parameter.is_meta for network in elsewhere.teacher.networks for parameter in network.parameters())
    assert elsewhere.record.teacher.split("weights")[1:] == plain.record.teacher.split("weights")[1:]
    for one, other in zip(elsewhere.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_image_teacher_that_is_spread_over_devices(tmp_path):
    made = trained(tmp_path / "a", taught=spread(teacher(), tmp_path, ("conv", "head")))
    for one, other in zip(made.model.parameters(), trained(tmp_path / "b").model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("keywords", [{"args": {"loss_chunk_size": 8}}, {"objective": "hidden_mse"}])
def test_what_needs_the_layers_of_a_spread_teacher_is_refused(tmp_path, keywords):
    with pytest.raises(ValueError, match=r"spread over devices \(device_map\), which is not supported with"):
        trained(tmp_path, language_model(), spread(taught_model(), tmp_path), token_dataset(), **keywords)


class AlwaysDropping(Net):
    """Dropout as it is often written by mistake: F.dropout does not know of eval mode."""

    def forward(self, x):
        return self.head(nn.functional.dropout(torch.relu(self.conv(x)).mean((2, 3)), 0.5))


class Drawing(Net):
    """Draws random numbers in eval mode too, without an effect there."""

    def forward(self, x):
        dropped = torch.rand(()) < 0.5
        return super().forward(x * 0 if dropped and self.training else x)


def test_networks_that_are_random_in_eval_mode_are_said(tmp_path, caplog):
    args = {"evaluate_teacher": False}
    trained(tmp_path / "a", AlwaysDropping(), args=args)
    assert "The student's logits of the same rows differ from call to call in eval mode (AlwaysD" in caplog.text
    assert "its evaluations and predictions are random" in caplog.text
    caplog.clear()
    trained(tmp_path / "b", taught=AlwaysDropping(), args=args)
    assert "The teacher's logits of the same rows differ" in caplog.text
    caplog.clear()
    trained(tmp_path / "c", Drawing(), Drawing(16), args=args)
    assert "differ from call to call" not in caplog.text


def smoothed_step(made, kd_weight=0.0):
    """Compare with plain PyTorch, in one step on the whole set: labels smoothed by 0.1."""
    student, rows = Net(), Rows()
    logits, taught = student(rows.images), teacher()(rows.images)
    loss = nn.functional.cross_entropy(logits, rows.labels, label_smoothing=0.1)
    soft = [torch.log_softmax(one / 4, -1) for one in (logits, taught)]
    loss = loss + kd_weight * 16 * nn.functional.kl_div(*soft, log_target=True, reduction="batchmean")
    loss.backward()
    for mine, theirs in zip(student.parameters(), made.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine - 0.1 * mine.grad, rtol=0, atol=1e-6)


def test_label_smoothing_of_the_label_term(tmp_path):
    args = {"label_smoothing_factor": 0.1, "max_steps": 1, "per_device_train_batch_size": 32}
    smoothed_step(trained(tmp_path, args=args | {"ce_weight": 1.0, "kd_weight": 0.0}))


class Smoothing(DistillationTrainer):
    """A label smoother of one's own, as Trainer's subclasses set it."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.label_smoother = LabelSmoother(0.1)


@pytest.mark.parametrize(("size", "parts", "kd_weight"), [(32, 1, 0.0), (32, 1, 0.5), (8, 4, 0.5)])
def test_a_label_smoother_of_ones_own_is_the_label_term(tmp_path, size, parts, kd_weight):
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
    args = arguments(tmp_path, **sizes, ce_weight=1.0, kd_weight=kd_weight)
    made = Smoothing(Net(), teacher(), args, train_dataset=Rows())
    made.train()
    smoothed_step(made, kd_weight)


def test_a_label_smoother_of_a_language_model_gets_shifted_labels(tmp_path):
    def step(kind, folder, **more):
        args = arguments(tmp_path / folder, max_steps=1, ce_weight=1.0, kd_weight=0.5, **more)
        torch.manual_seed(0)
        made = kind(task_toys.gpt2(8), task_toys.gpt2(8), args, train_dataset=TOKENS)
        made.train()
        return made.model

    mine, ours = step(Smoothing, "a"), step(DistillationTrainer, "b", label_smoothing_factor=0.1)
    for one, other in zip(mine.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="a custom label_smoother needs one student's whole logits"):
        step(Smoothing, "c", loss_chunk_size=4)
    assert not list((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: vars(made.args).update(temperature="2.0"), "args.temperature was set to '2.0' after"),
        (lambda made: vars(made.args).update(kd_weight=0.5), "args.kd_weight was set to 0.5 after"),
        (lambda made: vars(made).update(compute_loss_func=lambda *given: 0), "compute_loss_func would replace"),
    ],
)
def test_what_is_set_too_late_is_refused(tmp_path, change, message):
    made = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    change(made)
    with pytest.raises(ValueError, match=message):
        made.train()
