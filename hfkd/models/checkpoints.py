"""Strict loading of published weights, without running code from pickles."""

import logging
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from hfkd.models.conversion import as_in_network
from hfkd.utils.json_file import json_if_any
from hfkd.utils.messages import some
from hfkd.utils.saved_weights import TRAINING_ARGS, refuse_damaged

logger = logging.getLogger(__name__)

WRAPPERS = ("model", "state_dict")  # keys under which training scripts store the weights
PREFIXES = ("module.", "_orig_mod.", "timm_model.")  # DataParallel, torch.compile, transformers' TimmWrapper
SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
PICKLED = (".bin", ".pt", ".pth")
INSIDE = ("checkpoint-*", "peer_*")  # what the folder of a run may have models in
SAVED_NAMES = ("model.safetensors", "pytorch_model.bin")  # of save_pretrained and the Hub, beside config.json


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a local .pth, .pt, .bin or .safetensors file into `module`: all weights must be present, fit and be finite.

    The file holds a state_dict, either alone or under "model" or "state_dict" beside other entries. Prefixes that
    wrappers add to every name (`module.`, `_orig_mod.`, `timm_model.`) are ignored, in the file and in `module`. Only
    batch norm's `num_batches_tracked` may be missing: PyTorch before 0.4.1 did not write this counter, and no output
    depends on it. Batch norm that is folded into weight and bias loads without a special case: such files have running
    statistics that make it exact (mean 0, variance 1 - eps). Names and shapes that transformers saves differently from
    those of its models are converted, as in `from_pretrained`. Raises ValueError, without a change to `module`, for any
    other file.
    """
    path = Path(path)
    found, own = read_state_dict(path), module.state_dict()
    names = dict(zip(_bare(own), own, strict=True))  # bare name -> name in the module
    bare_names = {name: bare for bare, name in names.items()}
    converted = as_in_network(module, dict(zip(_bare(found), found.values(), strict=True)))
    weights = {bare_names.get(name, name): tensor for name, tensor in converted.items()}
    for bare, name in names.items():
        if bare.endswith("num_batches_tracked"):
            weights.setdefault(bare, own[name])
    check_fit(path, module, weights, {bare: own[name] for bare, name in names.items()})
    for bare, name in names.items():
        _check_finite(path, bare, weights[bare].to(own[name].dtype))
    module.load_state_dict({name: weights[bare] for bare, name in names.items()}, strict=True)


def refuse_other_architecture(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Raise ValueError if the config.json beside a saved model's weights names another timm architecture.

    The same weights may fit two architectures (efficientnet_lite0 and tf_efficientnet_lite0 differ in padding, ViT and
    DeiT in normalisation), which would only show in the accuracy. Without this file, only `teacher_accuracy` finds it.
    """
    path, mine = Path(path), getattr(getattr(model, "config", None), "architecture", None)
    if path.name not in SAVED_NAMES or mine is None:
        return
    its = (json_if_any(path.parent / CONFIG_NAME) or {}).get("architecture")
    if isinstance(its, str) and its.split(".")[0] != str(mine).split(".")[0]:
        raise ValueError(
            f"checkpoint {path} belongs to the architecture {its!r} according to the config.json beside it, not to "
            f"{mine!r}, even if its weights fit: pass {its.split('.')[0]!r}"
        )


def refuse_no_model(name: str | os.PathLike[str]) -> None:
    """Raise ValueError for a folder in which no model is saved, such as that of a run that has not ended.

    transformers would say that its config.json lacks the model's type, or that it has no tokenizer.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() or any((folder / file).is_file() for file in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        return
    inside = models_inside(folder)
    there = f": pass one of the models in it ({some(inside)})" if inside else ": pass a saved model"
    raise ValueError(
        f"{folder} has no config.json, as no model is saved in the folder of a run that has not ended, of networks "
        f"that taught each other, or of a network that is not one of transformers{there}"
    )


def models_inside(name: str | os.PathLike[str]) -> list[str]:
    """The checkpoints and peers in the folder of a run."""
    folder = Path(name).expanduser()
    return sorted({path.parent.name for pattern in INSIDE for path in folder.glob(f"{pattern}/*config.json")})


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by their names in the file.

    Warns if it has other weights of the same network besides, such as an average of them.
    """
    path = Path(path)
    refuse_damaged(path.parent, [path.name])
    content = _read(path)
    if isinstance(content, Mapping):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is not None:
            _say_others(path, content, key)
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"checkpoint {path} holds {_kind(content)}, not named weights: pass a file with a state_dict")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise ValueError(
            f"checkpoint {path} has entries that are not named tensors ({some(odd)}) where a state_dict was expected: "
            f"store the state_dict alone, or under one of {list(WRAPPERS)}"
        )
    return dict(content)


def _say_others(path: Path, content: Mapping, loaded: str) -> None:
    """Warn if a file has weights with the names of those that are loaded under other keys, such as timm's average."""
    named = {key: set(_bare(map(str, value))) for key, value in content.items() if isinstance(value, Mapping)}
    names = named.pop(loaded)
    others = [key for key, its in named.items() if its == names]
    if names and others:
        logger.warning(
            "%s has other weights of this network under %s (such as their average over training, EMA). Those under "
            "%r are loaded: if the accuracy you know is that of the others, save these alone and pass that file.",
            path,
            some(map(repr, others)),
            loaded,
        )


@contextmanager
def naming_unreadable(source: str | os.PathLike[str]) -> Iterator[None]:
    """While loading from the folder or Hub id `source`, raise a ValueError that names any file that is not of tensors.

    transformers and Trainer load tensors only, as `load_checkpoint` does, but their exceptions do not name the file.
    Compressed archives (`refuse_compressed`) are refused before.
    """
    for path in sorted(p for p in Path(source).glob("*") if p.suffix in PICKLED) if source else ():
        refuse_compressed(path)
    if source:
        refuse_damaged(Path(source))
    try:
        yield
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        with safe_globals():  # for the random states of numpy and Python in Trainer's checkpoints
            for path in sorted(p for p in Path(source).glob("*") if p.suffix in SUFFIXES and p.name != TRAINING_ARGS):
                _read(path)
        if isinstance(error, (pickle.UnpicklingError, SafetensorError)):
            raise ValueError(
                f"the weights of {source} contain objects other than tensors, which are not loaded because this could "
                f"run code: {error}"
            ) from error
        raise


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for an archive whose entries are larger than the file: a small file could fill the memory.

    torch.save does not compress.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError):  # the reader of the file reports what is wrong with it
        return
    if size > (whole := path.stat().st_size):
        raise ValueError(
            f"checkpoint {path} is a compressed archive of {whole:,} bytes that expands to {size:,} bytes, which "
            "torch.save does not write: store the state_dict with torch.save or safetensors"
        )


def _read(path: Path) -> object:
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: pass the path of a weights file on this machine")
    if path.is_dir():
        raise ValueError(
            f"checkpoint {path} is a folder: pass the weights file in it, or load a saved model with "
            "hfkd.models.image_classifier(folder, num_labels)"
        )
    if path.suffix != ".safetensors":
        refuse_compressed(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # permissions, disks: the original message is clear
    except Exception as error:  # an unpickler may raise any exception on a file that is not of tensors
        raise ValueError(
            f"checkpoint {path} is not a file of tensors (damaged, incomplete, or a pickle of other objects, which is "
            "never run): download it again, or store the state_dict alone with torch.save or safetensors"
        ) from error


def _bare(names: Iterable[str]) -> list[str]:
    """The names without the wrapper prefixes that all of them share."""
    names = list(names)
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return names


def check_fit(path: Path, module: nn.Module, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `weights`, from the file `path`, have the names and shapes of `own`, those of
    `module`."""
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "wrong-shaped": [
            f"{name}: file {tuple(weights[name].shape)}, model {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in problems.items() if names)
        raise ValueError(
            f"checkpoint {path} does not fit {type(module).__name__}: {listed}. Pass the architecture and the "
            "num_labels it was trained with, or another checkpoint"
        )


def _check_finite(path: Path, name: str, weight: Tensor) -> None:
    if weight.is_floating_point() and not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(
            f"checkpoint {path}: {bad} of the {weight.numel()} values of {name} are NaN or infinite: its training "
            "diverged or the file is damaged, pass another checkpoint"
        )


def _kind(content: object) -> str:
    return "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
