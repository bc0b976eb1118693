"""The recipe for masks, as users start it: a teacher from labels, a student from the teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from feature_toys import DATA
from recipe_toys import MASKED, results, run, write_masks
from safetensors.torch import save_file
from task_toys import segformer
from torch import nn

from hfkd import DistillationArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions
from hfkd.experiments.segmentation import segmentation_trainer
from hfkd.models.segmentation import segmentation_network, segmentation_teacher, set_batch_norm_momentum
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments

pytest.importorskip("torchmetrics")


def flags(data, out, **more):
    settings = {
        "dataset_name": data, "output_dir": out, "image_size": (24, 32), "num_train_epochs": 3, "use_cpu": True,
        "per_device_train_batch_size": 4, "bf16": False, "logging_steps": 2, "learning_rate": 0.01,
        "batch_norm_momentum": 0.3, "scan_cache_dir": "", "disable_tqdm": True, "report_to": "none",
    }  # fmt: skip
    found = []
    for name, value in (settings | more).items():
        found += [f"--{name}", *map(str, value if isinstance(value, (tuple, list)) else [value])]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"))


def test_a_teacher_from_labels_and_its_student(monkeypatch, folder, tmp_path):
    """torchvision's network as a teacher; a model of transformers as its student, with Energy KD of each pixel."""
    run(monkeypatch, "segmentation", *flags(folder, tmp_path / "taught", kd_weight=0, ce_weight=1))
    learnt = results(tmp_path / "taught")
    first, last = learnt["epochs"][0], learnt["epochs"][-1]
    assert last["eval_mean_iou"] > max(first["eval_mean_iou"], 0.4)
    assert {f"eval_iou_{name}" for name in MASKED} | {"eval_pixel_accuracy"} <= last.keys()
    network = segformer(8)
    network.config.num_labels = 3
    network.save_pretrained(tmp_path / "small")
    teacher = {"teacher_name": "lraspp_mobilenet_v3_large", "teacher_checkpoint": tmp_path / "taught/model.safetensors"}
    slots = {"temperature": "energy(level='item')", "weighting": "entropy(level='item')", "num_train_epochs": 1}
    given = flags(folder, tmp_path / "student", student_name=tmp_path / "small", **teacher, **slots)
    run(monkeypatch, "segmentation", *given)
    found = results(tmp_path / "student")
    assert found["status"] == "finished"
    assert found["teacher_accuracy"] > 0.6
    saved = json.loads((tmp_path / "student/config.json").read_text())
    assert list(saved["id2label"].values()) == MASKED
    page = (tmp_path / "student/index.html").read_text()
    assert page.count("Side by side: image, label, teacher, student, energy, entropy") == 4
    assert "Side by side: image, label, student" in (tmp_path / "taught/index.html").read_text()
    processor = json.loads((tmp_path / "student/preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 24, "width": 32}


def test_a_teachers_file_is_read_with_the_record_of_its_run(folder, tmp_path):
    """torchvision's networks have no config.json to say how their images were normalised, and their classes."""
    name, said = "lraspp_mobilenet_v3_small", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    run_folder = tmp_path / "taught" / "checkpoint-4"
    run_folder.mkdir(parents=True)
    save_file(segmentation_network(name, 3).state_dict(), run_folder / "model.safetensors")
    shutil.copy(run_folder / "model.safetensors", run_folder / "other.safetensors")
    scores = {f"eval_iou_{one}": 0.5 for one in reversed(MASKED)}
    (tmp_path / "taught" / "results.json").write_text(json.dumps({"config": said, "epochs": [scores]}))
    made = {}
    for file, more in (("model", {}), ("other", {}), ("model", {"teacher_mean": [0.1] * 3, "teacher_std": [0.2] * 3})):
        weights = str(run_folder / f"{file}.safetensors")
        networks = SegmentationNetworkArguments(
            teacher_name=name, student_name=name, teacher_checkpoint=weights, **more
        )
        data = MaskDataArguments(str(folder), image_size=[24, 32])
        args = DistillationArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
        made[file, *more] = segmentation_trainer(networks, data, args).teacher
    assert (made["model",].wanted.mean, made["model",].wanted.std) == ((0.5,) * 3, (0.25,) * 3)
    assert made["model",].scale is not None
    assert made["model",].order.tolist() == [2, 1, 0]
    assert made["other",].wanted is None
    assert made["model", "teacher_mean", "teacher_std"].wanted.mean == (0.1,) * 3


def test_a_teacher_may_be_compared_with_and_not_learned_from(monkeypatch, folder, tmp_path):
    own = {
        "student_name": f"{__name__}:made",
        "teacher_name": f"{__name__}:made",
        "max_steps": 1,
        "eval_strategy": "steps",
    }
    more = {"kd_weight": 0, "ce_weight": 1, "evaluate_kl": True, "batch_norm_momentum": 0.1}
    run(monkeypatch, "segmentation", *flags(folder, tmp_path / "run", **own, **more))
    assert results(tmp_path / "run")["epochs"][-1]["eval_kl"] > 0


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(monkeypatch, folder, tmp_path):
    """Bit for bit: the views of an epoch are those of its number."""
    alone = {"kd_weight": 0, "ce_weight": 1, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    run(monkeypatch, "segmentation", *flags(folder, tmp_path / "whole", **alone))
    run(monkeypatch, "segmentation", *flags(folder, tmp_path / "parts", **alone))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-12")  # as if it had been stopped in the third epoch
    run(monkeypatch, "segmentation", *flags(folder, tmp_path / "parts", **alone))
    assert results(tmp_path / "parts")["sessions"][-1]["first_step"] == 9
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == two


def made():
    return nn.Conv2d(3, 3, 1)


def nothing():
    return 3


def test_networks_by_name(tmp_path):
    assert isinstance(segmentation_network(f"{__name__}:made", 3), nn.Conv2d)
    small = segmentation_network("lraspp_mobilenet_v3_small", 3)
    assert small(torch.zeros(1, 3, 32, 48))["out"].shape == (1, 3, 32, 48)
    assert sum(p.numel() for p in small.parameters()) < 1.1e6
    with pytest.raises(ValueError, match="returns a int instead of a torch.nn.Module"):
        segmentation_network(f"{__name__}:nothing", 3)
    with pytest.raises(ValueError, match="does not return a network .*: name a module on the path"):
        segmentation_network("no_such_module:load", 3)
    with pytest.raises(ValueError, match="unknown segmentation network 'lraspp_mobilenet': .*lraspp_mobilenet_v3_larg"):
        segmentation_network("lraspp_mobilenet", 3)
    with pytest.raises(ValueError, match="lraspp_mobilenet_v3_large has no auxiliary head"):
        segmentation_network("lraspp_mobilenet_v3_large", 3, auxiliary_head=True)
    with pytest.raises(ValueError, match="the teacher 'fcn_resnet50' would have random weights: pass its checkpoint"):
        segmentation_teacher("fcn_resnet50", 3)
    segformer(8).save_pretrained(tmp_path / "stored")
    with pytest.raises(
        ValueError, match=r"decode_head.classifier.* of .* has the shape .*, but the classes of the data need"
    ):
        segmentation_network(str(tmp_path / "stored"), 7)
    assert segmentation_network(str(tmp_path / "stored"), 7, new_head=True).config.num_labels == 7
    old, new = (
        segmentation_network(str(tmp_path / "stored"), 3, new_head=fresh).state_dict() for fresh in (False, True)
    )
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert "decode_head.classifier.weight" in changed
    assert changed <= {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    for name in (f"{__name__}:made", "lraspp_mobilenet_v3_small"):
        with pytest.raises(ValueError, match=f"replaces the head of a stored network, and '{name}' is not one"):
            segmentation_network(name, 3, new_head=True)
    with pytest.raises(ValueError, match="checkpoint='weights.pth' has the weights of the head: leave one of them out"):
        segmentation_network(str(tmp_path / "stored"), 3, "weights.pth", new_head=True)
    network = nn.Sequential(nn.BatchNorm2d(3))
    set_batch_norm_momentum(network, 0.2)
    assert network[0].momentum == 0.2


@pytest.mark.slow
def test_the_published_teacher_of_camvid(monkeypatch):
    """Its mean IoU at its own size, with the twelfth output left out by a stated list of classes."""
    from hfkd.models import InputSpec
    from hfkd.teachers import FrozenTeacher

    if not (Path(DATA) / "espnet-camvid").is_dir():
        pytest.skip("no espnet-camvid in the folder of real data that HFKD_DATA names")
    monkeypatch.syspath_prepend(str(Path(DATA) / "espnet-camvid"))
    network = segmentation_network("espnet:load", 11)
    teacher = FrozenTeacher(network, wanted=InputSpec((0.0,) * 3, (1.0,) * 3, None), classes=range(11))
    data = MaskDataArguments(dataset_name=str(Path(DATA) / "camvid"), image_size=[360, 480], image_std=[1.0] * 3,
                             image_mean=[0.0] * 3)  # fmt: skip
    _, test = data.load()
    metric = MeanIoU(data.classes, data.label_names)
    for start in range(0, len(test), 8):
        rows = [test[i] for i in range(start, min(start + 8, len(test)))]
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}
        maps = teacher(pixel_values=batch["pixel_values"])
        scored = pixel_predictions(maps, batch["labels"]), batch["labels"]
        found = metric(
            type("", (), dict(zip(("predictions", "label_ids"), scored, strict=True))), start + 8 >= len(test)
        )
    assert found["mean_iou"] == pytest.approx(0.564, abs=0.002)
    assert found["pixel_accuracy"] == pytest.approx(0.873, abs=0.002)
