"""The recipe for boxes, as users start it: a teacher from labels, a student from the teacher."""

import pytest
from recipe_toys import BOX_CLASSES, DETECTOR, results, run, write_boxes
from safetensors.torch import load_file

from hfkd.models.checkpoints import load_checkpoint
from hfkd.models.detection import detector

pytest.importorskip("pycocotools")


def flags(data, out, **more):
    settings = {
        "dataset_name": data, "output_dir": out, "use_cpu": True, "bf16": False, "report_to": "none",
        "disable_tqdm": True, "dataloader_num_workers": 0, "per_device_train_batch_size": 4, "max_steps": 8,
        "eval_steps": 8, "save_steps": 8, "logging_steps": 10, "learning_rate": 0.002, "optim": "adamw_torch",
        "optim_args": "", "lr_decay_epochs": 3, "warmup_steps": 0, "student_name": "test_efficientnet",
        "frozen_batch_norm": False, "proposals": 32,
    }  # fmt: skip
    sizes = {name: DETECTOR[name] for name in ("min_size", "max_size", "anchor_size")}
    roles = {
        f"{role}_{k}": DETECTOR[k] for role in ("student", "teacher") for k in ("levels", "fpn_channels", "head_size")
    }
    found = []
    for name, value in (settings | sizes | roles | more).items():
        found += [f"--{name}", *map(str, value if isinstance(value, (tuple, list)) else [value])]
    return found


def test_a_teacher_from_labels_and_its_student(monkeypatch, tmp_path):
    data = write_boxes(tmp_path / "boxes")
    labels = {"kd_weight": 0, "evaluate_kl": False, "score_training": True}
    run(monkeypatch, "coco_detection", *flags(data, tmp_path / "taught", **labels))
    learnt = results(tmp_path / "taught")
    assert learnt["status"] == "finished"
    assert learnt["best"].keys() == {"epoch", "ap"}
    weights = tmp_path / "taught" / "model.safetensors"
    load_checkpoint(detector("test_efficientnet", BOX_CLASSES, **DETECTOR, frozen_batch_norm=False), weights)
    taught = {"teacher_name": "test_efficientnet", "teacher_checkpoint": weights, "max_steps": 4, "eval_steps": 2}
    method = {"weighting": "entropy(temperature=4, level='item')", "save_steps": 2, "lr_decay_epochs": 1}
    run(monkeypatch, "coco_detection", *flags(data, tmp_path / "student", **taught, **method))
    found = results(tmp_path / "student")
    assert found["best_by"]["metric"] == "eval_ap"
    rows = [row for row in found["epochs"] if "eval_kl" in row]
    assert len(rows) == 2
    assert all({"eval_ap", "eval_ap50", "eval_ap75"} <= row.keys() for row in rows)
    assert load_file(tmp_path / "student" / "model.safetensors").keys() == load_file(weights).keys()


def test_what_compares_with_a_teacher_is_named_where_there_is_none(monkeypatch, tmp_path):
    """The recipe's configuration sets evaluate_kl, of which --kd_weight 0 says nothing."""
    data = write_boxes(tmp_path / "boxes")
    with pytest.raises(ValueError, match="evaluate_kl=True compares the student with a teacher, but there is none"):
        run(monkeypatch, "coco_detection", *flags(data, tmp_path / "taught", kd_weight=0))
