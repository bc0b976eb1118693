"""The model card of a student, README.md, generated from the trainer's state."""

import math
import re
from collections.abc import Mapping, Sized
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import unwrap_peft_model

from hfkd.evaluation.weights import step_of_weights
from hfkd.losses.distillation import SLOTS
from hfkd.models import CIFAR_NETS, InputSpec, Peers
from hfkd.models.label_names import label_names_of
from hfkd.models.peers import networks_of
from hfkd.models.started_from import started_from
from hfkd.reports.citations import citations
from hfkd.reports.evaluations import of_the_run
from hfkd.reports.history import teacher_scores
from hfkd.reports.loading import inputs_saved, loading_of
from hfkd.training.given_loss import reads_temperature
from hfkd.training.host import Host
from hfkd.utils.command import command, without_secrets
from hfkd.utils.files import write_atomically
from hfkd.utils.own_version import installed_version

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
OF_TEACHER = ("teacher", "teacher_images", "teacher_outputs")
HE_DA: dict[str, list[str]] = {"none": [], "paper": ["Energy()"], "released": ["Energy()"]}  # of the same paper
HUB_ID = r"[\w.-]+/[\w.-]+"
SPEED = re.compile(r"_(runtime|per_second|time)$")  # speed of the evaluation, not quality of the student


def write_card(
    trainer: Host,
    model_name: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    finetuned_from: str | None = None,
    dataset: str | list[str] | None = None,
    language: str | list[str] | None = None,
    tasks: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> None:
    """Write README.md into `output_dir`; keywords as in Trainer, None means the run's own value.

    `dataset` is the name of the data, `dataset_tags` their Hub ids, `dataset_args` their configuration; the first of
    `tasks` is the pipeline tag. Each is written as one line. The licence is `license`, else `args.model_license`; it is
    never guessed. The text contains no tokens and no local folders. Raises OSError naming the path if it cannot be
    written.
    """
    args, settings = trainer.args, trainer.settings
    student: Any = extract_model_from_parallel(trainer.model, keep_torch_compile=False)
    folder = Path(args.output_dir or ".")
    peers = isinstance(student, Peers)
    distilled = bool((settings["teacher"] or peers) and settings["kd_weight"])
    if not distilled:
        settings = {k: v for k, v in settings.items() if k not in (*SLOTS, *OF_TEACHER, "kd_weight")}
    elif not reads_temperature(trainer.distillation_loss, args):
        settings = {k: v for k, v in settings.items() if k != "temperature"}  # a default, which nothing reads
    step, loading = step_of_weights(trainer.state, args, trainer.is_in_train), loading_of(student)
    words = _words(
        name=model_name or (args.hub_model_id or folder.resolve().name).split("/")[-1],
        library=_library(student),
        task=(_several(tasks) or [trainer.task.hub_tag(trainer.call)])[0],
        dataset=", ".join(_several(dataset)) or trainer.details.get("dataset_name"),
        license=license or args.model_license,
        repository=trainer.hub_model_id or args.hub_model_id or model_name,
    )
    metrics = evaluation(trainer.state, step)
    data = _metadata(
        words,
        metrics,
        _several(dataset_tags),
        ", ".join(_several(dataset_args)) or None,
        language=language,
        tags=_tags(student, distilled, tags),
        base_model=finetuned_from or _started_from(student, trainer.details),
        distilled_from=re.findall(rf"({HUB_ID}) \(", str(settings.get("teacher"))) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **words,
        **_of_the_run(trainer, settings, words["dataset"], peers, distilled),
        metrics=metrics,
        loading=loading,
        inputs=inputs_saved(student, trainer.saved_processor),
        kind=type(student).__name__,
        module=type(student).__module__,
        step=step,
    )
    write_atomically(folder / FILE, without_secrets(f"{card}\n", [args.hub_token]).encode())


def _of_the_run(
    trainer: Host, settings: Mapping[str, Any], dataset: str | None, peers: bool, distilled: bool
) -> dict[str, Any]:
    """How the student was trained, and its citations."""
    args = trainer.args
    assistants = ", ".join(trainer.details.get("assistants", ())) or None
    hfkd_version = installed_version("hfkd") or "of an unknown version"
    methods = (["Peers()"] if peers else []) + (["TAKD()"] if assistants else []) + HE_DA[args.he_da]
    return {
        "settings": _cells(
            {"data": dataset, "assistants": assistants}
            | {"classes": _classes(trainer), "images": _images(trainer), **_texts(trainer.details), **settings}
        ),
        "item": trainer.task.item,
        "first_rows": trainer.task.vocabulary,
        "next_tokens": trainer.task.pipeline_tag == "text-generation",
        "distilled": distilled,
        "peers": peers,
        "cifar": settings["student"].split(" ")[0] in CIFAR_NETS,
        "command": command(),
        "processes": args.world_size,
        "versions": f"hfkd {hfkd_version}, transformers {transformers.__version__}, torch {torch.__version__}",
        "seed": args.seed,
        "rows": _rows(trainer.own_set),
        "teacher_scores": teacher_scores(trainer.state.log_history),
        "bibtex": citations([*(str(settings[s]) for s in SLOTS if s in settings), *methods]) if distilled else "",
    }


def _classes(trainer: Host) -> str | None:
    """The class names, for a student that is saved without its config, such as a detector or adapters; else None."""
    student: Any = extract_model_from_parallel(trainer.model, keep_torch_compile=False)
    if all(isinstance(one, PreTrainedModel) for one in networks_of(student)):
        return None
    names = trainer.class_names or label_names_of(student)
    return f"`{', '.join(names)}`, in the order of its outputs" if names else None


def _images(trainer: Host) -> str | None:
    """How images are prepared, for a student beside which no image processor is saved; else None.

    The sizes of a detector, which resizes images itself, are not among its weights.
    """
    student: Any = extract_model_from_parallel(trainer.model, keep_torch_compile=False)
    own, received = getattr(student, "transform", None), trainer.received
    if isinstance(own, GeneralizedRCNNTransform):
        spec = InputSpec(tuple(own.image_mean), tuple(own.image_std), None)
        return (
            f"resized by the network (min_size={own.min_size}, max_size={own.max_size}) and normalised by it "
            f"({spec.in_words})"
        )
    if not received.certain or received.spec is None or inputs_saved(student, trainer.saved_processor):
        return None
    size = f", {' x '.join(map(str, received.size))} pixels in training" if received.size else ""
    return f"{received.spec.in_words}, of values from 0 to 1{size}"


def _texts(details: Mapping[str, Any]) -> dict[str, Any]:
    """How a recipe's texts were written and cut, which the saved tokenizer does not say; empty for other runs."""
    found: dict[str, Any] = {"max_length": details.get("max_length")}
    if "chat_template" in details:
        own = "as they are, instructions in `hfkd.data.instructions.instruction_prompt`; not in a chat template"
        by_template = details["chat_template"] or details.get("prompts_with_template")
        found["prompts"] = "by the tokenizer's chat template" if by_template else own
    return found


def _words(**words: str | None) -> dict[str, str | None]:
    """Each value as one line; the repository defaults to the student's name."""
    lines = {name: value and _line(value) for name, value in words.items()}
    return lines | {"repository": lines["repository"] or lines["name"]}


def _metadata(
    words: dict[str, Any], metrics: dict[str, float], ids: list[str], configuration: str | None, **entries: Any
) -> ModelCardData:
    """`ids`: Hub ids of the datasets, by default the dataset's name if it is one."""
    dataset, task = words["dataset"], words["task"]
    ids = ids or ([dataset] if dataset and re.fullmatch(HUB_ID, dataset) else [])
    kind = ids[0] if ids else dataset
    results = [
        EvalResult(task, kind, dataset or kind, name, value, dataset_config=configuration)
        for name, value in metrics.items()
        if kind
    ]
    return ModelCardData(
        model_name=words["name"] if results else None,  # belongs to the results
        license=words["license"],
        library_name=words["library"],
        pipeline_tag=task,
        datasets=ids or None,
        eval_results=results or None,
        **entries,
    )


def evaluation(state: TrainerState, step: int) -> dict[str, float]:
    """Metrics on the run's own evaluation set of the weights of `step`."""
    logged: dict[str, Any] = {}
    for entry in state.log_history:
        if entry.get("step") == step and of_the_run(entry):
            logged |= {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
    numbers = {k: float(v) for k, v in logged.items() if isinstance(v, (int, float)) and not SPEED.search(f"_{k}")}
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


def _rows(data: Any) -> int | None:
    """The number of evaluated rows; None for a stream and for several sets."""
    return len(data) if isinstance(data, Sized) and not isinstance(data, dict) else None


def _library(student: Any) -> str:
    """The library that loads the saved student."""
    if unwrap_peft_model(student) is not student:
        return "peft"
    return "transformers" if isinstance(student, PreTrainedModel) else "pytorch"


def _tags(student: Any, distilled: bool, tags: str | list[str] | None) -> list[str]:
    model = unwrap_peft_model(student)
    own = (model.model_tags if isinstance(model, PreTrainedModel) else None) or []
    return ["hfkd", *(["knowledge-distillation"] if distilled else []), *own, *_several(tags)]


def _started_from(student: Any, details: Mapping[str, Any]) -> str | None:
    """The Hub id of the weights that training started from; None for random and local weights."""
    name = "" if details.get("from_config") else started_from(unwrap_peft_model(student)) or ""
    return name if re.fullmatch(rf"[\w.-]+|{HUB_ID}", name) and not Path(name).exists() else None


def _several(values: str | list[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else values or []


def _line(value: Any) -> str:
    """A value as a part of one line."""
    return " ".join(str(value.value if isinstance(value, Enum) else value).split())


def _cells(settings: Mapping[str, Any]) -> dict[str, str]:
    """Values in cells of a table, without those that are not set."""
    told = {name: value for name, value in settings.items() if value is not None and value != -1}
    return {name: _line(value).replace("|", "\\|") for name, value in told.items()}
