"""What DistillationArguments choose by themselves, and what they refuse."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from huggingface_hub.constants import HF_HOME
from toys import Net, Rows, arguments, teacher
from transformers import SchedulerType, TrainingArguments

from hfkd import DistillationTrainer
from hfkd.arguments import DistillationArguments
from hfkd.losses.logits.dist import DIST
from hfkd.utils import precision
from hfkd.utils.parsing import parse
from hfkd.utils.precision import computes_bf16

# ---- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ability", "native"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_bf16_chooses_itself_on_a_cpu(monkeypatch, ability, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False, ability: True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert DistillationArguments("out").bf16 is native
    assert DistillationArguments("out", bf16=False).use_cpu is True  # else the ranks of a launch would not join
    assert DistillationArguments("out", use_cpu=True, bf16=False).bf16 is False


@pytest.mark.parametrize(("ability", "warned"), [("avx512_bf16", False), ("amx_bf16", False), ("avx2", True)])
def test_bf16_asked_for_on_a_cpu_that_emulates_it_is_said_to_be_slow(monkeypatch, caplog, ability, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False, ability: True})
    assert DistillationArguments("out", bf16=True, use_cpu=True).bf16 is True
    assert ("bf16=True, but this CPU is not known to support bfloat16" in caplog.text) is warned
    caplog.clear()
    for keywords in ({"bf16": False}, {}):
        DistillationArguments("out", use_cpu=True, **keywords)
    assert caplog.text == ""


@pytest.mark.parametrize("native", [True, False])
def test_bf16_chooses_itself_on_a_gpu(monkeypatch, native):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keywords: asked.update(keywords) or native)
    assert computes_bf16(on_cpu=False) is native
    assert asked == {"including_emulation": False}


@pytest.mark.parametrize(("argv", "expected"), [(["--bf16"], True), (["--bf16", "true"], True), (["--bf16=no"], False)])
def test_bf16_by_hand(monkeypatch, argv, expected):
    monkeypatch.setattr(precision, "computes_bf16", lambda on_cpu: pytest.fail("asked the device"))
    args = parse([DistillationArguments], ["--output_dir", "out", "--use_cpu", *argv])[0]
    assert args.bf16 is expected


# ---- our own settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lr_decay_epochs": [180, 150]}, r"lr_decay_epochs=\[180, 150\] must be ascending"),
        ({"lr_decay_epochs": [150, 150]}, "must be ascending"),
        ({"lr_decay_epochs": [0, 150]}, "must be ascending epochs above 0"),
        ({"lr_decay_epochs": 150}, "lr_decay_epochs=150 must be ascending epochs"),
        ({"lr_decay_epochs": ["150"]}, "must be ascending epochs above 0, such as"),
        ({"lr_decay_epochs": [float("nan")]}, "must be ascending"),
        ({"lr_decay_factor": 0.0}, r"lr_decay_factor=0.0 must be in \(0, 1\]"),
        ({"lr_decay_factor": 1.5}, "lr_decay_factor=1.5"),
        ({"lr_decay_factor": float("nan")}, "lr_decay_factor=nan"),
    ],
)
def test_a_decay_that_makes_no_sense_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments("out", use_cpu=True, bf16=False, **keywords)


def test_a_folder_may_be_a_path(tmp_path):
    folders = {name: tmp_path / name for name in ("output_dir", "scan_cache_dir", "teacher_cache_dir")}
    args = DistillationArguments(**folders, use_cpu=True)
    written = json.loads(args.to_json_string())
    assert {name: written[name] for name in folders} == {name: str(path) for name, path in folders.items()}


def test_the_cpu_of_several_processes_has_no_number(tmp_path, monkeypatch):
    """Earlier versions of Trainer load the optimizer's state to the device of the process, which was "cpu:0"."""
    args = DistillationArguments("unused", use_cpu=True)
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: torch.device("cpu", 0)))
    torch.save(torch.ones(2), tmp_path / "optimizer.pt")
    assert torch.load(tmp_path / "optimizer.pt", map_location=args.device).tolist() == [1, 1]


def test_what_differs_from_trainers_own_defaults():
    args = DistillationArguments("out", use_cpu=True, bf16=False)
    assert args.remove_unused_columns is False
    assert args.label_names == ["labels"]
    assert args.logging_nan_inf_filter is False
    assert args.channels_last is True


# ---- the best checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("kl", False), ("eval_kl", False), ("eval_held_out_kl", False), ("loss", False), ("f1", True)],
)
def test_the_best_checkpoint_by_a_divergence_has_the_smallest(metric, greater):
    given = {"evaluate_kl": True, "metric_for_best_model": metric, "bf16": False, "use_cpu": True}
    assert DistillationArguments("out", **given).greater_is_better is greater
    assert DistillationArguments("out", **given, greater_is_better=True).greater_is_better is True


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "apollo_adamw_layerwise", "lomo", "adalomo"])
def test_steps_that_are_taken_in_the_backward_pass_cannot_be_skipped(optim):
    given = {"optim": optim, "bf16": False, "use_cpu": True}
    with pytest.raises(ValueError, match=f"on_nan='skip': optim='{optim}' changes weights while gradients"):
        DistillationArguments("out", on_nan="skip", **given)
    assert DistillationArguments("out", on_nan="stop", **given).on_nan == "stop"


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("cosine_with_min_lr", None, r"lr_scheduler_kwargs=.*: One of min_lr or min_lr_rate should be set"),
        ("cosine_with_restarts", {"cycles": 2}, r"lr_scheduler_kwargs=.'cycles': 2.: .*unexpected keyword"),
        ("polynomial", {"lr_end": 0.2}, "must be smaller than initial lr"),
    ],
)
def test_a_schedule_that_cannot_be_made_is_refused_at_once(tmp_path, kind, given, message):
    """It ended the run when training began, after the teacher had been read for all rows."""
    way = {"learning_rate": 0.1, "lr_scheduler_type": kind, "lr_scheduler_kwargs": given}
    with pytest.raises(ValueError, match=message):
        DistillationArguments(str(tmp_path), **way)
    DistillationArguments(str(tmp_path), **way, lr_decay_epochs=[1])


@pytest.mark.parametrize("kind", list(SchedulerType))
def test_schedules_that_can_be_made_are_not(tmp_path, kind):
    needs = {"cosine_with_min_lr": {"min_lr": 1e-5}, "cosine_warmup_with_min_lr": {"min_lr": 1e-5}}
    needs |= {"warmup_stable_decay": {"num_decay_steps": 10}}
    way = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": needs.get(kind.value), "max_steps": 100}
    DistillationArguments(str(tmp_path), **way, metric_for_best_model="loss", eval_strategy="steps")


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dataclasses.replace])
def test_a_copy_has_what_the_arguments_have(tmp_path, monkeypatch, copied):
    """Secrets are hidden in the pickled arguments, which are uploaded, and nowhere else."""
    monkeypatch.setenv("MY_API_KEY", "planted-api-key")
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "run")
    args = DistillationArguments(folder, hub_token="planted-token", run_name="planted-api-key", lr_decay_epochs=[1, 2])
    made = copied(args)
    assert (made.hub_token, made.run_name, made.output_dir) == ("planted-token", "planted-api-key", folder)
    made.lr_decay_epochs.append(3)
    assert args.lr_decay_epochs == ([1, 2] if copied is copy.deepcopy else [1, 2, 3])


@dataclasses.dataclass
class OwnArguments(DistillationArguments):
    alpha_of_mine: float = 0.5


@pytest.mark.parametrize("cls", [DistillationArguments, OwnArguments])
def test_what_a_notebook_shows_has_no_token(tmp_path, cls):
    args = cls(str(tmp_path), hub_token="planted-token")
    assert "planted-token" not in repr(args) + str(args)
    assert "ce_weight=0.1" in repr(args)
    assert args.hub_token == "planted-token"


def test_the_default_folder_of_scans_is_that_of_who_unpickles(tmp_path):
    """Trainer uploads the pickled arguments, and the folder is below the home folder."""
    args = DistillationArguments(str(tmp_path / "run"))
    default = args.scan_cache_dir
    assert default.startswith(HF_HOME)
    assert HF_HOME.encode() not in pickle.dumps(args)
    assert HF_HOME not in args.to_json_string()
    assert pickle.loads(pickle.dumps(args)).scan_cache_dir == default
    for given in ("", None, str(tmp_path / "scans")):
        args.scan_cache_dir = given
        assert pickle.loads(pickle.dumps(args)).scan_cache_dir == given


@pytest.mark.parametrize(
    ("given", "described"),
    [
        (lambda items, T: (items.student.logits - items.teacher.logits).square().mean(-1), "<function <lambda>>"),
        ([(2.0, "kd"), (1, DIST())], [[2.0, "kd"], [1, "DIST(beta=1.0, gamma=1.0)"]]),
    ],
)
def test_slots_that_are_objects_are_described_in_files(tmp_path, given, described):
    """A lambda cannot be pickled, which ended the run at its first checkpoint, and JSON has no objects."""
    args = arguments(tmp_path, objective=given, temperature=3, save_strategy="steps", save_steps=2)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    trainer.train()
    trainer.save_model()
    assert trainer.args is args
    assert args.objective is given
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        stored = torch.load(folder / "training_args.bin", weights_only=False)
        assert (stored.objective, stored.temperature) == (described, 3)
    if described != "<function <lambda>>":  # other processes get the slots themselves
        assert repr(pickle.loads(pickle.dumps(args)).objective) == repr(given)
    shown = json.loads(args.to_json_string())
    assert (shown["hub_token"], shown["output_dir"]) == (None, str(tmp_path))
    assert (shown["objective"], shown["temperature"], shown["weighting"]) == (described, 3, "uniform")
