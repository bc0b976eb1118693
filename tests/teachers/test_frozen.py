"""A frozen network in its own normalisation and size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from toys import Net
from transformers import ViTConfig, ViTForImageClassification

from hfkd.data.transforms import CIFAR_MEAN, CIFAR_STD, ImageTransform, pack_pixels
from hfkd.models import InputSpec, image_classifier, input_spec
from hfkd.teachers import FrozenTeacher, place

CIFAR = InputSpec(CIFAR_MEAN, CIFAR_STD, None)
IMAGENET = InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None)


class Seen(nn.Module):
    """Gives back the images it got."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.weight


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.drop(self.norm(x).mean((2, 3))))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return image_classifier("vit_tiny_patch16_224", 10)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def test_renormalising_is_normalising_the_original_for_the_teacher():
    """Through real augmentation, so that black padding is there too."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 12, 10, 3), dtype=np.uint8)
    pixels[::2, :, ::3] = 0
    batch = {"pixels": [pack_pixels(p) for p in pixels], "labels": [0] * 64, "index": list(range(64))}
    student = ImageTransform(CIFAR.mean, CIFAR.std, augment=True, seed=5)(batch)["pixel_values"]
    expected = ImageTransform(IMAGENET.mean, IMAGENET.std, augment=True, seed=5)(batch)["pixel_values"]
    seen = FrozenTeacher(Seen(), received=CIFAR, wanted=IMAGENET)(pixel_values=student)
    assert (expected[:, :, 0] == expected[0, :, 0, 0].view(3, 1)).any(), "no padding in this test"
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)
    assert (student - expected).abs().max() > 0.1


@pytest.mark.parametrize(("received", "wanted"), [(None, IMAGENET), (CIFAR, None), (CIFAR, CIFAR), (None, None)])
def test_images_are_left_alone_where_there_is_nothing_to_change(received, wanted):
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(FrozenTeacher(Seen(), received, wanted)(pixel_values=images), images)


def test_grey_images_become_the_colour_a_teacher_wants():
    grey = torch.rand(2, 1, 4, 4)
    seen = FrozenTeacher(Seen(), InputSpec((0.1,), (0.3,), None), IMAGENET)(pixel_values=(grey - 0.1) / 0.3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(seen, (grey.expand(2, 3, 4, 4) - mean) / std, rtol=0, atol=1e-6)


def test_resizing_comes_after_renormalising_and_only_where_a_size_is_wanted():
    images = torch.randn(2, 3, 8, 8)
    wanted = InputSpec(IMAGENET.mean, IMAGENET.std, (20, 12))
    renormalised = FrozenTeacher(Seen(), CIFAR, IMAGENET)(pixel_values=images)
    expected = nn.functional.interpolate(renormalised, size=(20, 12), mode="bicubic", antialias=True)
    assert torch.equal(FrozenTeacher(Seen(), CIFAR, wanted)(pixel_values=images), expected)
    fitting = torch.randn(2, 3, 20, 12)
    assert torch.equal(FrozenTeacher(Seen(), None, wanted)(pixel_values=fitting), fitting)


def test_a_vision_transformer_of_fixed_size_teaches_a_student_of_32_pixels(vit):
    spec = input_spec(vit)
    assert spec.size == (224, 224)
    images = torch.randn(2, 3, 32, 32)
    live = FrozenTeacher(vit, received=CIFAR)
    have, want = ([torch.tensor(v).view(3, 1, 1) for v in (s.mean, s.std)] for s in (CIFAR, spec))
    original = images * have[1] + have[0]
    large = nn.functional.interpolate((original - want[0]) / want[1], size=(224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = vit(pixel_values=large).logits
    got = live(pixel_values=images, labels=torch.tensor([1, 2]), index=torch.tensor([0, 1]))
    assert got.shape == (2, 10)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


# ---- frozen ----------------------------------------------------------------------------------------------------------


def test_it_stays_in_eval_whoever_says_train():
    live = FrozenTeacher(Noisy().train())
    assert not any(m.training for m in live.modules())
    owner = nn.ModuleDict({"student": Net(), "teacher": live})
    images = torch.randn(4, 3, 6, 6)
    before = {k: v.clone() for k, v in live.model.state_dict().items()}
    logits = live(pixel_values=images)
    for train in (owner.train, live.train, lambda: live.train(True)):
        train()
        assert owner["student"].training
        assert not any(m.training for m in live.modules())
        assert torch.equal(live(pixel_values=images), logits)
    assert all(torch.equal(v, before[k]) for k, v in live.model.state_dict().items())


def test_no_gradient_reaches_it_or_passes_through_it():
    live = FrozenTeacher(Net())
    assert not any(p.requires_grad for p in live.parameters())
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    logits = live(pixel_values=images)
    assert not logits.requires_grad
    (logits.sum() + images.sum()).backward()
    assert torch.equal(images.grad, torch.ones_like(images))
    assert all(p.grad is None for p in live.parameters())


def test_the_weights_alone_are_its_state():
    live = FrozenTeacher(Net(), CIFAR, IMAGENET)
    assert set(live.state_dict()) == {f"model.{name}" for name in Net().state_dict()}


# ---- any network -----------------------------------------------------------------------------------------------------


def wrapped(x):
    net = Net()

    class Answer(nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=net(x))

    return Answer(), net(x)


def hub_model(x):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5)).eval()
    return model, model(pixel_values=x).logits


def timm_model(x):
    model = image_classifier("cifar_resnet20", 5)
    return model.timm_model, model(pixel_values=x).logits


def bare_module(x):
    return Net(), Net()(x)


@pytest.mark.parametrize("build", [wrapped, hub_model, timm_model, bare_module])
def test_any_network_that_gives_logits(build):
    images = torch.randn(3, 3, 8, 8)
    model, expected = build(images)
    got = FrozenTeacher(model)(pixel_values=images, labels=torch.tensor([1, 2, 3]), index=torch.tensor([7, 8, 9]))
    assert got.shape == (3, 5)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_teacher_in_another_precision_gets_its_own(dtype):
    images = torch.randn(2, 3, 8, 8)
    assert FrozenTeacher(Net().to(dtype), CIFAR, IMAGENET)(pixel_values=images).dtype == dtype


def test_a_network_without_logits_is_said():
    class Pair(nn.Module):
        def forward(self, x):
            return "logits", x

    with pytest.raises(ValueError, match="the model returned a tuple without logits"):
        FrozenTeacher(Pair())(pixel_values=torch.zeros(1, 3, 4, 4))


# ---- placed ----------------------------------------------------------------------------------------------------------


def test_placing_keeps_it_out_of_checkpoints_and_in_eval(tmp_path):
    accelerator, student = Accelerator(cpu=True), Net(6)
    accelerator.prepare_model(student)
    live = FrozenTeacher(Net())
    placed = place(live, accelerator)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(placed(pixel_values=images), Net()(images))
    assert not placed.train().training
    accelerator.save_state(tmp_path)
    saved = [load_file(file) for file in tmp_path.glob("*.safetensors")]
    assert [s["head.weight"].shape for s in saved] == [student.head.weight.shape]


def test_zero_3_is_refused():
    accelerator = SimpleNamespace(
        distributed_type="DEEPSPEED", deepspeed_plugin=SimpleNamespace(zero_stage=3), prepare_model=pytest.fail
    )
    with pytest.raises(ValueError, match="DeepSpeed ZeRO stage 3 is not supported: .*; use stage 2, or FSDP"):
        place(FrozenTeacher(Net()), accelerator)
