"""Image runs that belong to something larger, a table or a chain: what is finished is kept, and never mistaken."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.json_file import jsonable, write_json
from hfkd.models import NetworkArguments
from hfkd.output_folder import refuse_inputs
from hfkd.report.distil import distil_images
from hfkd.report.results import RESULTS_NAME
from hfkd.report.run import without_paths

SETTINGS_NAME = "settings.json"
# of Trainer's own flags, those that decide what comes out: what is learned, and which student is kept and how scored
DECISIVE = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
    *("average_tokens_across_devices", "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "seed", "data_seed"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps"),
)
# of ours, those that decide speed, memory and places alone, but for rounding; all others are decisive
INDIFFERENT = {
    *("channels_last", "keep_freed_memory", "loss_chunk_size", "model_license", "resident", "scan_cache_dir"),
    *("teacher_cache_dir", "teacher_cache_on_device"),
}


def deciding(networks: NetworkArguments, data: ImageDataArguments, args: DistillationArguments) -> dict[str, Any]:
    """The settings that decide what comes out of a run and by which protocol, free of a machine's paths."""
    ours = {f.name for f in fields(args)} - {f.name for f in fields(TrainingArguments)}
    settings = vars(networks) | vars(data) | {name: getattr(args, name) for name in [*sorted(ours), *DECISIVE]}
    return jsonable(without_paths({name: value for name, value in settings.items() if name not in INDIFFERENT}))


def finished(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results of the run in `folder` if it got to its end, else None; ValueError if its settings are others."""
    results = _read(Path(folder) / RESULTS_NAME)
    known = _read(Path(folder) / SETTINGS_NAME) or (settings if results is None else {})
    for name, value in settings.items():
        if known.get(name) != value:
            raise ValueError(
                f"{folder} holds another run: its {name} is {known.get(name)}, this one's is {value}; choose another "
                "output_dir, or delete that one"
            )
    # Trainer writes its arguments after the weights: without them the student may be half a file.
    saved = (Path(folder) / TRAINING_ARGS_NAME).is_file()
    return results if results is not None and results["status"] == "finished" and saved else None


def distil_and_keep(
    networks: NetworkArguments,
    data: ImageDataArguments,
    args: DistillationArguments,
    page: bool = True,
    assistants: Sequence[str] = (),
) -> None:
    """`distil_images`, with its settings left in the folder for `finished`, and the device emptied for the next run."""
    refuse_inputs(args.output_dir, vars(networks) | vars(data))  # the command named the folder of all runs alone
    if args.should_save:
        write_json(Path(args.output_dir or ".") / SETTINGS_NAME, deciding(networks, data, args))
    distil_images(networks, data, args, page, assistants)
    clear_device_cache(garbage_collection=True)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
