"""The commands of the README, the docs and the recipes themselves, typed in another folder, with spaces in paths."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digit_files import flags
from processes import script, start
from recipe_toys import (
    ANSWERS,
    TEXT,
    classified_flags,
    given,
    masked_flags,
    response_flags,
    small_boxes,
    small_masks,
    write_toys,
)

from hfkd.models import image_classifier

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.py")]
PAGES += (ROOT / "recipes").rglob("*.yaml")
START = r"\b(?:accelerate launch|python) ((?:--config_file \S+ )?recipes/\w+\.py"
INLINE = re.compile(rf"`{START}[^`]*)`")
IN_A_BLOCK = re.compile(rf"{START}(?:[^`\n]*\\{{1,2}}\n)*(?:\"[^\"\n]*\"|[^`\n\")])*)")
# of tables of several pairs: a row, and its teacher
PAIRS = {
    "energy_kd_table1": ("Energy KD, resnet56_resnet20", "resnet56"),
    "energy_kd_table2": ("KD, wrn_40_2_shufflenetv1", "wrn_40_2"),
    "ea_kd_table2": ("EA-KD, wrn_40_2_wrn_40_1", "wrn_40_2"),
}
PUBLISHED = "network of ImageNet"
PLACES = {"FOLDER": "teachers", "NAME": "cifar_resnet8", "FILE": "resnet8.pth", "CACHE": "cache of logits"}
PLACES |= {"timm/tf_efficientnet_lite0.in1k": PUBLISHED}


def commands():
    """Each command once, as its words after `accelerate launch`."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for words in [*INLINE.findall(text), *IN_A_BLOCK.findall(INLINE.sub("", text))]:
            command = " ".join(re.sub(r"\\+\n[\s#]*", " ", words).split())
            found.setdefault(command, page.name)
    return found


COMMANDS = commands()
NAMES = [f"{re.search(r'recipes/(.+?).py', command)[1]}-{number}" for number, command in enumerate(COMMANDS)]


def test_the_commands_were_found():
    scripts = {word for command in COMMANDS for word in command.split() if word.endswith(".py")}
    assert scripts >= {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")} - {"recipes/digits_demo.py"}
    assert len(COMMANDS) > 12


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("small things") / "data and networks")


@pytest.fixture
def work(tmp_path):
    """Where the commands are typed; the repository's recipes lie in a folder beside it. Both have spaces."""
    shutil.copytree(ROOT / "recipes", tmp_path / "my repository" / "recipes")
    shutil.copytree(ROOT / "accelerate_configs", tmp_path / "my repository" / "accelerate_configs")
    (tmp_path / "my work").mkdir()
    return tmp_path / "my work"


def made_small(recipe, toys, words):
    """Flags that make the recipe's run a few seconds long, without a network or a GPU."""
    images = flags(toys / "digits", max_steps=2, per_device_eval_batch_size=16)
    images += ["--labelled_images=20"] if "--labelled_images" in words else []
    images += ["--teacher_classes", *range(10)] if PUBLISHED in words else []
    text = given(**TEXT, dataset_name=toys / "text", use_cpu=True, bf16=False)
    more = {
        "reproduce": [*images, "--seeds=1", "--rows", *rows_of(words)],
        "digits_demo": given(seeds=1, teacher_epochs=1, max_steps=2, report_to="none"),
        "gpt2_dolly_eakd": [
            *text,
            *given(teacher_name_or_path=toys / "large", student_name_or_path=toys / "small"),
            *(["--rouge_max_new_tokens=4"] if "--eval_rouge" in words else []),
        ],
        "text_classification": small_texts(classified_flags(toys, ""), words),
        "masked_lm": [*small_texts(masked_flags(toys, ""), words), "--text_columns=text"],
        "segmentation": small_masks(toys, words),
        "coco_detection": small_boxes(toys, words),
        "sft": [*text, f"--model_name_or_path={toys / 'small'}"],
        "analyse": given(dataset_name=toys / "digits", use_cpu=True),
        "generate_responses": response_flags(toys, "answers"),
        "evaluate_instruct": given(**ANSWERS, sets_from=toys / "sets"),
    }
    return more.get(recipe, images)


def small_texts(flags, words):
    """Two steps on the toys' splits; without a stored teacher where a tokenizer is to be trained."""
    named = ("--output_dir=", *(["--teacher_name_or_path="] if "--train_tokenizer" in words else []))
    kept = [flag for flag in flags if not flag.startswith(named)]
    return [*kept, *given(max_steps=2, train_split="train", hold_out=4)]


def rows_of(words):
    """One row of a table of several pairs, two of one whose networks are flags."""
    name = words[words.index("--table") + 1] if "--table" in words else ""
    weighted = "EA-ReviewKD" if name.startswith("features_") else "EA-KD"
    return [PAIRS[name][0]] if name in PAIRS else ["KD", weighted]


def weights(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(image_classifier(f"cifar_{name}", 10).state_dict(), path)


def typed(command, work, toys):
    """The words of a command as one types them in `work`: paths of the repository lead there, names are at hand."""
    words = [PLACES.get(word, word) for word in shlex.split(command)]
    for word in words:
        if word.endswith(".pth"):
            weights(work / word, Path(word).stem)
    if PUBLISHED in words:
        image_classifier("cifar_resnet8", 1000).save_pretrained(work / PUBLISHED)
    for _, teacher in PAIRS.values() if "teachers" in words else ():
        weights(work / "teachers" / f"{teacher}.pth", teacher)
    for word in words:
        if word.startswith("runs/dolly"):
            shutil.copytree(toys / "small", work / word)
    beside = Path("..") / "my repository"
    words = [str(beside / word) if word.startswith(("recipes/", "accelerate_configs/")) else word for word in words]
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    recipe = Path(words[at]).stem
    if recipe == "gpt2_dolly_eakd" and (work / "runs").exists():
        shutil.rmtree(work / "runs")  # it is made, not read
    return recipe, words[:at], words[at], [*words[at + 1 :], *made_small(recipe, toys, words)]


def in_folder(folder, path, *arguments):
    os.chdir(folder)
    script(path, *arguments)


def check(recipe, work, printed):
    if "--list" in printed or "--dry_run" in printed or recipe in ("evaluate_instruct", "generate_responses"):
        return
    if recipe == "analyse":
        assert {path.name for path in (work / "analysis").iterdir()} == {"index.html", "analysis.json"}
        return
    found = [json.loads(path.read_text()) for path in work.rglob("results.json")]
    assert found or recipe in ("digits_demo", "train_teacher")
    assert {results["status"] for results in found} <= {"finished"}
    if recipe == "reproduce":
        assert list(work.rglob("table.md"))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_it_runs_as_it_stands(command, work, toys):
    recipe, _, path, arguments = typed(command, work, toys)
    if recipe == "coco_detection":
        pytest.importorskip("pycocotools")
    log = work / "what was printed"
    process = start(_printing, str(log), str(work), path, *map(str, arguments))
    process.join(170)
    printed = log.read_text()
    assert process.exitcode == 0, printed[-3000:]
    check(recipe, work, command)
    assert not [path for path in (work.parent / "my repository").rglob("*") if path.suffix in (".json", ".md")]


def _printing(log, folder, path, *arguments):
    from processes import print_to

    print_to(log)
    torch.set_num_threads(1)
    in_folder(folder, path, *arguments)


@pytest.mark.slow
def test_accelerate_launch_itself(work, toys):
    command = next(c for c in COMMANDS if "--config_file" in c)
    _, launcher, path, arguments = typed(command, work, toys)
    words = [sys.executable, "-m", "accelerate.commands.launch", *launcher, path, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_accuracy" in done.stdout
