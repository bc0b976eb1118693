"""The site of docs/: its Python runs as it stands, page by page, and mkdocs builds it without a warning."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.terms import LOGGED
from hfkd.losses.weightings import WEIGHTINGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted({*(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "model_card_example.md"})  # a card as it was written
BLOCK = re.compile(r"^```(py|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
EXCERPTS = {
    "index.md",
    "language.md",
    "results.md",
    "texts.md",
    "your_own.md",
}  # other packages, data sets of the Hub, own files


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def named(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT / "docs")) for page in pages]


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture(autouse=True)
def forgotten():
    """Names that a page registers are gone after it."""
    tables = (OBJECTIVES, TEMPERATURES, WEIGHTINGS)
    before = [dict(table) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        table.clear()
        table.update(names)


@pytest.mark.parametrize("page", WITH_CODE, ids=named(WITH_CODE))
def test_its_python_runs_as_it_stands(page, tmp_path, monkeypatch):
    if page.name == "onnx.md":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def test_every_name_of_the_log_is_explained():
    steps = ("mixed_kd", "mixed_share", "on_policy_steps", "completion_length", "completion_ended", "skipped_steps")
    names = {*LOGGED, *steps, "low_energy_share", "high_energy_share", "grad_norm", "learning_rate"} - {"rest"}
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8").partition("## The log")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    assert names <= set(re.findall(r"`(\w+)`", " ".join(table)))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_as_it_stands_and_its_teacher_helps(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(notebook), "exec"), names)
    accuracies = names["accuracies"]
    assert min(accuracies[way] for way in accuracies if way != "labels only") > accuracies["labels only"]


def test_a_notebook_is_kept_with_what_it_printed():
    assert [path.stem for path in NOTEBOOKS] == ["images", "texts"]
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert (notebook["nbformat"], [cell["execution_count"] for cell in cells]) == (
            4,
            list(range(1, len(cells) + 1)),
        )
        printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
        assert "labels only" in printed
        assert "/tmp" not in printed


def test_what_does_not_run_is_python():
    excerpts = {page: blocks(page, "py") for page in PAGES}
    assert {page.name for page, found in excerpts.items() if found} == EXCERPTS
    for page, found in excerpts.items():
        for code in found:
            compile(code, str(page), "exec")


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "labels only" in (tmp_path / "site" / "notebooks" / "images" / "index.html").read_text(encoding="utf-8")
    assert "DistillationTrainer" in (tmp_path / "site" / "api" / "trainer" / "index.html").read_text(encoding="utf-8")
    flags = (tmp_path / "site" / "api" / "flags" / "index.html").read_text(encoding="utf-8")
    assert all(f"--{name}</code>" in flags for name in ("on_nan", "on_policy_top_p", "lora_r", "id2label", "proposals"))
