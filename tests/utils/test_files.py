"""A reader never meets half a file, whatever fails."""

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import hfkd.utils.files
from hfkd.utils.files import sync, write_atomically


def fill_half(path):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_function_fills_the_path_it_is_given_and_bytes_are_written(tmp_path):
    write_atomically(tmp_path / "new" / "folder" / "a", b"\x00old")
    write_atomically(tmp_path / "new" / "folder" / "a", lambda path: path.write_bytes(b"\x00new") and None)
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"\x00new"
    assert os.listdir(tmp_path / "new" / "folder") == ["a"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "content"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, failing, existing):
    path = tmp_path / "weights"
    if existing:
        path.write_bytes(b"old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    if failing != "content":
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, fill_half if failing == "content" else b"new")
    assert str(path) in str(caught.value)
    assert caught.value.errno == 28
    assert os.listdir(tmp_path) == (["weights"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_what_the_function_raises_comes_through_and_leaves_nothing(tmp_path):
    def wrong(path):
        path.write_bytes(b"half")
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        write_atomically(tmp_path / "a", wrong)
    assert os.listdir(tmp_path) == []


def test_the_content_is_synced_before_the_name_is_given(tmp_path, monkeypatch):
    order, path = [], tmp_path / "a"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.fstat(handle).st_size), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("named"), replace(*names)))
    write_atomically(path, b"12345")
    assert order == [5, "named"]


def test_files_are_synced_by_a_handle_that_can_write(tmp_path, monkeypatch):
    """Windows refuses to sync others: a run ended in an error with its first file there."""
    flags, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flags.append(fcntl.fcntl(handle, fcntl.F_GETFL)), fsync(handle)))
    write_atomically(tmp_path / "a", b"new")
    assert [flag & os.O_ACCMODE for flag in flags] == [os.O_RDWR]
    sync(tmp_path)  # a folder has no such handle


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "scan"
    path.write_bytes(b"old")
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(hfkd.utils.files.__file__).parent)!r}); from files import *\n"
        "def slow(part):\n    part.write_bytes(b'half'); print('half', flush=True); time.sleep(60)\n"
        "write_atomically(sys.argv[1], slow)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")  # and what it left beside does not stand in the way
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "big-disk").mkdir()
    target, link = tmp_path / "big-disk" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["target"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot write .*file/record.json: .*; choose a folder that is writable"):
        write_atomically(tmp_path / "file" / "record.json", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="record.json: Permission denied"):
        write_atomically(tmp_path / "record.json", b"x")


def test_a_folder_in_the_files_place_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="cannot write .*/a: Is a directory"):
        write_atomically(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_has_the_files_name_is_told_apart_from_a_full_disk(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(OSError, match="a folder has the file's name: move it away") as caught:
        write_atomically(tmp_path / "record.json", b"x")
    assert "space" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
