"""Resuming of image runs that are part of a table or a chain: finished runs are kept if their settings are equal."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.data.source import data_source
from hfkd.experiments.distil import distil_images
from hfkd.experiments.run import without_paths
from hfkd.models import NetworkArguments
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.reports.results import RESULTS_NAME
from hfkd.teachers.source import weights_source
from hfkd.utils import formats
from hfkd.utils.json_file import jsonable, read_json, write_json
from hfkd.utils.launch import refuse_other_runs
from hfkd.utils.output_folder import on_this_machine, refuse_inputs

SETTINGS_NAME = "settings.json"
OTHER_VERSION = "continue with the version that wrote it, or choose another output_dir"
# Trainer's flags that determine the result: training, choice of the best checkpoint, and evaluation
DECISIVE = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
    *("average_tokens_across_devices", "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "seed", "data_seed"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps"),
    *("eval_delay", "label_smoothing_factor"),
)
PROCESSES = "world_size"  # each has a batch of per_device_train_batch_size
WEIGHTS = {  # hashes of local weights in these flags, since only the last part of paths is kept
    "teacher_weights": ("teacher_name", "teacher_checkpoint"),
    "student_weights": ("student_name", "student_checkpoint"),
}
DATA = "data_files"  # likewise, of a dataset on this machine
RECORDED_LATER = (PROCESSES, *WEIGHTS, DATA)  # not recorded by earlier versions
# hfkd's flags that affect only speed, memory and paths (besides rounding); all others determine the result
INDIFFERENT = {
    *("channels_last", "keep_freed_memory", "loss_chunk_size", "model_license", "resident", "scan_cache_dir"),
    *("teacher_cache_dir", "teacher_cache_on_device"),
    *(f.name for f in fields(OnPolicyArguments)),  # for language models, refused with images
}
# without effect in runs without NaN; may be changed to continue a run with NaN
RETRIED = ("on_nan",)


def deciding(networks: NetworkArguments, data: ImageDataArguments, args: DistillationArguments) -> dict[str, Any]:
    """The settings that determine the result of a run, without local paths."""
    ours = {f.name for f in fields(args)} - {f.name for f in fields(TrainingArguments)}
    settings = vars(networks) | vars(data) | {name: getattr(args, name) for name in [*sorted(ours), *DECISIVE]}
    settings |= {"temperature": args.slot_temperature, PROCESSES: args.world_size}
    settings |= {name: _hashes([vars(networks)[flag] for flag in flags]) for name, flags in WEIGHTS.items()}
    settings |= {DATA: data_source(data.dataset_name)}
    return jsonable(without_paths({name: value for name, value in settings.items() if name not in INDIFFERENT}))


def _hashes(given: Sequence[str | list[str] | None]) -> list[str]:
    """Hashes of the files and folders among the names and weights of networks."""
    names = [name for one in given for name in ([one] if isinstance(one, str) else one or [])]
    found = [weights_source(name) for name in names if on_this_machine(name)]
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class Run:
    """One run: its settings and the content of its results.json. `status`: "finished", "failed" or "running"."""

    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    status: str

    def difference(self, settings: Mapping[str, Any], besides: Collection[str] = RETRIED) -> str | None:
        """Describe the first of `settings` that differs from this run's; None if there is none."""
        for name, value in settings.items():
            if name not in self.settings and (not value or name in RECORDED_LATER):
                continue  # not recorded by earlier versions
            there = self.settings.get(name)
            if name not in besides and there != value and str(there) != str(value):  # "4.0" may be stored as a number
                return f"its {name} is {there}, that of this run is {value}"
        return None


def kept_run(folder: str | Path) -> Run | None:
    """The run in `folder`; None if there is none. Raises ValueError for one of another version."""
    results, settings = (_read(Path(folder) / name) for name in (RESULTS_NAME, SETTINGS_NAME))
    if results is None and settings is None:
        return None
    settings = settings or {}
    formats.refuse_other_version(Path(folder) / SETTINGS_NAME, settings, formats.TABLE_RUN, OTHER_VERSION)
    status = (results or {}).get("status", "running")
    # Trainer writes its arguments after the weights: without them the weights may be incomplete.
    whole = status != "finished" or (Path(folder) / TRAINING_ARGS_NAME).is_file()
    of_run = {name: value for name, value in settings.items() if name != formats.VERSION}
    return Run(of_run, results or {}, status if whole else "running")


def finished(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results of the run in `folder` if it is finished, else None.

    Raises ValueError if its settings differ. A failed run may be repeated with other settings.
    """
    run = kept_run(folder)
    if run is None or run.status == "failed":
        return None
    refuse_other(folder, run, settings)
    return dict(run.results) if run.status == "finished" else None


def refuse_other(folder: str | Path, run: Run, settings: Mapping[str, Any], besides: Collection[str] = RETRIED) -> None:
    """Raise ValueError if the run in `folder` has other settings."""
    difference = run.difference(settings, besides)
    if difference is not None:
        raise ValueError(f"{folder} contains another run: {difference}; choose another output_dir, or delete that run")


def distil_and_keep(
    networks: NetworkArguments,
    data: ImageDataArguments,
    args: DistillationArguments,
    page: bool = True,
    assistants: Sequence[str] = (),
) -> None:
    """`distil_images`, with its settings stored in the folder for `finished`, and device memory freed for the next run.

    A failed run with other settings in the folder is moved aside; one that differs only in `on_nan` continues from its
    last checkpoint.
    """
    args = _from_its_own_checkpoint(args)
    refuse_other_runs(args.output_dir or ".")
    refuse_inputs(args.output_dir, vars(networks) | vars(data))  # the command line gave the parent folder
    folder, settings = Path(args.output_dir or "."), deciding(networks, data, args)
    with args.main_process_first(local=False, desc="making room for the run"):
        if args.should_save:
            _move_aside(folder, settings)
            write_json(folder / SETTINGS_NAME, formats.with_version(settings, formats.TABLE_RUN))
    try:
        distil_images(networks, data, args, page, assistants)
    finally:
        clear_device_cache(garbage_collection=True)


def _from_its_own_checkpoint(args: DistillationArguments) -> DistillationArguments:
    """`args` of one run of several: it resumes from its last checkpoint, if there is one. ValueError for another one.

    resume_from_checkpoint=True, meant for a run that was interrupted, would end the next one, which has none yet.
    """
    if isinstance(args.resume_from_checkpoint, str):
        raise ValueError(
            f"resume_from_checkpoint={args.resume_from_checkpoint} is the checkpoint of one run, and this command has "
            "several, each of which resumes from its own last one: leave it out"
        )
    return replace(args, resume_from_checkpoint=None) if args.resume_from_checkpoint else args


def _move_aside(folder: Path, settings: Mapping[str, Any]) -> None:
    run = kept_run(folder)
    if run is not None and run.status == "failed" and run.difference(settings) is not None:
        taken = len(list(folder.parent.glob(f"{folder.name}.failed-*")))
        folder.rename(folder.with_name(f"{folder.name}.failed-{taken + 1}"))


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
