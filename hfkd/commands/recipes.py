"""The recipes as commands: which script each one runs, and how it is started."""

import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence

from hfkd.utils.command import TYPED
from hfkd.utils.command_line_error import CommandLineError
from hfkd.utils.shipped import shipped, shipped_or_given

RECIPES = {  # command: script of recipes/
    "image": "cifar100_energy_kd",
    "text": "gpt2_dolly_eakd",
    "classify-text": "text_classification",
    "masked-lm": "masked_lm",
    "segment": "segmentation",
    "detect": "coco_detection",
    "train-teacher": "train_teacher",
    "sft": "sft",
    "generate": "generate_responses",
    "evaluate": "evaluate_instruct",
    "analyse": "analyse",
    "reproduce": "reproduce",
    "takd": "takd",
    "dml": "dml",
    "demo": "digits_demo",
}


def run_recipe(name: str, arguments: Sequence[str], accelerate: str | None = None) -> int:
    """Run a recipe as `python recipes/...py` does, or under `accelerate launch`, and return its exit status.

    accelerate: a configuration file of accelerate, or the name of one that comes with hfkd (`cpu`, `multi_gpu`, ...).
    Raises ValueError if there is no such file, and for the flag behind the name of the recipe.
    """
    if any(word.partition("=")[0] == "--accelerate" for word in arguments):
        raise CommandLineError(f"--accelerate comes before the command: hfkd --accelerate CONFIG {name} ...")
    script = shipped("recipes") / f"{RECIPES[name]}.py"
    typed = ["hfkd", *(["--accelerate", accelerate] if accelerate else []), name]
    os.environ[TYPED] = shlex.join(typed)  # usage, model cards and results.json show what was typed
    if accelerate is None:
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")
        return 0
    folder = shipped("accelerate_configs")
    file = shipped_or_given(accelerate, folder)
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise CommandLineError(
            f"--accelerate {accelerate}: no such file; pass a path, or one of those that come with hfkd: {names}"
        )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return subprocess.run([*launcher, str(script), *arguments]).returncode
