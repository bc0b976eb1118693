"""Table files: which settings a row gets, and what is refused."""

import json
import re
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import FLAGS
from hfkd.experiments.rows import read_table
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import NetworkArguments
from hfkd.utils.parsing import read_settings, typed_layers
from hfkd.utils.precedence import merge

RECIPES = Path(__file__).parents[2] / "recipes"
TABLES = sorted((RECIPES / "tables").glob("*.yaml"))
# those of detectors (fpn_*) are coco_detection.py's
PAIRS = sorted(path for path in (RECIPES / "configs" / "pairs").glob("*.yaml") if not path.stem.startswith("fpn_"))
NETWORKS = {f.name for f in fields(NetworkArguments)}
# rows of ours in a paper's table: what it does not print, or prints as the best of several
UNPRINTED = re.compile(r"released|matched|^DKD \+ HE-DA|H_T H_S|low-energy DA|both ends|Energy KD$|^EA-DKD$")


def settings(row):
    merged = {}
    for layer in row.layers:
        merged |= layer if isinstance(layer, dict) else read_settings(layer)
    return merged


@pytest.fixture
def table(tmp_path):
    def write(text, **files):
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(content)
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return read_table(path)

    return write


def test_later_settings_win(table):
    found = table(
        """
        defaults: [protocol.yaml]
        settings: {weight_decay: 3, max_steps: 3}
        pairs: [pair.yaml, other.yaml]
        rows:
          - name: A
            config: [method.yaml]
            settings: {max_steps: 4, seed: 4}
            pairs: {other: {seed: 5}}
        """,
        protocol="learning_rate: 0\nkd_weight: 0\nweight_decay: 0\n",
        pair="student_name: s\nlearning_rate: 1\nkd_weight: 1\n",
        other="student_name: o\n",
        method="kd_weight: 2\nweight_decay: 2\nmax_steps: 2\n",
    )
    first, second = found.rows
    # As text, which the fields of the dataclasses take for numbers.
    expected = {"learning_rate": "1", "student_name": "s", "kd_weight": "2", "weight_decay": "3"}
    expected |= {"max_steps": "4", "seed": "4"}
    assert settings(first) == expected
    assert settings(second) == expected | {"student_name": "o", "learning_rate": "0", "seed": "5"}
    assert first.own == {"learning_rate", "student_name", "kd_weight", "weight_decay", "max_steps", "seed"}
    assert (first.name, first.method, second.name) == ("A, pair", "A", "A, other")


def test_what_a_table_says_of_itself(table):
    found = table("title: T\nmeasure: loss\nreference: b\nrows: [{name: 'A, 40 %', method: KD}, {name: b}]")
    assert (found.name, found.title, found.measure, found.reference) == ("table", "T", "loss", "b")
    assert [row.folder for row in found.rows] == ["a_40_percent", "b"]
    assert [row.method for row in found.rows] == ["KD", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: T", "must have a title and rows"),
        ("- a", "must have a title and rows"),
        ("rows: [{settings: {seed: 1}}]", "no name"),
        ("rows: [{name: A, setings: {}}]", "unknown key 'setings'"),
        ("rows: [{name: A}]\ntitel: T", "unknown key 'titel'"),
        ("rows: [{name: A}]\nname: T", "unknown key 'name'"),
        ("rows: [{name: A}, {name: 'a '}]", "two rows have the same name"),
        ("rows: [{name: A}]\nreference: B", r"reference 'B' is not a row: choose from \['A'\]"),
        ("rows: [{name: A}]\nmeasure: length", "measure 'length' must be one of"),
        ("rows: [{name: A, config: [no.yaml]}]", "no.yaml: this file does not exist"),
        ("rows: [", "is not a YAML file"),
    ],
)
def test_what_is_refused(table, text, message):
    with pytest.raises(ValueError, match=message):
        table(text)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.yaml")


PAPERS = {
    *("energy_kd_table1", "energy_kd_table2", "energy_kd_table3", "energy_kd_table4_left", "energy_kd_table4_right"),
    *("energy_kd_table5", "energy_kd_table6", "energy_kd_table7", "energy_kd_table8", "energy_kd_table9"),
    *("energy_kd_table_b16", "energy_kd_table_a14", "energy_kd_table_a15", "energy_kd_figure5"),
    *("ea_kd_table1", "ea_kd_table2", "ea_kd_table3", "ea_kd_table4", "ea_kd_table5", "ea_kd_table6"),
    *("ea_kd_table7", "ea_kd_table8"),
}


def test_every_table_of_both_papers_is_there():
    assert {path.stem for path in TABLES} >= PAPERS


@lru_cache
def slots(*values):
    return DistillationLoss(*values)


@lru_cache
def the_arguments(text):
    return DistillationArguments(output_dir="out", use_cpu=True, bf16=False, **json.loads(text))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_of_every_table_is_understood(path):
    """All settings, the slots that they name, and the dataclasses that they fill."""
    for row in read_table(path).rows:
        merged = merge([layer for several in typed_layers(row.layers, FLAGS) for layer in several])
        parts = [{f.name: merged[f.name] for f in fields(kind) if f.name in merged} for kind in FLAGS]
        assert sum(map(len, parts)) == len(merged)
        NetworkArguments(**parts[1])
        ImageDataArguments(**parts[2])
        args = the_arguments(json.dumps({k: v for k, v in parts[3].items() if k != "output_dir"}))
        slots(args.objective, args.slot_temperature, args.weighting, args.ce_weight, args.kd_weight)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_what_a_row_of_a_papers_table_shows_is_published(path):
    """Each row has a number for one pair at least, but for those that say what they are."""
    table, published = read_table(path), Published.read(RECIPES / "published.yaml")
    if table.published is None:
        return
    assert set(table.published) <= set(published.sources)
    measure = "time" if table.measure == "time" else "accuracy"
    known = {
        key[-1]
        for key in published.keys
        if key[0] == measure and published.every(*key[1:], measure).keys() & set(table.published)
    }
    ours = {row.label for row in table.rows} - known
    assert {row.method for row in table.rows} & known
    assert {label for label in ours if not UNPRINTED.search(label)} <= {
        row.label for row in table.rows if row.method in known
    }


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_a_pair_opens_with_the_published_numbers(path):
    comment = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    networks = NetworkArguments(**{k: v for k, v in typed_layers([path], FLAGS)[0][0].items() if k in NETWORKS})
    published = Published.read(path.parents[2] / "published.yaml")
    data = next((d for d in ("tiny_imagenet", "imagenet") if path.stem.startswith(d)), "cifar100")
    data = {"imagenet": "imagenet-1k", "tiny_imagenet": "tiny-imagenet"}.get(data, data)
    quoted = re.search(r"Published \(published.yaml\): (.*?[0-9])\. ", comment)
    for method, number in re.findall(r"([A-Za-z+-]+(?: [A-Za-z]+)?) ([0-9.]+)(?:, |$)", quoted[1] if quoted else ""):
        assert f"{published.find(data, networks.teacher_name[0], networks.student_name, method).value:.2f}" == number
    accuracy = re.search(r"\(teacher ([0-9.]+) %\)", comment)
    assert float(accuracy[1]) == published.teachers[data][networks.teacher_name[0]]
    assert "Ours: not run at full length." in comment
    assert quoted or "Neither paper has this pair." in comment
    assert ("with:" in path.read_text()) == ("goes on top of its file" in comment)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_what_a_pair_has_for_a_method_goes_on_top_of_its_file(path):
    """Each name under `with` is a file of settings, and changes what that file and the pair say."""
    protocol = RECIPES / "configs" / "cifar100.yaml"
    for name, settings in (read_settings(path).get("with") or {}).items():
        layers = typed_layers([protocol, path, RECIPES / "configs" / f"{name}.yaml"], FLAGS)
        merged = merge([layer for several in layers for layer in several])
        assert merged | typed_layers([settings], FLAGS)[0][0] == merged
