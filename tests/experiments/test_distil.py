"""Teachers of images that were trained on other classes, or on larger images, than the data has."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from digit_files import flags, write_digits
from safetensors.torch import load_file
from timm.data import ImageNetInfo

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.distil import distil_images, teachers_of
from hfkd.models import NetworkArguments, image_classifier
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
CHOSEN = [11, 3, 4, 0, 9, 6, 1, 8, 10, 2]  # of 12, for each of ten digits


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Digits, a teacher of 12 classes, and one that has only the chosen ten, in the data's order."""
    folder = tmp_path_factory.mktemp("distil")
    write_digits(folder / "digits")
    torch.manual_seed(0)
    large = image_classifier("cifar_resnet20", 12)
    large.save_pretrained(folder / "large")
    small = image_classifier("cifar_resnet20", 10)
    weights = large.state_dict()
    heads = [name for name, value in weights.items() if value.shape[:1] == (12,)]
    small.load_state_dict(weights | {name: weights[name][CHOSEN] for name in heads})
    small.save_pretrained(folder / "small")
    return folder


def distilled(work, output, teacher, **more):
    """The student's weights, and what results.json says."""
    given = {"teacher_name": work / teacher, "student_name": "cifar_resnet8", "output_dir": work / output} | more
    chosen = given.pop("teacher_classes", None)
    argv = flags(work / "digits", **given) + (["--teacher_classes", *map(str, chosen)] if chosen else [])
    distil_images(*parse((NetworkArguments, ImageDataArguments, DistillationArguments), argv), page=False)
    return load_file(work / output / "model.safetensors"), json.loads((work / output / "results.json").read_text())


def test_chosen_classes_teach_as_a_teacher_of_these_alone(work):
    expected, _ = distilled(work, "expected", "small")
    student, results = distilled(work, "chosen", "large", teacher_classes=CHOSEN)
    torch.testing.assert_close(student, expected)  # up to rounding: ten columns of a product of twelve
    assert results["config"]["teacher_classes"] == CHOSEN


def test_the_teacher_sees_larger_images_than_the_student(work):
    networks = NetworkArguments([str(work / "small")], teacher_image_size=48)
    seen = []
    teacher = teachers_of(networks, 10)
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    images = torch.rand(2, 3, 8, 8)
    logits = teacher(pixel_values=images)
    resized = torch.nn.functional.interpolate(images, size=(48, 48), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen[0], resized)
    torch.testing.assert_close(logits, teacher.model(resized).logits)


def test_stored_logits_are_those_of_the_size_and_classes(work):
    cache = {"teacher_cache_dir": work / "cache", "num_train_epochs": 1, "lr_decay_epochs": 0.5}
    plain, _ = distilled(work, "plain", "large", teacher_classes=CHOSEN, **cache)
    sized, _ = distilled(work, "sized", "large", teacher_classes=CHOSEN, teacher_image_size=16, **cache)
    other, _ = distilled(work, "other", "large", teacher_classes=CHOSEN[::-1], **cache)
    assert len(list((work / "cache").glob("*.bin"))) == 3
    head = next(name for name in plain if name.endswith("fc.weight"))
    assert not torch.equal(plain[head], sized[head])
    assert not torch.equal(plain[head], other[head])


def test_card_and_results_say_what_the_teacher_saw(work):
    cache = work / "cache of what is said"  # a teacher whose outputs are stored is described too
    _, results = distilled(
        work, "said", "large", teacher_classes=CHOSEN, teacher_image_size=16, teacher_cache_dir=cache
    )
    card = (work / "said" / "README.md").read_text()
    for name, value in {"teacher_images": "16 x 16", "teacher_outputs": "10 of its classes"}.items():
        assert results["config"][name] == value
        assert f"| {name} | {value} |" in card
    assert "teacher_images" not in distilled(work, "unsaid", "small")[1]["config"]


def test_a_folder_of_a_teacher_that_saw_other_images_is_refused(work):
    distilled(work, "seen", "large", teacher_classes=CHOSEN, save_strategy="epoch")
    with pytest.raises(ValueError, match=r"its teacher is .*the hash is of the weights, the size"):
        distilled(work, "seen", "large", teacher_classes=CHOSEN, teacher_image_size=16, save_strategy="epoch")


def test_all_of_several_teachers_get_the_flags(work):
    names = [str(work / "large")] * 2
    pair = teachers_of(NetworkArguments(names, teacher_classes=CHOSEN, teacher_image_size=16), 10)
    images = torch.rand(2, 3, 8, 8)
    for one in pair:
        assert one.size == (16, 16)
        assert one(pixel_values=images).shape == (2, 10)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (CHOSEN[:9], r"the teacher has 9 classes and the student 10"),
        ([*CHOSEN[:9], 12], r"of a teacher with 12 classes \(0 to 11\): pass existing classes"),
        ([*CHOSEN[:9], 11], r"must be distinct class ids"),
    ],
)
def test_classes_that_cannot_be_chosen(work, chosen, message):
    with pytest.raises(ValueError, match=message):
        distilled(work, "refused", "large", teacher_classes=chosen)
    assert not (work / "refused").exists()


def test_a_published_checkpoint_has_its_architectures_classes(work, tmp_path):
    torch.manual_seed(0)
    torch.save(image_classifier("cifar_resnet20", 100).timm_model.state_dict(), tmp_path / "weights.pth")
    networks = NetworkArguments(["cifar_resnet20"], [str(tmp_path / "weights.pth")], teacher_classes=[3, 99, 50])
    assert teachers_of(networks, 3)(pixel_values=torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_the_classes_of_tiny_imagenet_are_those_of_imagenet(data_dir):
    """The outputs that the file selects are those of the data's WordNet ids, in the data's order."""
    names = load_dataset(str(data_dir / "tiny-imagenet"), split="valid").features["label"].names
    chosen = yaml.safe_load((CONFIGS / "tiny_imagenet_classes.yaml").read_text())["teacher_classes"]
    assert [ImageNetInfo().index_to_label_name(i) for i in chosen] == names
