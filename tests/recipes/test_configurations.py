"""The recipes' YAML files: each is understood by its recipe, changes what it says, and combines as its comment says."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

import hfkd.utils.parsing
from hfkd.losses.distillation import DistillationLoss

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
OWN = {path.stem for path in RECIPES.glob("*.py")}
SLOTS = ("objective", "temperature", "weighting", "ce_weight", "kd_weight")


class Parsed(Exception):
    """What a recipe was told, thrown before it acts on it."""


@pytest.fixture
def told(monkeypatch):
    """All settings of a recipe, by name, as its own `main` parses them with these files."""
    real = hfkd.utils.parsing.parse

    def stop(*args, **keywords):
        raise Parsed(real(*args, **keywords))

    def run(recipe, *files):
        argv = [recipe, "--use_cpu", "--bf16=no", *(["--config", *map(str, files)] if files else [])]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(hfkd.utils.parsing, "parse", stop)
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(RECIPES / recipe), run_name="__main__")
        return {name: value for part in parsed.value.args[0] for name, value in vars(part).items()}

    return run


def recipe_of(path):
    if path.stem in OWN:
        return f"{path.stem}.py"
    if "detection" in path.stem or path.stem.startswith("fpn_"):
        return "coco_detection.py"
    if path.stem.startswith("dolly"):
        return "sft.py" if path.stem == "dolly_sft" else "gpt2_dolly_eakd.py"
    return "cifar100_energy_kd.py"


def same(given, value):
    """Whether a file's value is a setting's: slots are text in either, numbers and lists may be spelled otherwise."""
    if isinstance(value, list):
        return value == (given if isinstance(given, list) else [given])
    return value == given or str(value) == str(given)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_its_recipe_does(told, path):
    settings, content = told(recipe_of(path), path), yaml.safe_load(path.read_text())
    content.pop("with", None)
    assert {name: settings[name] for name in content if not same(content[name], settings[name])} == {}
    DistillationLoss(*(settings[name] for name in SLOTS))
    assert settings["num_train_epochs"] > max(settings["lr_decay_epochs"] or [0])
    if path.stem.startswith("dolly"):
        assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 32


@pytest.mark.parametrize("pair", sorted((CONFIGS / "pairs").glob("*imagenet*.yaml")), ids=lambda path: path.stem)
def test_data_pair_and_method_combine(told, pair):
    """One file says how the data is trained on, one which networks there are, one the method; none says it again."""
    data = CONFIGS / f"{'tiny_imagenet' if pair.stem.startswith('tiny') else 'imagenet'}.yaml"
    method = CONFIGS / ("ea_kd.yaml" if data.stem == "tiny_imagenet" else "imagenet_energy_kd.yaml")
    contents = [yaml.safe_load(path.read_text()) for path in (data, pair, method)]
    contents[1].pop("with", None)
    settings = told("cifar100_energy_kd.py", data, pair, method)
    for name, value in (contents[0] | contents[1] | contents[2]).items():
        assert same(value, settings[name]), name
    assert contents[0].keys() & contents[1].keys() <= {"output_dir", "per_device_train_batch_size"}
    assert contents[1].keys() & contents[2].keys() <= {"output_dir"}


def test_of_two_files_the_later_one_wins(told):
    pair, method = CONFIGS / "pairs" / "resnet56_resnet20.yaml", CONFIGS / "kd.yaml"
    assert told("cifar100_energy_kd.py", pair, method)["temperature"] == "4.0"
    assert told("cifar100_energy_kd.py", method, pair)["temperature"] == "energy(ratio=0.3)"


@pytest.mark.parametrize("method", ["fcfd", "ea_fcfd"])
def test_fcfd_has_its_published_weight_on_imagenet(told, method):
    """0.02 for ResNet18, where CIFAR-100's is 5."""
    names = "imagenet", "pairs/imagenet_resnet34_resnet18", method
    settings = told("cifar100_energy_kd.py", *(CONFIGS / f"{name}.yaml" for name in names))
    assert (settings["objective"], settings["temperature"]) == ("kd + fcfd(feature_weight=0.02)", "1.0")
    assert settings["weighting"] == ("entropy" if method == "ea_fcfd" else "uniform")


RATES = [
    path for path in sorted((CONFIGS / "pairs").glob("*.yaml")) if "learning_rate" in yaml.safe_load(path.read_text())
]
OF_ITS_OWN = ("mld", "mld_released", "standardized_mld", "ea_mld", "ea_mld_ls", "energy_multi")


@pytest.mark.parametrize("pair", RATES, ids=lambda path: path.stem)
def test_a_pair_keeps_its_rate_under_methods_that_have_another(told, pair):
    """ShuffleNets and MobileNetV2, which were published at 0.01 with every method."""
    for method in OF_ITS_OWN:
        files = pair, CONFIGS / f"{method}.yaml"
        assert "learning_rate" in yaml.safe_load(files[1].read_text())
        assert told("cifar100_energy_kd.py", *files)["learning_rate"] == 0.01, method
