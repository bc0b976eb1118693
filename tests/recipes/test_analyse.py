"""`hfkd analyse`: what it writes, of networks whose numbers are known; what it refuses, before any pass."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from digit_files import write_digits
from recipe_toys import RECIPES

from hfkd.data import ImageDataArguments, ImageTransform, load_images
from hfkd.experiments.analyse import AnalysisArguments, image_seed
from hfkd.experiments.analysed_networks import short_names
from hfkd.experiments.analysis_parts import run_checkpoints
from hfkd.losses.functional import energy
from hfkd.models import image_classifier

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits, a teacher, a copy of it, one with its classes in another order, and another network's weights."""
    folder = tmp_path_factory.mktemp("analysed")
    write_digits(folder / "digits")
    torch.manual_seed(0)
    network = image_classifier("cifar_resnet8", 10, label_names=NAMES)
    network.save_pretrained(folder / "teacher")
    shutil.copytree(folder / "teacher", folder / "copy")
    head = network.timm_model.get_classifier()
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    network.config.id2label = dict(enumerate(reversed(NAMES)))
    network.config.label2id = {name: i for i, name in enumerate(reversed(NAMES))}
    network.save_pretrained(folder / "turned")
    torch.save(image_classifier("cifar_resnet8", 10).state_dict(), folder / "other.pth")
    large = image_classifier("cifar_resnet8", 12, label_names=[*"ab", *NAMES])
    weights = image_classifier(str(folder / "copy"), 10).state_dict()
    heads = {name: torch.cat([value[:2], value]) for name, value in weights.items() if value.shape[:1] == (10,)}
    large.load_state_dict(weights | heads)
    large.save_pretrained(folder / "large")
    return folder


def analyse(monkeypatch, digits, *flags):
    data = ["--dataset_name", str(digits / "digits"), "--use_cpu", "--output_dir", str(digits / "page")]
    data += [] if "--landscape_points" in flags else ["--landscape_points", "0", "--tsne_images", "0"]
    teacher = [] if "--teacher" in flags else ["--teacher", str(digits / "teacher")]
    monkeypatch.setattr(sys, "argv", ["analyse.py", *teacher, *data, *map(str, flags)])
    runpy.run_path(str(RECIPES / "analyse.py"), run_name="__main__")
    return json.loads((digits / "page" / "analysis.json").read_text()), (digits / "page" / "index.html").read_text()


def test_copies_of_the_teacher_agree_with_it_and_another_network_does_not(digits, monkeypatch):
    students = ("--students", digits / "copy", digits / "turned", "cifar_resnet8")
    numbers, page = analyse(monkeypatch, digits, *students, "--student_checkpoints", digits / "other.pth")
    assert (numbers["images"], numbers["classes"], numbers["split"]) == (32, 10, "test")
    assert list(numbers["students"]) == ["copy", "turned", "cifar_resnet8"]
    for name in ("copy", "turned"):
        copy = numbers["students"][name]
        assert (copy["gap"], copy["agreement"]) == (0, 1)
        assert copy["kl"] == pytest.approx(0, abs=1e-6)
        assert copy["correlation_difference"]["max"] == pytest.approx(0, abs=1e-4)
        assert copy["accuracy"] == numbers["teacher"]["accuracy"]
    other = numbers["students"]["cifar_resnet8"]
    assert other["kl"] > 1e-3
    assert other["correlation_difference"]["mean"] > 0.05
    for title in ("Teacher energies", "highest energy", "Mean prediction", "teacher&#x27;s entropy", "Correlations"):
        assert title in page
    assert "http" not in page.split("</style>")[1]


def test_the_chosen_classes_of_a_teacher_are_compared(digits, monkeypatch):
    """The large teacher is the small one with two more classes before its own."""
    flags = ("--teacher", digits / "large", "--students", digits / "copy")
    numbers, _ = analyse(monkeypatch, digits, *flags, "--teacher_classes", *range(2, 12))
    assert numbers["students"]["copy"]["kl"] == pytest.approx(0, abs=1e-6)
    assert numbers["students"]["copy"]["agreement"] == 1
    assert numbers["students"]["copy"]["correlation_difference"]["max"] == pytest.approx(0, abs=1e-4)
    resized, _ = analyse(monkeypatch, digits, *flags, "--teacher_classes", *range(2, 12), "--teacher_image_size", 16)
    assert resized["students"]["copy"]["kl"] > 1e-6
    with pytest.raises(ValueError, match="large has 12 classes, but the data 10"):
        analyse(monkeypatch, digits, *flags)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
def test_the_parts_that_may_be_left_out(digits, monkeypatch, dims):
    shutil.copytree(digits / "turned", digits / "run" / "checkpoint-5", dirs_exist_ok=True)
    shutil.copytree(digits / "copy", digits / "run" / "checkpoint-10", dirs_exist_ok=True)
    flags = ("--landscape_points", 3, "--landscape_dims", dims, "--landscape_images", 8, "--tsne_images", 20)
    more = ("--checkpoints_of", digits / "run")
    numbers, page = analyse(monkeypatch, digits, "--students", digits / "copy", digits / "turned", *flags, *more)
    run = numbers["checkpoints"]["run"]  # of one network, whose classes stand in another order
    assert [one["step"] for one in run["steps"]] == [5, 10]
    assert run["entropy_variability"]["all"] == pytest.approx(0, abs=1e-6)
    assert run["steps"][0]["kl"] == pytest.approx(0, abs=1e-6)
    found = numbers["landscape"]["students"]["copy"]
    losses = torch.tensor(found["losses"])
    assert losses.shape == (3,) * dims
    assert found["area@1.6"] == pytest.approx((losses <= 1.6).float().mean().item())
    assert found["variance"] == pytest.approx(losses.double().var(correction=0).item())
    rows = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:8].sort().values
    test = load_images(str(digits / "digits"))["test"].with_transform(ImageTransform())[rows.tolist()]
    with torch.no_grad():
        logits = image_classifier(digits / "copy", 10)(test["pixel_values"]).logits
    here = torch.nn.functional.cross_entropy(logits, test["labels"]).item()
    assert losses.flatten()[losses.numel() // 2].item() == pytest.approx(here, rel=1e-4)
    indices = numbers["calinski_harabasz"]
    assert indices["copy"] == indices["teacher"]
    assert numbers["embedded_images"] == 20
    for title in ("Penultimate features", "Over the training of run", "Loss landscape"):
        assert title in page


def test_settings_that_cannot_be():
    for name, value in {"landscape_points": 4, "landscape_dims": 3, "tsne_images": -1, "landscape_images": 0}.items():
        with pytest.raises(ValueError, match=f"{name}={value} must be"):
            AnalysisArguments("teacher", ["student"], **{name: value})


def test_a_long_tailed_training_set_is_that_of_the_students_runs(digits, tmp_path, caplog):
    data = ImageDataArguments(dataset_name=str(digits / "digits"), imbalance_factor=0.5)
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"seed": seed}))
    same = [str(folders[0]), str(folders[1] / "checkpoint-5")]
    assert image_seed(AnalysisArguments("teacher", same, split="train"), data) == 7
    assert image_seed(AnalysisArguments("teacher", same), data) == 0  # not of the training set
    assert not caplog.records
    assert image_seed(AnalysisArguments("teacher", [*same, str(folders[2])], split="train", seed=3), data) == 3
    assert "drawn by --seed 3, as the students' runs record the seeds [7, 8]" in caplog.text
    drawn, others = (data.load(seed)[0].with_format(None)["index"] for seed in (7, 0))
    assert list(drawn) != list(others)


def test_a_run_with_one_checkpoint_has_nothing_to_compare(tmp_path):
    image_classifier("cifar_resnet8", 10).save_pretrained(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(ValueError, match="1 folders checkpoint-"):
        run_checkpoints(str(tmp_path))


@pytest.mark.slow
def test_the_training_split_is_seen_without_augmentation(digits, monkeypatch):
    flags = ("--students", digits / "copy", "--split", "train", "--max_train_images", "20")
    numbers, _ = analyse(monkeypatch, digits, *flags)
    train = load_images(str(digits / "digits"))["train"].select(range(20)).with_transform(ImageTransform())
    with torch.no_grad():
        logits = image_classifier(digits / "teacher", 10)(train[:]["pixel_values"]).logits
    assert numbers["images"] == 20
    assert numbers["teacher"]["energy"]["mean"] == pytest.approx(energy(logits).mean().item(), abs=1e-4)
    assert numbers["students"]["copy"]["kl"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_analysed_is_refused_by_name_before_any_pass(digits, monkeypatch, tmp_path):
    image_classifier("cifar_resnet8", 5).save_pretrained(tmp_path / "five")
    (tmp_path / "empty").mkdir()
    image_classifier("cifar_resnet8", 10, label_names=[str(n) for n in range(20, 30)]).save_pretrained(
        tmp_path / "twenties"
    )
    monkeypatch.setattr("hfkd.experiments.analyse.network_pass", None)
    refused = {
        "five has 5 classes, but the data 10": [tmp_path / "five"],
        "empty has no config.json": [tmp_path / "empty"],
        "'nothing' is neither the output folder": ["nothing"],
        "gone' is neither the output folder": [tmp_path / "gone"],
        "there is no folder runs/gone, and no network of that name": ["runs/gone"],
        "0 student_checkpoints for 1 students": ["cifar_resnet8"],
        "twenties does not have the classes of the data": [tmp_path / "twenties"],
        "copy is given twice": [digits / "copy", digits / "copy"],
    }
    for message, students in refused.items():
        with pytest.raises(ValueError, match=message):
            analyse(monkeypatch, digits, "--students", *students)
    with pytest.raises(ValueError, match="an architecture with random weights"):
        analyse(monkeypatch, digits, "--teacher", "cifar_resnet8", "--students", digits / "copy")
    with pytest.raises(ValueError, match="labelled_images=4"):
        analyse(monkeypatch, digits, "--students", digits / "copy", "--labelled_images", "4")
    with pytest.raises(ValueError, match="output_dir"):
        analyse(monkeypatch, digits, "--students", digits / "copy", "--output_dir", digits / "copy")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but an analysis runs in one process"):
        analyse(monkeypatch, digits, "--students", digits / "copy")


def test_short_names_tell_networks_apart():
    assert short_names(["runs/kd/", "runs/eakd"]) == ["kd", "eakd"]
    assert short_names(["runs/kd/seed0", "runs/eakd/seed0"]) == ["kd/seed0", "eakd/seed0"]
    assert short_names(["/resnet20", "b.pth/resnet20"]) == ["resnet20", "b.pth/resnet20"]
    with pytest.raises(ValueError, match="a/b is given twice"):
        short_names(["a/b", "./a/b/"])
