"""One session of a small run, in a process that kills itself at a chosen event: a step, a scan's batch, a file.

A file is left half written. Imported by tests and by benchmarks/faults.py.
"""

import json
import logging
import os
import signal
from pathlib import Path

from processes import print_to, start

STEPS, EVERY = 18, 4  # steps of a run, steps between two checkpoints
CASES = {
    "KD": {},
    "Energy KD": {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "objective": "dkd(beta=2.0)"},
    "CTKD": {"temperature": "learned(warmup_epochs=1)"},
    "FitNet": {"objective": "kd + 2 * fitnet(layer='conv')", "temperature": "energy(ratio=0.2)"},
    "masks": {"temperature": "energy(ratio=0.2, level='item')", "weighting": "entropy(level='item')"},
    "LoRA": {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "objective": "kd(scale='none')"},
}
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


def session(case, folder, kill_at=None, save=None):
    """Train `case` in `folder` from its last whole checkpoint to the end; `save` gets the names of the events."""
    import torch

    from hfkd.experiments.run import train_to_the_end
    from hfkd.reports.results import ResultsCallback

    print_to(f"{folder}.log")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = {"LoRA": _language, "masks": _masks}.get(case, _images)(folder, CASES[case])
    events = Events(folder, kill_at)
    events.watch(trainer)
    train_to_the_end(trainer, ResultsCallback({}, metric="eval_loss"))
    trainer.save_model()
    if save:
        Path(save).write_text(json.dumps(events.names))


def _images(folder, slots):
    from scan_job import packed
    from torch import nn
    from toys import Net, arguments, teacher

    from hfkd import DistillationTrainer

    class Student(Net):
        """With dropout, and statistics that belong to no parameter."""

        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.3)

        def forward(self, x):
            return self.head(self.dropout(self.norm(self.conv(x)).relu().mean((2, 3))))

    rows = {"train_dataset": packed(61), "eval_dataset": packed(13, seed=3)}
    return DistillationTrainer(Student(), teacher(), arguments(folder, **KEYWORDS), **rows, **slots)


def _language(folder, slots):
    from peft import LoraConfig
    from text_toys import TokenRows, language_model, taught_model, tokenizer
    from toys import arguments

    from hfkd import DistillationTrainer

    student = language_model(dropout=0.2)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True)
    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    return DistillationTrainer(
        student,
        taught_model(),
        arguments(folder, **(KEYWORDS | steps)),
        peft_config=lora,
        processing_class=tokenizer(),
        train_dataset=TokenRows(61),
        eval_dataset=TokenRows(13, seed=3),
        **slots,
    )


def _masks(folder, slots):
    from task_toys import Pixels, masks
    from torch import nn
    from toys import arguments

    from hfkd import DistillationTrainer

    student = nn.Sequential(Pixels(4), nn.BatchNorm2d(3), nn.Dropout(0.3), nn.Conv2d(3, 3, 1))
    rows = {"train_dataset": masks(31), "eval_dataset": masks(7, seed=3)}
    args = arguments(folder, **KEYWORDS, task="semantic_segmentation")
    return DistillationTrainer(student, Pixels(8), args, **rows, **slots)


class Events:
    """Counts what a session does, and kills its process -9 at the event `kill_at`: a number, or (name, occurrence)."""

    def __init__(self, folder, kill_at):
        self.folder, self.kill_at, self.names = os.path.realpath(folder), kill_at, []

    def happens(self, name, half=None):
        if self.kill_at in (len(self.names), (name, self.names.count(name))):
            if half is not None and os.path.isfile(half):
                os.truncate(half, os.path.getsize(half) // 2)
            Path(f"{self.folder}.killed").write_text(name)
            Path(f"{self.folder}.lost").write_text(str(self.batches_since_checkpoint()))
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def batches_since_checkpoint(self):
        named = [i for i, name in enumerate(self.names) if name.startswith("rename checkpoint-")]
        return self.names[named[-1] if named else 0 :].count("step")

    def watch(self, trainer):
        import peft.peft_model
        import safetensors.torch
        import torch
        import transformers.modeling_utils
        from transformers import TrainerState

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
        self._wrap(torch, "save", "write", 1)
        self._wrap(safetensors.torch, "save_file", "write", 1)
        self._wrap(transformers.modeling_utils, "safe_save_file", "write", 1)
        self._wrap(peft.peft_model, "safe_save_file", "write", 1)
        self._wrap(TrainerState, "save_to_json", "write", 1)
        self._wrap(os, "replace", "rename", 1)
        self._wrap(os, "unlink", "delete", 0)
        self._wrap(os, "rmdir", "delete", 0)

    def _wrap(self, owner, name, event, position):
        inner = getattr(owner, name)

        def wrapped(*arguments, **keywords):
            result = inner(*arguments, **keywords)
            path = os.path.realpath(arguments[position]) if isinstance(arguments[position], (str, os.PathLike)) else ""
            if path.startswith(self.folder) or keywords.get("dir_fd") is not None:  # rmtree names what is in a folder
                self.happens(f"{event} {os.path.basename(path)}", half=path if event == "write" else None)
            return result

        setattr(owner, name, wrapped)


def sit(case, folder, kill_at=None, save=None):
    """`session` in a process of its own; the name of the event that killed it, or None when it ran through."""
    process = start(session, case, str(folder), kill_at, save)
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return Path(f"{folder}.killed").read_text()
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
