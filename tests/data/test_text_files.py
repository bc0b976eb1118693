import json

import pandas
import pytest

from hfkd.data.text_files import read_file, read_jsonl, read_splits

GOOD = b'{"instruction": "a", "response": "b"}\n'


def write(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def test_reads_rows_and_skips_blank_lines(tmp_path):
    rows = read_jsonl(write(tmp_path, GOOD + b"\n" + GOOD))
    assert len(rows) == 2
    assert rows[1] == {"instruction": "a", "response": "b"}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"instruction": "a", "response":}', "not JSON"),
        (b'{"instruction": "a", "respon', "not JSON"),
        (b'{"instruction": "\xff"}', "not UTF-8"),
        (b"3", "'3' is not an object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, broken, reason):
    path = write(tmp_path, GOOD + b"\n" + GOOD + broken + b"\n" + GOOD)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 4: {reason}"):
        read_jsonl(path)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="has no rows"):
        read_jsonl(write(tmp_path, content))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", b"one\ntwo\n"),
        (".csv", b"text\none\ntwo\n"),
        (".tsv", b"text\none\ntwo\n"),
        (".jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_first_text(tmp_path, suffix, content):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert read_file(path)[:] == {"text": ["one", "two"]}


def test_quotation_marks_of_a_tsv_without_quoting_join_no_rows(tmp_path):
    """GLUE's files have such texts: a quotation mark at the start of one, and the next in another row."""
    lines = ['"It is bad\t0', "good film\t1", 'no" said he\t0', "nice\t1"]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    expected = {"text": [line.split("\t")[0] for line in lines], "label": [0, 1, 0, 1]}
    assert read_file(path)[:] == expected
    folder = tmp_path / "glue"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_bytes(path.read_bytes())
    splits = read_splits(str(folder))
    assert {name: rows[:] for name, rows in splits.items()} == {"train": expected, "validation": expected}


@pytest.mark.parametrize("texts", [["a\nb", 'says "c"'], ["a\tb\nc\td", "e"]])
def test_quoted_texts_of_a_tsv_are_read_as_pandas_writes_them(tmp_path, texts):
    for columns in ({"text": texts, "label": [0, 1]}, {"text": texts}):
        pandas.DataFrame(columns).to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
        assert read_file(tmp_path / "rows.tsv")[:] == columns


@pytest.mark.parametrize(("suffix", "sep"), [(".csv", ","), (".tsv", "\t")])
def test_words_that_pandas_reads_as_missing_are_texts_and_class_names(tmp_path, suffix, sep):
    columns = {"text": ["null", "N/A", "so", None], "stance": ["None", "for", "None", "for"], "number": [1, 2, 3, None]}
    pandas.DataFrame(columns).to_csv(tmp_path / f"rows{suffix}", sep=sep, index=False)
    assert read_file(tmp_path / f"rows{suffix}")[:] == columns


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl is not a file"):
        read_jsonl(tmp_path / "nothing.jsonl")


@pytest.mark.slow
def test_a_line_of_110_megabytes_is_a_row_like_the_others(tmp_path):
    long = "tä " * 27_500_000  # 4 bytes each
    lines = [{"response": "a"}, {"response": long}, {"response": "b"}]
    path = write(tmp_path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    assert path.stat().st_size > 110e6
    rows = read_jsonl(path)
    assert [rows[i]["response"] for i in (0, 2)] == ["a", "b"]
    assert rows[1]["response"] == long
