"""Identifies the files of a model without loading it."""

import json
from pathlib import Path

import xxhash
from huggingface_hub import try_to_load_from_cache

from hfkd.utils.files import add_samples

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*config.json")


def model_source(name_or_path: str | Path) -> str | None:
    """A hash of samples of a model's files, in a folder or of a downloaded Hub id; None without files.

    For an adapter it includes the base model.
    """
    folder = folder_of(name_or_path)
    if folder is None:
        return None
    digest = xxhash.xxh3_128()
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file()})
    for file in files:
        digest.update(file.name.encode())
        add_samples(file, digest)
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") if adapter.is_file() else None
    digest.update(str(model_source(base) if base else "").encode())
    return digest.hexdigest() if files else None


def weights_source(path: str | Path) -> str | None:
    """A hash of samples of a file of weights, or `model_source` of a folder."""
    file = Path(path).expanduser()
    if not file.is_file():
        return model_source(path)
    digest = xxhash.xxh3_128()
    add_samples(file, digest)
    return digest.hexdigest()


def folder_of(name_or_path: str | Path, revision: str | None = None) -> Path | None:
    """The folder of a model or of a downloaded Hub id; None for one that is not on this machine."""
    if (path := Path(name_or_path).expanduser()).is_dir():
        return path
    for file in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(str(name_or_path), file, revision=revision)
        except ValueError:  # not a Hub id
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
