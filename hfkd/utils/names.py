"""Names that a run writes to, or into what it publishes: refused where they would do something else there."""

import os
import unicodedata
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfkd.utils.command import without_secrets

BREAKS = ("Cc", "Zl", "Zp")  # control characters, and what Unicode calls a separator of lines or paragraphs


def check_names(args: Any) -> None:
    """Raise ValueError for an output folder that can be none, a repository that cannot be, or a name of several lines.

    The lines would become lines of the model card, and of the commands that messages give.
    """
    for name in ("output_dir", "hub_model_id", "model_license"):
        value = getattr(args, name)
        if value is not None and any(unicodedata.category(character) in BREAKS for character in value):
            raise ValueError(f"{name}={value!r} has a line break or another control character: leave it out")
    if args.hub_model_id:
        try:
            validate_repo_id(args.hub_model_id)
        except HFValidationError as error:
            raise ValueError(f"hub_model_id={args.hub_model_id!r} can be no repository: {error}") from error
    _check_folder(Path(args.output_dir or ".").expanduser())


def _check_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"output_dir={folder}: {path} is a link to what is not there; make its target, or delete it"
            )
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"output_dir={folder}: {path} is no folder; choose another output_dir")
            if path != folder and not os.access(path, os.W_OK | os.X_OK):
                raise ValueError(
                    f"output_dir={folder} is to be made in {path}, which is not writable: choose a folder that is"
                )
            return


def publishable(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of arguments without the Hub's token, and with every secret in a text hidden.

    An output folder below the working directory is relative to it.
    """
    known, folder = [state.get("hub_token")], Path(state.get("output_dir") or ".")
    hidden = {k: without_secrets(v, known) if isinstance(v, str) else v for k, v in state.items()}
    below = {"output_dir": str(folder.relative_to(Path.cwd()))} if folder.is_relative_to(Path.cwd()) else {}
    return hidden | below | {"hub_token": None}
