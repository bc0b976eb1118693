"""Machines without a shared file system: what each would do alone in a folder of its own is refused on all of them."""

import json
import os
import re
from pathlib import Path

import pytest
from accelerate import Accelerator
from processes import on_ranks
from test_whole import make
from text_toys import language_model, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd.data import ImageDataArguments
from hfkd.experiments.responses import ResponseArguments, generate_responses
from hfkd.experiments.resume import distil_and_keep
from hfkd.models import NetworkArguments
from hfkd.teachers import build_text_cache


def resume(own):
    make(own / "run", max_steps=2).train(resume_from_checkpoint=True)


def generate(own):
    rows, out = str(own.parent / "rows"), str(own / "out")
    generate_responses(language_model(), tokenizer(), ResponseArguments(rows, max_new_tokens=2, output_dir=out))


def store(own):
    build_text_cache(taught_model(), token_dataset(), own / "cache", k=4, accelerator=Accelerator(cpu=True))


def run_of_a_table(own):
    """The first process has done the first run."""
    distil_and_keep(NetworkArguments(), ImageDataArguments(), arguments(own.parent / "kd" / f"seed{own.name[-1]}"))


WORK = [resume, generate, store, run_of_a_table]


def on_a_machine(folder):
    own, said = Path(folder) / f"machine-{os.environ['RANK']}", {}
    for work in WORK:
        try:
            work(own)
        except ValueError as error:
            said[work.__name__] = str(error)
    (own / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes, whose folders are their own, says to each work."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "rows").mkdir()
    (folder / "rows" / "train.jsonl").write_text('{"prompt": "ask you", "response": "a b"}\n' * 3)
    make(folder / "machine-0" / "run", max_steps=1).train()
    (folder / "machine-1").mkdir()
    assert on_ranks(folder / "log", 2, on_a_machine, str(folder)) == [0, 0], (folder / "log-0").read_text()[-3000:]
    return [json.loads((folder / f"machine-{rank}" / "said.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("work", "words"),
    [
        (
            "resume",
            r"would start at different checkpoints \(step 1, none\): .* on a file system that all machines share",
        ),
        (
            "generate",
            r"out is another folder for some processes \(\[1\]\), which do not see what process 0 has written",
        ),
        ("store", r"cache is another folder for some processes \(\[1\]\)"),
        ("run_of_a_table", r"would do different runs \(kd/seed0, kd/seed1\), because they do not find the same"),
    ],
)
def test_a_folder_that_is_another_on_each_machine_is_refused_on_all(told, rank, work, words):
    assert re.search(words, told[rank][work])
