"""The image recipe on data other than CIFAR: transformers as teachers, folders of photographs, streams, HE-DA."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from datasets import load_dataset
from PIL import Image

from hfkd.models import InputSpec, image_classifier
from hfkd.teachers import FrozenTeacher

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs"


@pytest.fixture(scope="module")
def photos(data_dir, tmp_path_factory):
    """Ten photographs of either of two classes for training, four for testing, at 64x64."""
    root = tmp_path_factory.mktemp("photos")
    rows = load_dataset(str(data_dir / "cifar100"), split="train").select(range(28))
    for i, row in enumerate(rows):
        path = root / ("train" if i < 20 else "test") / ("bear", "fox")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["img"].resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """timm's smallest ViT, which takes 160x160 and nothing else, saved as a user's fine-tuned teacher is."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    image_classifier("test_vit", 2, label_names=["bear", "fox"]).save_pretrained(folder)
    return folder


def run(monkeypatch, photos, output, *flags, recipe="cifar100_energy_kd.py"):
    settings = {"dataset_name": photos, "output_dir": output, "max_steps": 3, "per_device_train_batch_size": 8}
    settings |= {"test_split": "test", "dataloader_num_workers": 0, "bf16": False, "report_to": "none"}
    settings |= {"disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no", "scan_cache_dir": ""}
    settings |= {"logging_strategy": "steps", "logging_steps": 1, "dataloader_pin_memory": False}
    given = [f"--{name}={value}" for name, value in settings.items()]
    monkeypatch.setattr(sys, "argv", ["recipe", *given, "--use_cpu", *map(str, flags)])
    runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    return json.loads((output / "results.json").read_text())


def test_a_vision_transformer_teaches_a_cnn_at_its_own_size(monkeypatch, photos, transformer, tmp_path):
    config = CONFIGS / "tiny_imagenet.yaml"
    flags = (f"--config={config}", f"--teacher_name={transformer}", "--student_name=cifar_resnet20")
    results = run(monkeypatch, photos, tmp_path / "run", *flags, "--weighting=entropy(temperature=2.0)")
    assert results["status"] == "finished"
    assert "test_vit" in results["config"]["teacher"]
    assert "temperature=2.0" in results["config"]["weighting"]
    student = json.loads((tmp_path / "run" / "config.json").read_text())
    assert student["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]


def test_a_transformer_of_other_classes_becomes_a_teacher(monkeypatch, photos, tmp_path):
    image_classifier("test_vit", 5).save_pretrained(tmp_path / "five")
    flags = (f"--network_name={tmp_path / 'five'}", "--resized_crop", "--image_size=160", "--max_steps=1")
    with pytest.raises(ValueError, match="new_head=True"):
        run(monkeypatch, photos, tmp_path / "run", *flags, recipe="train_teacher.py")
    run(monkeypatch, photos, tmp_path / "run", *flags, "--new_head", recipe="train_teacher.py")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["num_classes"], saved["label_names"]) == (2, ["bear", "fox"])


def test_imagenets_crops(monkeypatch, photos, transformer, tmp_path):
    flags = (f"--teacher_name={transformer}", "--student_name=cifar_resnet20", "--image_size=32")
    results = run(monkeypatch, photos, tmp_path / "run", f"--config={CONFIGS / 'imagenet.yaml'}", *flags)
    assert results["status"] == "finished"
    assert results["config"]["resized_crop"] is True


def test_a_stream_trains_and_is_scored(monkeypatch, photos, transformer, tmp_path):
    config = tmp_path / "stream.yaml"
    text = (CONFIGS / "imagenet.yaml").read_text().replace("[30, 60, 90]", "null")  # a folder does not say its length
    config.write_text(text + "streaming: true\nshuffle_buffer: 8\n")
    flags = (f"--teacher_name={transformer}", "--student_name=cifar_resnet20", "--image_size=32", "--max_steps=5")
    evaluation = ("--eval_strategy=steps", "--eval_steps=5")
    results = run(monkeypatch, photos, tmp_path / "run", f"--config={config}", *flags, *evaluation)
    assert results["status"] == "finished"
    assert results["train_steps"] == 5, "20 images are two steps of 8 and one of 4: the stream is read again"
    assert 0 <= results["last"]["accuracy"] <= 1


def test_he_da_reports_what_it_adds(monkeypatch, photos, transformer, tmp_path):
    config = CONFIGS / "he_da_energy_kd.yaml"
    flags = (f"--config={config}", f"--teacher_name={transformer}", "--student_name=cifar_resnet20")
    results = run(monkeypatch, photos, tmp_path / "run", *flags)
    assert results["config"]["he_da_added_images"] == 8
    assert results["images_per_second"] > 0


# ---- transformers of timm --------------------------------------------------------------------------------------------


TRANSFORMERS = {
    "vit_tiny_patch16_224": {"depth": 1},
    "deit_tiny_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_is_shown_its_own_size_and_normalisation(name):
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=7, **TRANSFORMERS[name])
    received = InputSpec((0.2,) * 3, (0.3,) * 3, None)
    teacher = FrozenTeacher(network, received)
    assert teacher.size == (224, 224)
    images = torch.rand(2, 3, 64, 64)  # pixels from 0 to 1
    logits = teacher(pixel_values=(images - 0.2) / 0.3)
    assert logits.shape == (2, 7)
    wanted = teacher.wanted
    own = (images - torch.tensor(wanted.mean).view(3, 1, 1)) / torch.tensor(wanted.std).view(3, 1, 1)
    resized = torch.nn.functional.interpolate(own, size=(224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(resized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in timm.list_models("cifar_*") if n.endswith(("8x4", "16_2", "v2", "vgg8"))])
def test_the_cifar_networks_take_tiny_imagenets_size(name):
    network = timm.create_model(name, num_classes=200).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 200)
