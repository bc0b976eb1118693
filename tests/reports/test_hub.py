"""Pushing to the Hub and loading back: the real client, against a small Hub on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import hub_server
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from text_toys import language_model

from hfkd.reports.hub import upload_again

HERE = Path(__file__).parents[1]
TOKEN, OTHER_TOKEN, API_KEY = "hf_PlantedInTheCommand", "hf_PlantedInTheShell", "planted-api-key"
PUSHED = ("image", "text", "adapter")
BROKEN = {"refused": "500", "dropped": "disconnected", "large": "bad day"}


def python(script, *arguments, environment):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


pytestmark = pytest.mark.slow  # processes that push to a server, and others that load from it


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """(the Hub after all pushes, the folder they came from, what was printed, the folder of a fresh process)."""
    folder, fresh = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("fresh")
    with hub_server(TOKEN) as hub:
        language_model().save_pretrained(fresh / "base")
        hub.repos["someone/base"] = {p.name: p.read_bytes() for p in (fresh / "base").iterdir()}
        hub.fail = {"commit someone/refused": 500, "commit someone/dropped": 0, "batch someone/large": 400}
        secrets = {"HF_TOKEN": OTHER_TOKEN, "WANDB_API_KEY": API_KEY}
        done = python("hub_push.py", folder, TOKEN, environment=hub.environment(folder / "home") | secrets)
        hub.fail = {}
        pairs = [f"{name}=someone/{name}" for name in PUSHED]
        python("hub_load.py", fresh, *pairs, environment=hub.environment(fresh / "home"))
        yield hub, folder, done.stdout + done.stderr, fresh


@pytest.mark.parametrize("name", PUSHED)
def test_what_arrives_is_the_folder_without_the_checkpoints(pushed, name):
    hub, folder, _, _ = pushed
    local = {
        str(p.relative_to(folder / name)): p.read_bytes()
        for p in (folder / name).rglob("*")
        if p.is_file() and "checkpoint-" not in str(p.relative_to(folder / name))
    }
    arrived = {k: v for k, v in hub.repos[f"someone/{name}"].items() if k != ".gitattributes"}
    assert arrived == local
    weights = "adapter_model.safetensors" if name == "adapter" else "model.safetensors"
    assert {"README.md", "results.json", "distillation.json", weights} <= arrived.keys()


@pytest.mark.parametrize("name", PUSHED)
def test_a_fresh_process_predicts_the_same(pushed, name):
    _, folder, _, fresh = pushed
    here, there = load_file(folder / f"{name}.safetensors"), load_file(fresh / f"{name}.safetensors")
    assert torch.equal(here["inputs"], there["inputs"])
    assert torch.equal(here["logits"], there["logits"])
    assert there["logits"].std() > 0


@pytest.mark.parametrize("name", PUSHED)
def test_the_card_says_what_the_student_is(pushed, name):
    hub, folder, _, _ = pushed
    card = ModelCard(hub.repos[f"someone/{name}"]["README.md"].decode())
    data = card.data.to_dict()
    assert data["library_name"] == ("peft" if name == "adapter" else "transformers")
    assert data["pipeline_tag"] == ("image-classification" if name == "image" else "text-generation")
    assert {"hfkd", "knowledge-distillation"} <= set(data["tags"])
    assert data.get("base_model") == ("someone/base" if name == "adapter" else None)
    assert data["license"] == "mit"
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    results = json.loads((folder / name / "results.json").read_text())
    assert measured["loss"] == results["epochs"][-1]["eval_loss"]
    assert str(folder) not in card.content
    assert (
        f"python recipes/train.py --output_dir {name} --hub_model_id someone/{name} --hub_token HIDDEN" in card.content
    )


@pytest.mark.parametrize("name", BROKEN)
def test_an_upload_that_fails_loses_nothing_and_says_how_to_go_on(pushed, name):
    hub, folder, _, _ = pushed
    message = json.loads((folder / "errors.json").read_text())[name]
    assert re.search(BROKEN[name], message)
    assert f"hf upload someone/{name} {folder / name} . --exclude 'checkpoint-*'" in message
    assert hub.repos[f"someone/{name}"] == {}
    results = json.loads((folder / name / "results.json").read_text())
    assert results["status"] == "finished"
    # the very student that the same run uploads where nothing fails
    assert (folder / name / "model.safetensors").read_bytes() == (folder / "text" / "model.safetensors").read_bytes()
    assert not list((folder / name).rglob("*.part"))


def test_the_command_to_go_on_uploads_to_the_branch_of_the_run():
    assert upload_again("runs/one", "someone/named", "a branch").endswith("--revision 'a branch'`")
    assert "--revision" not in upload_again("runs/one", "someone/named")


def test_only_the_broken_uploads_failed(pushed):
    assert json.loads((pushed[1] / "errors.json").read_text()).keys() == BROKEN.keys()


def test_tokens_are_in_no_file_and_in_no_output(pushed):
    hub, folder, printed, _ = pushed
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert any(p.name == "training_args.bin" for p in files)
    for secret in (TOKEN, OTHER_TOKEN, API_KEY):
        assert secret not in printed
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
        assert [name for name, content in uploaded(hub) if secret.encode() in content] == []


def uploaded(hub):
    return [(f"{repo}/{path}", content) for repo, files in hub.repos.items() for path, content in files.items()]
