"""mkdocs' hook: the tables of docs/api/flags.md, from the dataclasses of arguments, without importing them."""

import ast
from pathlib import Path
from typing import Any

PAGE = "api/flags.md"
ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "Distillation": ["hfkd/arguments.py", "hfkd/models/on_policy_arguments.py", "hfkd/data/he_da_arguments.py"],
    "Image classification": [
        "hfkd/models/network_arguments.py",
        "hfkd/models/teacher_view_arguments.py",
        "hfkd/data/image_arguments.py",
        "recipes/train_teacher.py",
        "recipes/takd.py",
        "recipes/dml.py",
        "recipes/digits_demo.py",
        "hfkd/experiments/reproduction.py",
    ],
    "Language models": [
        "recipes/gpt2_dolly_eakd.py",
        "hfkd/models/pruned_student.py",
        "hfkd/experiments/teacher_tokenizer.py",
        "hfkd/data/text_arguments.py",
        "hfkd/experiments/cache_arguments.py",
        "hfkd/models/lora.py",
        "hfkd/evaluation/callback.py",
        "recipes/sft.py",
        "recipes/generate_responses.py",
        "hfkd/experiments/responses.py",
        "recipes/evaluate_instruct.py",
        "hfkd/experiments/instruct.py",
    ],
    "Text classification and masked language models": [
        "hfkd/models/text_network_arguments.py",
        "hfkd/data/text_sets.py",
        "hfkd/data/labelled_texts.py",
        "hfkd/data/plain_texts.py",
    ],
    "Semantic segmentation": [
        "hfkd/models/segmentation_arguments.py",
        "hfkd/models/mask_teacher_arguments.py",
        "hfkd/data/mask_arguments.py",
    ],
    "Object detection": [
        "hfkd/models/detection_arguments.py",
        "hfkd/data/box_arguments.py",
        "hfkd/experiments/detection.py",
    ],
    "Analysis": ["hfkd/experiments/analyse.py", "hfkd/experiments/analyse_masks.py"],
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return markdown + tables() if page.file.src_uri == PAGE else markdown


def tables() -> str:
    """A table for each class of arguments; one that is in no section is an error of the build."""
    lines, found = [], flags_of_files()
    for title, files in SECTIONS.items():
        lines += ["", f"## {title}"]
        for file in files:
            for told, rows in reversed(found.pop(file)):
                lines += ["", told, "", "| flag | type | default | |", "|---|---|---|---|", *rows]
    if found:
        raise ValueError(f"docs/flags.py: {sorted(found)} have flags, and are in no section")
    return "\n".join(lines) + "\n"


def flags_of_files() -> dict[str, list[tuple[str, list[str]]]]:
    """Of each file with flags its classes: what they are, and the rows of their tables."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for path in sorted([*(ROOT / "hfkd").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]):
        source, file = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        for cls in ast.parse(source).body if "metadata=" in source or "flag(" in source else []:
            rows = _rows(cls) if isinstance(cls, ast.ClassDef) else []
            if isinstance(cls, ast.ClassDef) and rows:
                told = (ast.get_docstring(cls) or f"Flags of `{path.name}`.").partition("\n\n")[0]
                found.setdefault(file, []).append((" ".join(told.split()), rows))
    return found


def _rows(cls: ast.ClassDef) -> list[str]:
    fields = [one for one in cls.body if isinstance(one, ast.AnnAssign) and isinstance(one.value, ast.Call)]
    return [row for one in fields if (row := _row(one, one.value))]


def _row(field: ast.AnnAssign, call: Any) -> str:
    """Empty for a field that is no flag."""
    if getattr(call.func, "id", "") == "flag":
        default, *told = call.args
    else:
        given = {word.arg: word.value for word in call.keywords}
        told = [v for k, v in zip(*_entries(given.get("metadata")), strict=True) if getattr(k, "value", "") == "help"]
        default = given.get("default", given.get("default_factory"))
    if not told:
        return ""
    default = default.body if isinstance(default, ast.Lambda) else default
    cells = [
        f"`--{ast.unparse(field.target)}`",
        f"`{ast.unparse(_bare(field.annotation))}`",
        f"`{ast.unparse(default)}`" if default else "required",
        ast.literal_eval(told[0]) if isinstance(told[0], ast.Constant) else ast.unparse(told[0])[2:-1],
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _bare(kind: Any) -> Any:
    annotated = isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated"
    return kind.slice.elts[0] if annotated else kind


def _entries(metadata: Any) -> tuple[list[Any], list[Any]]:
    return (metadata.keys, metadata.values) if isinstance(metadata, ast.Dict) else ([], [])
