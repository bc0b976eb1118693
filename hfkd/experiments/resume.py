"""Image runs that belong to something larger, a table or a chain: what is finished is kept, and never mistaken."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.distil import distil_images
from hfkd.experiments.run import without_paths
from hfkd.models import NetworkArguments
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.reports.results import RESULTS_NAME
from hfkd.teachers.source import weights_source
from hfkd.utils.json_file import jsonable, read_json, write_json
from hfkd.utils.output_folder import on_this_machine, refuse_inputs

SETTINGS_NAME = "settings.json"
# of Trainer's own flags, those that decide what comes out: what is learned, and which student is kept and how scored
DECISIVE = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
    *("average_tokens_across_devices", "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "seed", "data_seed"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps"),
    *("eval_delay", "label_smoothing_factor"),
)
PROCESSES = "world_size"  # a batch is per_device_train_batch_size on each of them
WEIGHTS = {  # hashes of the local weights that these flags name: of their paths the last name alone is kept
    "teacher_weights": ("teacher_name", "teacher_checkpoint"),
    "student_weights": ("student_name", "student_checkpoint"),
}
RECORDED_LATER = (PROCESSES, *WEIGHTS)  # earlier versions did not
# of ours, those that decide speed, memory and places alone, but for rounding; all others are decisive
INDIFFERENT = {
    *("channels_last", "keep_freed_memory", "loss_chunk_size", "model_license", "resident", "scan_cache_dir"),
    *("teacher_cache_dir", "teacher_cache_on_device"),
    *(f.name for f in fields(OnPolicyArguments)),  # of language models, refused with images
}
# decides nothing in a run that met no NaN, and how one that did may go on
RETRIED = ("on_nan",)


def deciding(networks: NetworkArguments, data: ImageDataArguments, args: DistillationArguments) -> dict[str, Any]:
    """The settings that decide what comes out of a run and by which protocol, free of a machine's paths."""
    ours = {f.name for f in fields(args)} - {f.name for f in fields(TrainingArguments)}
    settings = vars(networks) | vars(data) | {name: getattr(args, name) for name in [*sorted(ours), *DECISIVE]}
    settings |= {"temperature": args.slot_temperature, PROCESSES: args.world_size}
    settings |= {name: _hashes([vars(networks)[flag] for flag in flags]) for name, flags in WEIGHTS.items()}
    return jsonable(without_paths({name: value for name, value in settings.items() if name not in INDIFFERENT}))


def _hashes(given: Sequence[str | list[str] | None]) -> list[str]:
    """Of the files and folders among the networks' names and their weights."""
    names = [name for one in given for name in ([one] if isinstance(one, str) else one or [])]
    found = [weights_source(name) for name in names if on_this_machine(name)]
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class Run:
    """One run: what it was told, and what its results.json says. `status`: "finished", "failed" or "running"."""

    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    status: str

    def difference(self, settings: Mapping[str, Any], besides: Collection[str] = RETRIED) -> str | None:
        """The first of `settings` that this run was told another value of, in words."""
        for name, value in settings.items():
            if name not in self.settings and (not value or name in RECORDED_LATER):
                continue  # a version that did not have it
            there = self.settings.get(name)
            if name not in besides and there != value and str(there) != str(value):  # "4.0" may be kept as a number
                return f"its {name} is {there}, this one's is {value}"
        return None


def kept_run(folder: str | Path) -> Run | None:
    """The run in `folder`, as it was left; None where there is none."""
    results, settings = (_read(Path(folder) / name) for name in (RESULTS_NAME, SETTINGS_NAME))
    if results is None and settings is None:
        return None
    status = (results or {}).get("status", "running")
    # Trainer writes its arguments after the weights: without them the student may be half a file.
    whole = status != "finished" or (Path(folder) / TRAINING_ARGS_NAME).is_file()
    return Run(settings or {}, results or {}, status if whole else "running")


def finished(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results of the run in `folder` if it got to its end, else None; ValueError if its settings are others.

    A run that failed may be tried again with other settings.
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
        raise ValueError(f"{folder} holds another run: {difference}; choose another output_dir, or delete that one")


def distil_and_keep(
    networks: NetworkArguments,
    data: ImageDataArguments,
    args: DistillationArguments,
    page: bool = True,
    assistants: Sequence[str] = (),
) -> None:
    """`distil_images`, with its settings left in the folder for `finished`, and the device emptied for the next run.

    A failed run of other settings that the folder holds is moved aside; one that differs in `on_nan` alone goes on from
    its last checkpoint.
    """
    refuse_inputs(args.output_dir, vars(networks) | vars(data))  # the command named the folder of all runs alone
    folder, settings = Path(args.output_dir or "."), deciding(networks, data, args)
    with args.main_process_first(local=False, desc="making room for the run"):
        if args.should_save:
            _move_aside(folder, settings)
            write_json(folder / SETTINGS_NAME, settings)
    try:
        distil_images(networks, data, args, page, assistants)
    finally:
        clear_device_cache(garbage_collection=True)


def _move_aside(folder: Path, settings: Mapping[str, Any]) -> None:
    run = kept_run(folder)
    if run is not None and run.status == "failed" and run.difference(settings) is not None:
        taken = len(list(folder.parent.glob(f"{folder.name}.failed-*")))
        folder.rename(folder.with_name(f"{folder.name}.failed-{taken + 1}"))


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
