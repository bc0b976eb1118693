"""Files of one version of hfkd, read by another: each format has a version, which the code behind it may not outgrow.

`python tests/test_formats.py` records the code of today.
"""

import ast
import hashlib
import inspect
import json
import re
import textwrap
import types
from pathlib import Path

import pytest

from hfkd.data import chat_answers, images, instructions, labelled_texts, pack_rows, plain_texts, text, two_tokenizers
from hfkd.evaluation import scoring
from hfkd.evaluation.metrics import rouge_l
from hfkd.experiments import response_folder, responses, resume
from hfkd.losses import topk
from hfkd.teachers import fingerprint
from hfkd.teachers.image_cache import quantize, store
from hfkd.teachers.image_cache import teacher as image_teacher
from hfkd.teachers.row_reader import RowReader
from hfkd.teachers.statistics_file import ScanFile, ScanKey
from hfkd.teachers.teacher_scan import TeacherScan
from hfkd.teachers.token_cache import columns, manifest
from hfkd.training import data_fingerprint, loss_parameters, run_identity, run_settings, student_layers
from hfkd.utils import formats

RECORDED = Path(__file__).with_name("formats.json")
# What decides the content of each kind of file: the code of these, and of hfkd's functions that they call.
DECIDED_BY = {
    "RUN": [
        *(run_identity.RunRecord.of, run_identity.RunRecord.write, run_identity.RunRecord.training_as),
        *(run_settings.run_settings, run_settings.compared_settings, run_identity.rows_of, run_identity.network),
        *(data_fingerprint.data_hash, fingerprint.weights_fingerprint, fingerprint.configuration),
        *(student_layers.student_layers, student_layers.student_config, loss_parameters.write),
    ],
    "TABLE_RUN": [resume.deciding],
    "RESPONSES": [
        *(responses._settings, responses._response, response_folder.ResponseFolder._named),
        *(response_folder.ResponseFolder.write_part, response_folder.ResponseFolder.finish),
    ],
    "SCORES": [scoring.score_rows, scoring.summary, rouge_l],
    "TOKEN_CACHE": [columns.text_columns, columns.tokens_hash, topk.tail, topk.spread, manifest.Manifest],
    "IMAGE_CACHE": [
        *(quantize, store.LogitStore.__init__, store.LogitStore._write, store.LogitStore._checksums),
        *(image_teacher._key, image_teacher.NumberedViews),
    ],
    "SCAN": [ScanKey, TeacherScan, RowReader.read],
    "PIXELS": [images._decode_batch],
    "PROMPTS": [instructions._pair_of_row],
    "ANSWERS": [chat_answers._rows_of_batch],
    "TOKENS": [text._tokenize_batch],
    "TOKENS_OF_TWO": [two_tokenizers._tokenize_batch],
    "SHORT_PROMPTS": [instructions._has_short_prompt],
    "LABELLED_TEXTS": [labelled_texts._tokenize_batch],
    "PLAIN_TEXTS": [plain_texts._lines, plain_texts._blocks],
    "PACKED_ROWS": [pack_rows._joined],
}
VERSIONS = {name: value for name, value in vars(formats).items() if name.isupper() and isinstance(value, int)}
RECORD = "python tests/test_formats.py"
WRITING = ("hfkd.utils.files", "hfkd.utils.json_file")


def code_of(roots):
    """A hash of what `roots` compute and refuse: the code of these and of what they call in hfkd, and constants."""
    seen, waiting = {}, list(roots)
    while waiting:
        one = inspect.unwrap(waiting.pop())
        if id(one) not in seen:
            used = [(name, getattr(v, "pattern", v)) for name, v in used_by(one).items() if is_constant(v)]
            seen[id(one)] = f"{getattr(one, '__qualname__', one.__name__)}\n{plain(one)}\n{sorted(used)}"
            waiting += called(one)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:16]


def plain(one):
    """The source without comments, docstrings and the words of errors, the same in each version of Python."""
    lines = textwrap.dedent(inspect.getsource(one)).splitlines()
    left_out = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False):
            left_out |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.Raise):
            left_out |= set(range(node.lineno + 1, node.end_lineno + 1))
            lines[node.lineno - 1] = "raise"
    kept = (line.split("  #")[0].strip() for number, line in enumerate(lines, 1) if number not in left_out)
    return "\n".join(line for line in kept if line and not line.startswith("#"))


def called(one):
    """The functions of hfkd that a function or class calls by a name of its module, but for those that write files."""
    functions = [value for value in used_by(one).values() if isinstance(value, types.FunctionType)]
    return [f for f in functions if f.__module__.startswith("hfkd.") and f.__module__ not in WRITING]


def used_by(one):
    """{name: value} of what a function or class uses of its module; {} for a module, whose source has it."""
    found = [one] if isinstance(one, types.FunctionType) else []
    if isinstance(one, type):
        members = (getattr(member, "__func__", getattr(member, "fget", member)) for member in vars(one).values())
        found = [member for member in members if isinstance(member, types.FunctionType)]
    names = [(function.__globals__, name) for function in found for name in names_in(function.__code__)]
    return {name: known[name] for known, name in names if name in known}


def is_constant(value):
    if isinstance(value, (tuple, list, dict)):
        return all(map(is_constant, [*value, *value.values()] if isinstance(value, dict) else value))
    return isinstance(value, (str, int, float, re.Pattern))


def names_in(code):
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in names_in(constant)]
    return {*code.co_names, *inner}


def today():
    return {name: {"version": VERSIONS[name], "code": code_of(roots)} for name, roots in DECIDED_BY.items()}


def test_each_format_has_a_version_in_one_place():
    assert DECIDED_BY.keys() == VERSIONS.keys() == json.loads(RECORDED.read_text()).keys()


@pytest.mark.parametrize("name", DECIDED_BY)
def test_the_version_is_raised_with_the_meaning(name):
    recorded = json.loads(RECORDED.read_text())[name]
    now = {"version": VERSIONS[name], "code": code_of(DECIDED_BY[name])}
    assert now == recorded, (
        f"the code behind {name} has changed: if a file, or rows in the cache of datasets, of before would be read "
        f"with another meaning, raise hfkd.utils.formats.{name}; then run {RECORD}"
    )


def test_code_is_what_is_computed_and_refused_and_not_its_words():
    def of(source):
        known = {}
        exec(source, known)
        return known["f"]

    assert "raise" in plain(text.check_tokenising)
    assert "must have at least 1 token" not in plain(text.check_tokenising)
    assert '"""' not in plain(text.encode_texts)
    assert "only used in the cache's hash" not in plain(text._tokenize_batch)
    assert text.encode_rows in called(text._tokenize_batch)
    assert "TEMPLATE" in used_by(instructions.instruction_prompt)
    assert is_constant(instructions.TEMPLATE)
    assert names_in(of("def f():\n    return [g(x) for x in h()]").__code__) >= {"g", "h"}


def test_what_another_version_has_stored_is_another_file(monkeypatch):
    """Two versions that share a folder would replace each other's files, and lose a long computation each time."""
    files = []
    for version in (formats.IMAGE_CACHE, formats.IMAGE_CACHE + 1):
        monkeypatch.setattr(formats, "IMAGE_CACHE", version)
        monkeypatch.setattr(formats, "SCAN", version)
        key = ScanKey("t", "d", "", "", "train", "no", 4.0, 3.0, 0, "sample", None, "classification", None)
        files.append((store.file_name({"teacher": "t"}), ScanFile(Path(), key).path))
    assert len(set(files)) == len({image for image, _ in files}) == len({scan for _, scan in files}) == 2


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(today(), indent=2) + "\n", encoding="utf-8")
