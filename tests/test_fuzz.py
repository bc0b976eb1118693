"""Whatever is in a file or a string: a value, or an error of ours. Never another exception, never code that runs."""

import json
import string

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hfkd.data.text_files import read_jsonl
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES, resolve_temperature
from hfkd.losses.weightings import WEIGHTINGS
from hfkd.models import load_checkpoint
from hfkd.utils.parsing import check_known, read_settings
from hfkd.utils.slots import resolve

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TABLES = {"objective": OBJECTIVES, "temperature": TEMPERATURES, "weighting": WEIGHTINGS}

# Strings near to what a slot takes: a name, or a call of a name, of literals that may be of any kind and any size.
names = st.sampled_from([*OBJECTIVES, *TEMPERATURES, *WEIGHTINGS, "print", "__import__"])
keys = st.sampled_from(["beta", "alpha", "ratio", "temperature", "weighting", "objective", "start", "width", "level"])
literals = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.sampled_from(["kd", "entropy", "batch", ""])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(keys, inner, max_size=2)),
    max_leaves=4,
)
call_strings = st.builds(
    lambda name, arguments: f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})",
    names,
    st.dictionaries(keys, literals, max_size=3),
)
slot_strings = st.one_of(st.text(max_size=40), st.text(string.punctuation + "kd1 ", max_size=30), call_strings)


def outcome(function, *arguments):
    """What a function returns, or the error of ours that it raises; any other goes through."""
    try:
        return function(*arguments)
    except ValueError as error:
        return error


@FEW
@given(st.sampled_from(sorted(TABLES)), slot_strings)
@example("objective", "(" * 400)
@example("objective", "kd(scale=" + "[" * 200 + "]" * 200 + ")")
@example("temperature", "9" * 400)
@example("temperature", "nan")
@example("objective", "kd\0")
def test_a_slot_string_is_a_slot_or_our_error(kind, text):
    slot = outcome(resolve_temperature, text) if kind == "temperature" else outcome(resolve, text, TABLES[kind], kind)
    assert isinstance(slot, ValueError) or callable(slot)


SETTINGS = ["seed", "objective", "learning_rate", "lr_decay_epochs", "output_dir", "sed"]
values = st.one_of(literals, st.text(max_size=10), st.dates(), st.binary(max_size=5))
yaml_texts = st.one_of(
    st.text(max_size=60),
    st.text("-:[]{}&*!|>'\"#%@,? \n\tab1", max_size=40),
    st.dictionaries(st.sampled_from(SETTINGS), values, max_size=3).map(lambda d: yaml.dump(d)),  # tuples get a tag
)


@FEW
@given(yaml_texts)
@example("a: &a [*a]")
@example("seed: !!python/object/apply:os.getcwd []")
@example("? [1, 2]\n: 3")
@example("{" * 3000)
def test_a_settings_file_is_settings_or_our_error(tmp_path, text):
    check_settings(tmp_path / "run.yaml", text.encode(errors="replace"))


@FEW
@given(st.binary(max_size=60))
@example(b"\xff\xfe\x00")
def test_bytes_are_settings_or_our_error(tmp_path, content):
    check_settings(tmp_path / "run.yaml", content)


def read_known(path):
    settings = read_settings(path)
    check_known(settings, set(SETTINGS), str(path))
    return settings


def check_settings(path, content):
    path.write_bytes(content)
    found = outcome(read_known, path)
    if isinstance(found, ValueError):
        assert str(path) in str(found)
    else:
        assert found.keys() <= set(SETTINGS)


@pytest.fixture(scope="module")
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))


@pytest.fixture(scope="module")
def real_files(network, tmp_path_factory):
    """The bytes of whole checkpoints, by the suffix they have."""
    folder = tmp_path_factory.mktemp("whole")
    torch.save({"model": network.state_dict()}, folder / "a.pth")
    torch.save(network.state_dict(), folder / "a.pt", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), folder / "a.safetensors")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of the pickle protocol it seems to see
@FEW
@given(st.data(), st.sampled_from([".pth", ".pt", ".safetensors"]), st.sampled_from(["cut", "changed", "random"]))
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, network, real_files, data, suffix, how):
    content = bytearray(real_files[suffix])
    if how == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif how == "changed":
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        content = data.draw(st.binary(max_size=200))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    refused = outcome(load_checkpoint, network, path)
    if refused is None:
        assert how == "changed"  # a byte of a weight: nobody can know
    else:
        assert str(path) in str(refused)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.load_state_dict(before)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
lines = st.one_of(
    json_values.map(json.dumps).map(str.encode),
    st.fixed_dictionaries({"prompt": st.text(max_size=5), "completion": json_values}).map(json.dumps).map(str.encode),
    st.binary(max_size=30),
)


@settings(FEW, max_examples=50)
@given(st.lists(lines, max_size=4))
@example([b"null"])  # a crash of the process in pyarrow 26, were it not refused
@example([b'{"a": 1}', b'{"a": "x"}'])
@example([b'{"a": 1e999}'])
@example([b"[" * 3000])
@example([b'{"a": 12345678901234567890123}'])
def test_json_lines_are_rows_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / f"{abs(hash(tuple(content)))}.jsonl"
    path.write_bytes(b"\n".join(content))
    rows = outcome(read_jsonl, path)
    if isinstance(rows, ValueError):
        assert str(path) in str(rows)
    else:
        assert len(rows) == len(rows[:][rows.column_names[0]]) > 0
