"""mkdocs' hook: the notebooks of docs/notebooks as pages, code and printed outputs, without running them."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = "notebooks"


def on_files(files: Files, *, config: Any) -> Files:
    """Put a page beside each notebook, which stays for download."""
    for notebook in sorted((Path(config["docs_dir"]) / FOLDER).glob("*.ipynb")):
        files.append(File.generated(config, f"{FOLDER}/{notebook.stem}.md", content=as_markdown(notebook)))
    return files


def as_markdown(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _parts(cell)]
    title, *rest = parts[0].split("\n", 1)
    return "\n\n".join([title, f"[The notebook]({notebook.name})", *rest, *parts[1:]]) + "\n"


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    printed = "".join(_text(output) for output in cell["outputs"]).rstrip()
    return [f"```py\n{source}\n```", *([f"```text\n{printed}\n```"] if printed else [])]


def _text(output: dict[str, Any]) -> str:
    found = output["text"] if output["output_type"] == "stream" else output.get("data", {}).get("text/plain", "")
    return "".join(found) + ("" if output["output_type"] == "stream" else "\n")
