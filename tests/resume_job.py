"""One session of a small run, in a process that gets a signal at a chosen event: a step, a scan's batch, a file.

A file is left half written. Imported by tests and by benchmarks/faults.py.
"""

import json
import logging
import os
import re
import signal
from functools import partial
from pathlib import Path

from processes import print_to, start

STEPS, EVERY = 18, 4  # steps of a run, steps between two checkpoints
CASES = {
    "KD": {},
    "Energy KD": {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "objective": "dkd(beta=2.0)"},
    "CTKD": {"temperature": "learned(warmup_epochs=1)"},
    "stored images": {"temperature": "energy(ratio=0.2)", "weighting": "entropy"},
    "FitNet": {"objective": "kd + 2 * fitnet(layer='conv')", "temperature": "energy(ratio=0.2)"},
    "masks": {"temperature": "energy(ratio=0.2, level='item')", "weighting": "entropy(level='item')"},
    "ReviewKD": {"objective": "kd + 2 * reviewkd(warmup_epochs=2)", "weighting": "entropy"},
    "CRD": {"objective": "kd + 0.8 * crd(dimension=8, negatives=16)", "weighting": "entropy"},
    "SAKD": {"objective": "sakd(objective='at', beta=10)", "kd_weight": 1.0},
    "LoRA": {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "objective": "kd(scale='none')"},
    "GPT-2": {"temperature": "gradation", "weighting": "entropy"},
    "stored tokens": {"temperature": "energy(ratio=0.2)", "weighting": "entropy"},
    "on-policy": {"temperature": "energy(ratio=0.2)", "weighting": "entropy"},
}
LANGUAGE, CIFAR = ("LoRA", "GPT-2", "stored tokens", "on-policy"), ("ReviewKD", "CRD", "SAKD")
WRITTEN = {"on_policy": 0.5, "seq_kd": True, "on_policy_max_new_tokens": 6, "log_completions": True}
KEYWORDS = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": EVERY,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": EVERY,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "learning_rate": 0.01,
    "max_grad_norm": 1.0,
}


def session(case, folder, kill_at=None, save=None, signal_number=signal.SIGKILL):
    """Train `case` in `folder` from its last whole checkpoint to the end; `save` gets the names of the events."""
    import torch

    from hfkd.experiments.run import train_to_the_end
    from hfkd.reports.results import ResultsCallback

    print_to(f"{folder}.log")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores interrupts
    events = Events(folder, kill_at, signal_number)
    events.watch_files()
    make = _masks if case == "masks" else _language if case in LANGUAGE else _images
    trainer = make(case, folder, events)
    events.watch(trainer)
    train_to_the_end(trainer, ResultsCallback({}, metric="eval_loss"))
    trainer.save_model()
    if save:
        Path(save).write_text(json.dumps(events.names))


def _images(case, folder, events):
    from scan_job import packed
    from torch import nn
    from toys import CLASSES, Net, arguments, teacher

    from hfkd import DistillationTrainer
    from hfkd.models.cifar.resnet import CifarResNet

    class Student(Net):
        """With dropout, and statistics that belong to no parameter."""

        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.3)

        def forward(self, x):
            return self.head(self.dropout(self.norm(self.conv(x)).relu().mean((2, 3))))

    if case in CIFAR:  # networks with stages
        student, taught = (CifarResNet(8, widths, num_classes=CLASSES) for widths in ((8, 8, 8, 12), (8, 8, 12, 16)))
    else:
        student, taught = Student(), teacher()
    rows = {"train_dataset": packed(61), "eval_dataset": packed(13, seed=3)}
    stored = {}
    if case == "stored images":
        # Of a batch that was stored in part the rest is computed, and float32 rounds otherwise in a smaller batch.
        stored, taught = {"teacher_cache_dir": f"{folder}-cache"}, taught.double()
    return DistillationTrainer(student, taught, arguments(folder, **KEYWORDS, **stored), **rows, **CASES[case])


def _language(case, folder, events):
    from peft import LoraConfig
    from text_toys import TokenRows, language_model, taught_model, token_dataset, tokenizer
    from toys import arguments

    from hfkd import DistillationTrainer
    from hfkd.teachers import CachedTextTeacher, build_text_cache

    student, taught, rows = language_model(dropout=0.2), taught_model(), TokenRows(61)
    evaluated, adapters = TokenRows(13, seed=3), None
    if case == "LoRA":
        how = {"r": 4, "lora_dropout": 0.1, "target_modules": ["c_attn"], "fan_in_fan_out": True}
        adapters = LoraConfig(task_type="CAUSAL_LM", **how)
    if case == "stored tokens":
        rows, evaluated, cache = token_dataset(61), token_dataset(13, seed=3), f"{folder}-cache"
        hook = taught.register_forward_hook(lambda *given: events.happens("scan"))
        build = {"k": 4, "temperatures": [2.0, 4.0, 6.0], "dtype": "float32", "shard_rows": 16}
        build_text_cache(taught, rows, cache, **build, progress_bar=False)
        hook.remove()
        taught = CachedTextTeacher(cache)
    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    if case == "on-policy":
        rows, steps = token_dataset(61), steps | WRITTEN
    return DistillationTrainer(
        student,
        taught,
        arguments(folder, **(KEYWORDS | steps)),
        peft_config=adapters,
        processing_class=tokenizer(),
        train_dataset=rows,
        eval_dataset=evaluated,
        **CASES[case],
    )


def _masks(case, folder, events):
    from task_toys import Pixels, masks
    from torch import nn
    from toys import arguments

    from hfkd import DistillationTrainer

    student = nn.Sequential(Pixels(4), nn.BatchNorm2d(3), nn.Dropout(0.3), nn.Conv2d(3, 3, 1))
    rows = {"train_dataset": masks(31), "eval_dataset": masks(7, seed=3)}
    args = arguments(folder, **KEYWORDS, task="semantic_segmentation")
    return DistillationTrainer(student, Pixels(8), args, **rows, **CASES[case])


class Events:
    """Counts what a session does, and kills its process at the event `kill_at`: a number, or (name, occurrence)."""

    def __init__(self, folder, kill_at, signal_number=signal.SIGKILL):
        self.folder, self.kill_at, self.names = os.path.realpath(folder), kill_at, []
        self.signal_number = signal_number

    def happens(self, name, halve=None):
        """`halve` leaves a file half written."""
        if self.kill_at in (len(self.names), (name, self.names.count(name))):
            self.kill_at = None  # an interrupt is followed by more events: files that are put away
            if halve is not None:
                halve()
            Path(f"{self.folder}.killed").write_text(name)
            Path(f"{self.folder}.lost").write_text(str(self.batches_since_checkpoint()))
            os.kill(os.getpid(), self.signal_number)
        self.names.append(name)

    def batches_since_checkpoint(self):
        named = [i for i, name in enumerate(self.names) if name.startswith("rename checkpoint-")]
        return self.names[named[-1] if named else 0 :].count("step")

    def watch(self, trainer):
        import hfkd.training.statistics

        inner = trainer.compute_loss

        def compute_loss(model, *arguments, **keywords):
            if model.training:
                self.happens("step")
            return inner(model, *arguments, **keywords)

        trainer.compute_loss = compute_loss
        scan = hfkd.training.statistics.scan

        def scanned(teacher, *arguments, **keywords):
            hook = teacher.register_forward_hook(lambda *a: self.happens("scan"))
            try:
                return scan(teacher, *arguments, **keywords)
            finally:
                hook.remove()

        hfkd.training.statistics.scan = scanned

    def watch_files(self):
        import peft.peft_model
        import safetensors.torch
        import torch
        import transformers.modeling_utils
        from transformers import TrainerState

        self._wrap(torch, "save", "write", 1)
        self._wrap(safetensors.torch, "save_file", "write", 1)
        self._wrap(transformers.modeling_utils, "safe_save_file", "write", 1)
        self._wrap(peft.peft_model, "safe_save_file", "write", 1)
        self._wrap(TrainerState, "save_to_json", "write", 1)
        self._wrap(os, "replace", "rename", 1)
        self._wrap(os, "unlink", "delete", 0)
        self._wrap(os, "rmdir", "delete", 0)
        pwrite = os.pwrite

        def written(file, content, offset):
            self.happens("write record", lambda: pwrite(file, content[: len(content) // 2], offset))
            return pwrite(file, content, offset)

        os.pwrite = written

    def _wrap(self, owner, name, event, position):
        inner = getattr(owner, name)

        def wrapped(*arguments, **keywords):
            result = inner(*arguments, **keywords)
            path = os.path.realpath(arguments[position]) if isinstance(arguments[position], (str, os.PathLike)) else ""
            if path.startswith(self.folder) or keywords.get("dir_fd") is not None:  # rmtree names what is in a folder
                written = event == "write" and os.path.isfile(path)
                half = partial(os.truncate, path, os.path.getsize(path) // 2) if written else None
                self.happens(f"{event} {_without_random(os.path.basename(path))}", half)
            return result

        setattr(owner, name, wrapped)


def _without_random(name):
    """A name that is another in each process, as those of unfinished files, is of no use to find an event by."""
    return re.sub(r"[0-9a-f]{32}", "X", name)


def sit(case, folder, kill_at=None, save=None, signal_number=signal.SIGKILL):
    """`session` in a process of its own; the name of the event that killed it, or None when it ran through."""
    killed = Path(f"{folder}.killed")
    killed.unlink(missing_ok=True)
    process = start(session, case, str(folder), kill_at, save, signal_number)
    process.join()
    if killed.exists():
        # Python makes an exception of an interrupt, which ends the process with 1.
        assert process.exitcode == (1 if signal_number == signal.SIGINT else -signal_number)
        return killed.read_text()
    assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-4000:]
    return None


def outcome(folder):
    """Everything a run leaves that must not depend on kills: the student's bytes, thresholds, metrics."""
    folder = Path(folder)
    left = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    left["thresholds"] = json.loads((folder / "distillation.json").read_text())["thresholds"]
    results = json.loads((folder / "results.json").read_text())
    epochs = [
        {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k} for row in results["epochs"]
    ]
    return left | {"epochs": epochs} | {name: results[name] for name in ("best", "last", "train_steps", "status")}


def left_over(folder):
    """Names in a run's folder that only an unfinished write has."""
    return [path.name for path in Path(folder).iterdir() if path.name.startswith(("_unfinished", "."))]
