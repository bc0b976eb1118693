"""recipes/generate_responses.py as users start it: killed, taken up, on two ranks, and learned by other recipes."""

import os
import signal
import time

import pytest
from processes import on_ranks, script, start_script
from recipe_toys import RECIPES, response_flags, results, run, text_flags, write_toys

RECIPE = RECIPES / "generate_responses.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_toys(tmp_path_factory.mktemp("responses"))
    lines = (folder / "text" / "train.jsonl").read_text()
    (folder / "text" / "train.jsonl").write_text(lines * 12)  # three parts
    return folder


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_killed_taken_up_and_on_two_ranks_it_is_the_same_folder_which_recipes_learn(
    folder, tmp_path, monkeypatch, capsys
):
    run(monkeypatch, "generate_responses", *response_flags(folder, tmp_path / "whole"))
    assert "384 responses are kept" in capsys.readouterr().out
    killed = start_script(tmp_path / "killed.log", RECIPE, *response_flags(folder, tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "parts" / "part-00000.jsonl").exists():
        assert killed.is_alive(), (tmp_path / "killed.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not (tmp_path / "killed" / "train.jsonl").exists()
    run(monkeypatch, "generate_responses", *response_flags(folder, tmp_path / "killed"))
    codes = on_ranks(tmp_path / "log", 2, script, RECIPE, *map(str, response_flags(folder, tmp_path / "ranks")))
    assert codes == [0, 0], (tmp_path / "log-0").read_text()[-3000:]
    whole = content(tmp_path / "whole")
    assert content(tmp_path / "killed") == whole
    assert content(tmp_path / "ranks") == whole
    run(monkeypatch, "gpt2_dolly_eakd", *text_flags(folder, tmp_path / "kd", dataset_name=tmp_path / "whole"))
    assert results(tmp_path / "kd")["status"] == "finished"
    flags = text_flags(folder, tmp_path / "sft", dataset_name=tmp_path / "whole")
    flags = [flag for flag in flags if not flag.startswith(("--teacher", "--student"))]
    run(monkeypatch, "sft", *flags, f"--model_name_or_path={folder / 'small'}")
    assert results(tmp_path / "sft")["status"] == "finished"
