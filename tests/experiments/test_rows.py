"""Table files: which settings a row gets, and what is refused."""

import re
from pathlib import Path

import pytest

from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import FLAGS
from hfkd.experiments.rows import read_table
from hfkd.losses.distillation import DistillationLoss
from hfkd.utils.parsing import parse, read_settings

RECIPES = Path(__file__).parents[2] / "recipes"
TABLES = sorted((RECIPES / "tables").glob("*.yaml"))
PAIRS = sorted((RECIPES / "configs" / "pairs").glob("*.yaml"))
NOTHING_KNOWN = ("wrn_28_4_wrn_16_2", "resnet50_vgg8")


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
        ("title: T", "must hold a title and rows"),
        ("- a", "must hold a title and rows"),
        ("rows: [{settings: {seed: 1}}]", "no name"),
        ("rows: [{name: A, setings: {}}]", "unknown key 'setings'"),
        ("rows: [{name: A}]\ntitel: T", "unknown key 'titel'"),
        ("rows: [{name: A}]\nname: T", "unknown key 'name'"),
        ("rows: [{name: A}, {name: 'a '}]", "two rows have one name"),
        ("rows: [{name: A}]\nreference: B", r"reference 'B' is none of the rows \['A'\]"),
        ("rows: [{name: A}]\nmeasure: time", "measure 'time' must be one of"),
        ("rows: [{name: A, config: [no.yaml]}]", "no.yaml: there is no such file"),
        ("rows: [", "is not a YAML file"),
    ],
)
def test_what_is_refused(table, text, message):
    with pytest.raises(ValueError, match=message):
        table(text)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_of_the_tables_is_understood(path):
    found = read_table(path)
    first_of = {row.label: row for row in reversed(found.rows)} | {row.pair: row for row in reversed(found.rows)}
    for row in dict.fromkeys(first_of.values()):
        *_, args = parse(FLAGS, ["--output_dir=out", "--use_cpu", "--bf16=no"], row.layers)
        DistillationLoss(args.objective, args.temperature, args.weighting, args.ce_weight, args.kd_weight)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_a_pair_opens_with_the_published_numbers(path):
    comment = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    networks = parse(FLAGS, ["--output_dir=out", "--use_cpu", "--bf16=no"], [path])[1]
    published = Published.read(path.parents[2] / "published.yaml")
    data = "imagenet-1k" if path.stem.startswith("imagenet") else "cifar100"
    quoted = re.search(r"Published \(published.yaml\): (.*?[0-9])\. ", comment)
    for method, number in re.findall(r"(\S+(?: KD)?) ([0-9.]+)(?:, |$)", quoted[1] if quoted else ""):
        assert f"{published.find(data, networks.teacher_name[0], networks.student_name, method).accuracy:.2f}" == number
    accuracy = re.search(r"\(teacher ([0-9.]+) %\)", comment)
    assert (float(accuracy[1]) if accuracy else None) == published.teachers.get(data, {}).get(networks.teacher_name[0])
    assert "Ours: not run at full length." in comment
    assert path.stem.startswith(("imagenet", "tiny_imagenet")) or quoted or path.stem in NOTHING_KNOWN
