"""The `hfkd` command line: recipes by short names, and listings."""

import argparse
import ast
import json
from collections.abc import Sequence

from hfkd.commands.recipes import RECIPES, run_recipe
from hfkd.utils.command import print_in_any_encoding
from hfkd.utils.own_version import installed_version
from hfkd.utils.shipped import shipped

TOLD = {
    "methods": "Print every objective, temperature and weighting with its arguments and its paper.",
    "env": "Print versions and hardware as JSON, for a bug report.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the command line) and return the exit status."""
    print_in_any_encoding()
    parser = argparse.ArgumentParser(
        prog="hfkd",
        description="Distil large models into small ones with the Hugging Face Trainer.",
        epilog=listed(),
        usage="hfkd [--accelerate CONFIG] COMMAND [--flag value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hfkd {installed_version('hfkd')}")
    parser.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="run under `accelerate launch` with this configuration: a file, or one that comes with hfkd "
        f"({', '.join(sorted(path.stem for path in shipped('accelerate_configs').glob('*.yaml')))})",
    )
    parser.add_argument(
        "command", metavar="COMMAND", choices=[*RECIPES, *TOLD], help="see below; `hfkd COMMAND --help`"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.command in RECIPES:
        return run_recipe(flags.command, flags.arguments, flags.accelerate)
    if flags.arguments in (["--help"], ["-h"]):
        print(f"usage: hfkd {flags.command}\n\n{TOLD[flags.command]}")
        return 0
    for unused, given in {"--accelerate": flags.accelerate, "arguments": flags.arguments}.items():
        if given:
            parser.error(f"{flags.command} takes no {unused}")
    print(_told(flags.command))
    return 0


def _told(name: str) -> str:
    """What a command of `TOLD` prints. It imports torch, for which `hfkd --help` and a launcher do not wait."""
    if name == "methods":
        from hfkd.commands.methods import methods

        return methods()
    from hfkd.reports.environment import environment

    return json.dumps(environment(), indent=2)


def listed() -> str:
    """The commands, one line each; for a recipe, the first line of its script's docstring."""
    told = {name: recipe_summary(script) for name, script in RECIPES.items()} | TOLD
    width = max(map(len, told))
    return "commands:\n" + "\n".join(f"  {name:{width}}  {line}" for name, line in told.items())


def recipe_summary(script: str) -> str:
    source = (shipped("recipes") / f"{script}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
