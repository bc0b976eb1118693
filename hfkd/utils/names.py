"""Checks of the names that a run writes to or publishes."""

import os
import unicodedata
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfkd.utils.command import without_secrets

SECRET_FILES = (".env", ".netrc")
BREAKS = ("Cc", "Zl", "Zp")  # control characters, and Unicode's line and paragraph separators


def check_names(args: Any) -> None:
    """Raise ValueError for an invalid output folder or repository, a name with line breaks, or an upload of tokens.

    Line breaks would add lines to the model card, and to the commands in messages.
    """
    for name in ("output_dir", "hub_model_id", "model_license"):
        value = getattr(args, name)
        if value is not None and any(unicodedata.category(character) in BREAKS for character in value):
            raise ValueError(f"{name}={value!r} has a line break or another control character: remove it")
    if args.hub_model_id:
        try:
            validate_repo_id(args.hub_model_id)
        except HFValidationError as error:
            raise ValueError(f"hub_model_id={args.hub_model_id!r} is not a valid repository: {error}") from error
    folder = Path(args.output_dir or ".").expanduser()
    _check_folder(folder)
    if args.push_to_hub:
        _refuse_secret_files(folder)
        _refuse_caches(folder, args)


def _refuse_secret_files(folder: Path) -> None:
    """Raise ValueError for a folder that is uploaded, such as that of a project, with a file of access tokens."""
    found = next((folder / name for name in SECRET_FILES if (folder / name).is_file()), None)
    if found is not None:
        raise ValueError(
            f"output_dir={folder} has {found}, in which programs keep access tokens, and push_to_hub=True uploads the "
            "whole folder: choose another output_dir, or move the file away"
        )


def _refuse_caches(folder: Path, args: Any) -> None:
    """Raise ValueError for a folder that is uploaded and contains a cache, which may take gigabytes."""
    for name in ("teacher_cache_dir", "scan_cache_dir"):
        cache = Path(getattr(args, name) or os.devnull).expanduser().absolute()
        inside = cache.relative_to(folder.absolute()) if cache.is_relative_to(folder.absolute()) else None
        if inside is not None and not str(inside).startswith("_"):  # names that Trainer never uploads
            raise ValueError(
                f"{name}={cache} is inside output_dir={folder}, which push_to_hub=True uploads as a whole: choose a "
                "folder outside of it"
            )


def _check_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"output_dir={folder}: {path} is a link whose target does not exist; create the target, or delete the "
                "link"
            )
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"output_dir={folder}: {path} is not a folder; choose another output_dir")
            if path != folder and not os.access(path, os.W_OK | os.X_OK):
                raise ValueError(
                    f"output_dir={folder} cannot be created, because {path} is not writable: choose another folder"
                )
            return


def publishable(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of arguments without the Hub token, and with secrets in texts hidden.

    An output folder below the working directory is given relative to it.
    """
    known, folder = [state.get("hub_token")], Path(state.get("output_dir") or ".")
    hidden = {k: without_secrets(v, known) if isinstance(v, str) else v for k, v in state.items()}
    below = {"output_dir": str(folder.relative_to(Path.cwd()))} if folder.is_relative_to(Path.cwd()) else {}
    return hidden | below | {"hub_token": None}
