"""Data, teacher and student mean the same class by the same number, whatever order each was built with."""

import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from toys import Rows, arguments
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform, load_images
from hfkd.data.images import decode
from hfkd.models import Peers, image_classifier, image_teacher
from hfkd.models.label_names import order_of
from hfkd.teachers import FrozenTeacher
from hfkd.training.validation.label_maps import label_names_of_data

NAMES = ["bird", "cat", "dog", "Fire_Truck"]
OTHER = ["dog", "fire truck", "bird", "cat"]  # the same classes as another library may have them
ORDER = [2, 3, 0, 1]  # where each of NAMES is in OTHER
WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
BYTES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def stored(names=NAMES, count=24):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = {"image": [Image.fromarray(b) for b in BYTES[:count]], "label": [i % len(names) for i in range(count)]}
    return Dataset.from_dict(rows, features=features)


def data(names=NAMES, count=24):
    return decode(stored(names, count)).with_transform(ImageTransform())


def network(names=None, seed=1):
    torch.manual_seed(seed)
    return image_classifier("cifar_resnet8", 4, label_names=names)


def make(folder, teacher, train=None, student=None, evaluation=None, **keywords):
    return DistillationTrainer(
        network(seed=2) if student is None else student,
        teacher,
        arguments(folder, **keywords),
        train_dataset=data() if train is None else train,
        eval_dataset=data(count=8) if evaluation is None else evaluation,
    )


def test_a_student_keeps_its_own_spelling_of_the_datas_classes(tmp_path):
    for own, kept in (("BIRD", "Cat", "dog", "fire-truck"), True), (OTHER, False):
        student = ViTForImageClassification(
            ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                patch_size=4, id2label=dict(enumerate(own)),
            )
        )  # fmt: skip
        make(tmp_path / own[0], network(NAMES), student=student, max_steps=1).train()
        student.save_pretrained(tmp_path / "saved")
        names = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").config.id2label
        assert list(names.values()) == list(own if kept else NAMES)


def logits_of(network, rows):
    with torch.no_grad():
        return network(pixel_values=rows[:]["pixel_values"]).logits


def in_data_order(seed=1):
    """The teacher of `network(OTHER)` with its head's rows in the data's order: the control."""
    teacher = network(NAMES, seed)
    head = [m for m in teacher.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[ORDER])
        head.bias.copy_(head.bias[ORDER])
    return teacher


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---- the teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"temperature": "energy(ratio=0.3)"}, {"cache": True}])
def test_a_teacher_in_another_order_trains_as_one_in_the_datas(tmp_path, caplog, settings):
    """Live, with a scan, and from a cache of logits; and in evaluation."""

    def run(teacher, name):
        cache = {"teacher_cache_dir": str(tmp_path / name / "cache")} if "cache" in settings else settings
        trainer = make(tmp_path / name, teacher, evaluate_kl=True, max_steps=4, **cache)
        logged = losses(trainer)
        return logged, trainer.evaluate()["eval_kl"], trainer.state.log_history[0]["teacher_accuracy"]

    with caplog.at_level(logging.WARNING, "hfkd.training.validation.label_maps"):
        permuted = run(network(OTHER), "permuted")
    assert "in another order (dog, fire truck, bird, cat): its logits are reordered to the data's" in caplog.text
    control = run(in_data_order(), "control")
    assert permuted[0] == pytest.approx(control[0], rel=1e-5)
    assert permuted[1:] == pytest.approx(control[1:], rel=1e-5)


def test_several_teachers_each_in_their_own_order(tmp_path):
    trainer = make(tmp_path, [network(OTHER), network(NAMES, seed=5)])
    rows = data()
    expected = [logits_of(network(OTHER), rows)[:, ORDER], logits_of(network(seed=5), rows)]
    got = trainer.teacher(each=True, pixel_values=rows[:]["pixel_values"])
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_names_given_with_a_bare_network(tmp_path):
    rows = data()
    trainer = make(tmp_path, FrozenTeacher(network().timm_model, label_names=OTHER))
    expected = logits_of(network(), rows)[:, ORDER]
    torch.testing.assert_close(trainer.teacher(pixel_values=rows[:]["pixel_values"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "names", [None, NAMES, ["Bird", "CAT", "dog, hound", "fire-truck"], ["bird, fowl", "cat", "DOG", "fire truck"]]
)
def test_nothing_changes_for_the_same_order_or_none(tmp_path, caplog, names):
    with caplog.at_level(logging.WARNING, "hfkd.training.validation.label_maps"):
        assert make(tmp_path, network(names)).teacher.order is None
    assert not caplog.records


def test_names_that_cannot_be_compared_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hfkd.training.validation.label_maps"):
        trainer = make(tmp_path, network(NAMES), data(WNIDS), evaluation=data(WNIDS, 8))
    assert trainer.teacher.order is None
    assert "they cannot be compared, and the classes are assumed to be in the same order" in caplog.text


@pytest.mark.parametrize(
    "names", [["car", "plane", "ship", "train"], ["dog", "bird", "plane", "ship"], ["fowl", "cat", "dog", "fire truck"]]
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, names):
    with pytest.raises(
        ValueError, match=rf"the teacher does not have the classes of the data: class 0 of the teacher is '{names[0]}'"
    ):
        make(tmp_path / "run", network(names))
    assert not (tmp_path / "run").exists()


def test_where_the_data_name_nothing_two_networks_may_not_disagree(tmp_path):
    def rows():
        return Rows(24, classes=4)

    with pytest.raises(ValueError, match="teacher and student have the same classes in another order"):
        make(tmp_path, network(OTHER), rows(), network([n.replace("_", " ").lower() for n in NAMES]), rows())
    assert make(tmp_path, network(OTHER), rows(), evaluation=rows()).teacher.order is None


def test_an_evaluation_set_in_another_order_is_refused(tmp_path):
    with pytest.raises(ValueError, match="shuffled numbers its classes differently from train_dataset"):
        make(tmp_path, network(), evaluation={"same": data(), "shuffled": data(OTHER)})


def folders(root):
    for name in range(12):
        for split in ("train", "test"):
            path = root / split / str(name) / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(BYTES[name]).save(path)
    return {split: rows.with_transform(ImageTransform()) for split, rows in load_images(str(root)).items()}


def twelve(names=None):
    torch.manual_seed(0)
    return image_classifier("cifar_resnet8", 12, label_names=names)


def test_folders_called_by_numbers(tmp_path, caplog):
    """The folder 2 is class 4, in the order of text: 0, 1, 10, 11, 2, ..."""
    rows = folders(tmp_path / "data")
    parts = {"train": rows["train"], "evaluation": rows["test"]}
    with caplog.at_level(logging.WARNING, "hfkd.training.validation.label_maps"):
        make(tmp_path / "a", twelve(), student=twelve(), **parts)
    assert "numbered folders in alphabetical order (0, 1, 10, 11, ...)" in caplog.text
    numbered = [f"class {i}" for i in range(12)]
    teacher = FrozenTeacher(twelve(), label_names=numbered)
    trainer = make(tmp_path / "b", teacher, student=twelve(), **parts)
    assert trainer.teacher.order.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_order_of_names():
    assert order_of(["b", "a"], ["a", "b"], "x", "y") == [1, 0]
    ten = [f"{letter}{letter}" for letter in "abcdefghij"]
    assert order_of([*ten[:9], "other"], ten, "x", "y") is None
    with pytest.raises(ValueError, match="class 0 of x is 'other', that of y 'aa'"):
        order_of(["other", "more", *ten[2:]], ten, "x", "y")
    assert order_of(["crane", "crane"], ["crane", "Crane"], "x", "y") is None
    with pytest.raises(ValueError, match="class 1 of x is none, that of y 'b'"):
        order_of(["a"], ["a", "b", "c"], "x", "y")


# ---- image_teacher ---------------------------------------------------------------------------------------------------


def test_a_stored_teacher_keeps_its_own_names(tmp_path):
    network(OTHER).save_pretrained(tmp_path / "named")
    network().save_pretrained(tmp_path / "numbered")
    assert list(image_teacher(tmp_path / "named", 4, label_names=NAMES).config.id2label.values()) == OTHER
    assert list(image_teacher(tmp_path / "numbered", 4, label_names=NAMES).config.id2label.values()) == NAMES


# ---- the student -----------------------------------------------------------------------------------------------------


def vit(names=None):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    labels = {"num_labels": 4} if names is None else {"id2label": dict(enumerate(names))}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, **labels))


def by_the_users_transform():
    def transform(batch):
        images = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in batch["image"]]
        return {"pixel_values": images, "labels": batch["label"]}

    return stored().with_transform(transform)


def compiled():
    return torch.compile(network(), backend="eager")


@pytest.mark.parametrize("student", [network, vit, lambda: network(OTHER), lambda: vit(WNIDS), compiled])
@pytest.mark.parametrize("train", [data, by_the_users_transform])
def test_a_saved_student_names_the_datas_classes(tmp_path, student, train):
    trainer = make(tmp_path, network(), train(), student(), evaluation=train())
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.config.label2id == {name: i for i, name in enumerate(NAMES)}


def test_peers_and_bare_timm_models_name_them_too(tmp_path):
    peers = Peers([network(), network(seed=3)])
    make(tmp_path / "peers", None, student=peers).train()
    assert [list(p.config.id2label.values()) for p in peers.peers] == [NAMES, NAMES]
    bare = network().timm_model
    make(tmp_path / "bare", network(), student=bare).train()
    assert bare.pretrained_cfg["label_names"] == NAMES


@pytest.mark.parametrize("train", [data, Rows])
def test_a_stored_timm_model_that_was_given_other_classes_keeps_these(tmp_path, train):
    network(["a", "b", "c", "d"]).save_pretrained(tmp_path / "stored")
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "stored", **names)
    rows = train() if train is data else Rows(classes=4)
    make(tmp_path / "run", network(), rows, student, evaluation=rows).train()
    student.save_pretrained(tmp_path / "run")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.id2label == dict(enumerate(NAMES))


def test_labels_that_the_transform_maps_have_no_names(tmp_path):
    """The stored column is not what the student learns."""

    def transform(batch):
        images = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in batch["image"]]
        return {"pixel_values": images, "labels": [3 - label for label in batch["label"]]}

    student = vit()
    make(tmp_path, network(OTHER), stored().with_transform(transform), student, Rows(8, classes=4)).train()
    assert student.config.id2label[0] == "LABEL_0"


def test_an_order_of_the_callers_that_would_be_lost_is_refused(tmp_path):
    taught = FrozenTeacher(network())
    taught.reorder(ORDER)
    with pytest.raises(ValueError, match=r"put into another order by reorder \(\[2, 3, 0, 1\], ...\), .* classes="):
        make(tmp_path, taught)
    make(tmp_path, FrozenTeacher(network(), classes=ORDER))


def test_parts_of_a_dataset_have_its_names(tmp_path):
    whole, trained = data(), {}
    for name, part in (("whole", whole), ("subset", Subset(whole, range(24))), ("parts", ConcatDataset([whole]))):
        trainer = make(tmp_path / name, network(OTHER), part, network(seed=2), Subset(data(count=8), range(8)))
        assert trainer.class_names == tuple(NAMES)
        assert trainer.teacher.order.tolist() == ORDER
        trainer.train()
        trained[name] = trainer.model.state_dict()
    assert all(torch.equal(trained["whole"][n], trained[k][n]) for k in trained for n in trained[k])
    for scored in (Subset(data(OTHER, 8), range(4)), ConcatDataset([data(OTHER, 8)])):
        with pytest.raises(ValueError, match="eval_dataset numbers its classes differently from train_dataset"):
            make(tmp_path / "scored", network(), evaluation=scored)
    with pytest.raises(ValueError, match="part 1 of a ConcatDataset numbers its classes differently from part 0: dog"):
        make(tmp_path / "both", network(), ConcatDataset([whole, data(OTHER)]))


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (None, None),
        (lambda label: ORDER[label], ["dog", "Fire_Truck", "bird", "cat"]),
        (torch.tensor, NAMES),
        (lambda label: 0, None),
        (lambda label: "a word", None),
    ],
)
def test_a_target_transform_renumbers_the_classes(tmp_path, transform, expected):
    for name, picture in zip(NAMES, BYTES, strict=False):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "images" / name / "0.png")
    names = sorted(NAMES)  # as ImageFolder numbers them
    given = None if transform is None else lambda label: transform(NAMES.index(names[label]))
    images = ImageFolder(tmp_path / "images", v2.Compose([v2.ToImage()]), given)
    found = label_names_of_data(Subset(images, range(4)), None)
    wanted = names if transform is None else expected
    assert found == (None if wanted is None else tuple(wanted))


# ---- sets that come later -------------------------------------------------------------------------------------------


def test_a_set_that_numbers_its_classes_otherwise_is_not_evaluated_on(tmp_path, caplog):
    """As a folder of test images without one class does, whose later classes move up."""
    trainer = make(tmp_path, network(NAMES))
    assert trainer.evaluate(data(count=12))["eval_loss"] > 0
    for others, what in ((OTHER, "numbers its classes differently from train_dataset: dog"), (NAMES[1:], "class 0 of")):
        with pytest.raises(ValueError, match=f"this dataset .*{what}"):
            trainer.evaluate(data(others))
        caplog.clear()
        assert len(trainer.predict(data(others)).predictions) == 24
        assert "The metrics of this prediction would be wrong: this dataset" in caplog.text
    trainer.eval_dataset = {"late": data(OTHER)}
    with pytest.raises(ValueError, match="this dataset numbers its classes differently"):
        trainer.evaluate()
