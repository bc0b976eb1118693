"""The benchmarks' shared parts against known figures; what run_all.py makes of files, also of missing ones."""

import json
import math
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import recipe_toys
import run_all
from entries import ENTRIES
from growth import Growth, check_sizes
from scaling import Axis, BenchmarkArguments, Measured, usual_processes
from scaling_steps import KINDS, ImageStep, TextStep
from summary import Target, figures, summarise
from turns import Clock, in_child, on_one_gpu

from hfkd import DistillationArguments

BENCHMARKS = Path(run_all.__file__).parent
# Shared parts, no commands.
MODULES = {"entries", "fresh_process", "growth", "operations", "peers", "scaling_steps", "summary", "turns"}
COMMANDS = sorted(path for path in BENCHMARKS.glob("*.py") if path.stem not in MODULES)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.stem)
def test_every_command_explains_itself(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage:" in shown
    wanted = {
        "run_all": ["--quick", "--from_json"],
        "gpu_files": ["--part_mib"],
        "stories": ["--max_steps", "--output_dir"],
        "two_tokenizers": ["--max_steps", "--output_dir"],
    }
    assert all(flag in shown for flag in wanted.get(script.stem, ["--json", "--quick"]))


# ---- growth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power):
    sizes = [16, 32, 64, 256]
    growth = Growth("batch", sizes, [0.003 * n**power for n in sizes])
    assert growth.exponent == pytest.approx(power)
    assert growth.last_exponent == pytest.approx(power)
    assert f"size^{power:.2f}" in growth.sentence


def test_the_exponent_is_the_least_squares_line_in_logarithms():
    sizes, seconds = [1, 2, 4], [1.0, 1.5, 4.0]
    x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
    mx, my = sum(x) / 3, sum(y) / 3
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    assert Growth("length", sizes, seconds).exponent == pytest.approx(slope)


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [
        (lambda n: 100 + n, "below linear, part of the cost is fixed"),
        (lambda n: 1 + n, "linear"),
        (lambda n: n + n * n, "above linear"),
    ],
)
def test_a_fixed_cost_and_a_quadratic_one_are_told_from_linear(cost, verdict):
    growth = Growth("batch", [16, 64, 128], [cost(n) for n in (16, 64, 128)])
    assert growth.sentence.endswith(f": {verdict}")
    assert growth.last_exponent == pytest.approx(math.log2(cost(128) / cost(64)))


@pytest.mark.parametrize("sizes", [[], [4], [4, 4], [8, 4], [0, 4]])
def test_sizes_without_growth_are_refused(sizes):
    with pytest.raises(ValueError, match="two or more, ascending"):
        check_sizes("batch", sizes)


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_seconds_that_are_none_are_refused(seconds):
    with pytest.raises(ValueError, match="above 0"):
        Growth("batch", [1, 2], seconds)


def test_a_clock_with_too_few_steps_is_refused():
    with pytest.raises(ValueError, match="take 4 or more"):
        Clock(3, warm_up=2)


# ---- scaling ------------------------------------------------------------------------------------------------------


def test_rates_count_what_a_step_trains():
    assert Measured(Axis(ImageStep(64), "batch", [16, 32]), [0.1, 0.2]).rates == [160, 160]
    text = TextStep(batch=4, length=128, vocabulary=8192)
    assert Measured(Axis(text, "length", [64, 128]), [1.0, 1.0]).rates == [256, 512]
    assert Measured(Axis(text, "vocabulary", [512, 1024]), [1.0, 2.0]).rates == [512, 256]


def test_two_processes_that_take_no_longer_do_twice_the_work():
    measured = Measured(Axis(ImageStep(64), "processes", [1, 2]), [0.1, 0.1])
    assert measured.rates == [640, 1280]
    assert measured.sentence.startswith("1 to 2 processes: 2.00 times the images a second, 2.00 is the maximum")


def test_a_size_shorter_than_the_base_is_another_step():
    loops = Axis(TextStep(4, 128, 8192), "length", [8, 16]).loops(None)
    assert [loop.args[0] for loop in loops.values()] == [TextStep(4, 8, 8192), TextStep(4, 16, 8192)]


@pytest.mark.parametrize(("gpus", "expected"), [(0, [1, 2]), (1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_processes_double_up_to_all_gpus(gpus, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert usual_processes() == expected


@pytest.mark.parametrize(("only", "units"), [("images", {"images"}), ("text", {"tokens"}), (None, set(KINDS))])
def test_one_of_the_two_can_be_left_out(only, units):
    axes = BenchmarkArguments(only=only, quick=True, processes=[1]).axes
    assert {axis.base.unit for axis in axes} == units
    assert "processes" not in {axis.name for axis in axes}


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="there are 1"):
        BenchmarkArguments(processes=[1, 2])


def test_one_process_keeps_to_one_gpu(tmp_path):
    args = DistillationArguments(str(tmp_path), per_device_train_batch_size=4)
    args._n_gpu = 4  # what Trainer finds on a machine with four
    assert args.train_batch_size == 16
    assert on_one_gpu(args).train_batch_size == 4


@pytest.mark.slow
def test_what_scaling_writes_is_what_the_summary_reads(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), "--quick", "--only", "text", "--use_cpu"]
    done = subprocess.run([*command, "--json", str(tmp_path / "scaling.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("linear would be 1") == 3
    lines = figures(tmp_path, "scaling", None)
    assert [line.target is None for line in lines] == [False, False, False, True]
    assert all(math.isfinite(line.value) for line in lines)


@pytest.mark.slow
def test_each_way_of_a_text_step_runs(tmp_path):
    toys = recipe_toys.write_toys(tmp_path / "toys")
    command = [sys.executable, str(BENCHMARKS / "text_step.py"), "--quick", "--dataset_name", str(toys / "text")]
    command += ["--tokenizer", str(toys / "small"), "--json", str(tmp_path / "text_step.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "text_step.json").read_text())["results"]
    assert len(found) >= 6
    assert all(turn["seconds"] > 0 for (turn,) in found.values())


@pytest.mark.slow
def test_where_the_time_of_a_step_goes_is_measured(tmp_path):
    toys = recipe_toys.write_toys(tmp_path / "toys")
    command = [sys.executable, str(BENCHMARKS / "profile_step.py"), "--quick", "--dataset_name", str(toys / "digits")]
    command += ["--teacher_name", "cifar_resnet8", "--student_name", "cifar_resnet8", "--batch_size", "8"]
    command += ["--json", str(tmp_path / "profile_step.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "profile_step.json").read_text())["results"]
    assert all(parts["student forward"] > 0 and parts["teacher"] > 0 for parts in found.values())


# ---- the summary --------------------------------------------------------------------------------------------------

STEPS = {"public loop": [4.2, 4.0], "bare loop": [2.0, 2.1], "hfkd, live teacher": [2.0, 2.5]} | {
    "hfkd, warm cache": [1.0, 1.1]
}
LOSSES = {
    "Energy KD + EA-KD": {"step_beside_kd": 1.02, "by_the_loss": 1.001, "operations": {"objective": 900}},
    "MLD": {"operations": {"objective": 93, "loss": 130}},
    "MLD, released": {"operations": {"objective": 100}},
}


def chunked(size, memory, time, peer=None):
    return {"tokens": 64, "vocab": 512, "chunk_size": size, "peer": peer, "ratios": {"bytes": memory, "seconds": time}}


CHUNKED = [chunked(0, 1.0, 1.0), chunked(128, 0.125, 1.2), chunked(0, 0.5, 1.5, "liger")]
SCALED = [
    {"unit": "images", "axis": "batch", "sizes": [64, 128], "rates": [1, 1], "last_exponent": 0.97},
    {"unit": "tokens", "axis": "length", "sizes": [64, 128], "rates": [1, 1], "last_exponent": 1.3},
    {"unit": "tokens", "axis": "processes", "sizes": [1, 2], "rates": [100, 150]},
]
TEXT = {"TRL GKD": [8.0, 7.8], "hfkd, the same loss": [3.0, 2.6], "hfkd, EA-KD": [6.5], "hfkd, EA-KD, stored": [3.9]}


def turns(ways):
    return {"results": {way: [{"seconds": s} for s in seconds] for way, seconds in ways.items()}}


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("image_step", {"times": STEPS}, [(2.0, "missed"), (4.0, "met"), (1.0, "met")]),
        (
            "resnet56_resnet20_graphs",
            {"times": STEPS, "device": "cuda", "images": 64, "settings": {"batch_size": 64}},
            [(2.0, "missed"), (4.0, "met"), (1.0, "met"), (8.0, "missed"), (4.0, "missed")],
        ),
        ("loss_overhead", {"results": LOSSES}, [(1.02, "missed"), (1.001, "met"), (100, "met")]),
        ("teacher_scan", {"share": 0.949}, [(0.949, "missed")]),
        (
            "input_pipeline",
            {"images_per_second": {"resident, batch 64": 40_000.2, "resident, batch 256": 3e4, "row by row": 1e4}},
            [(40_000, "met"), (30_000, "missed"), (10_000, "")],
        ),
        ("chunked_loss", {"runs": CHUNKED[:2]}, [(0.125, "met"), (1.2, "missed")]),
        ("chunked_loss_liger", {"runs": CHUNKED, "device": "cuda"}, [(0.125, "met"), (1.2, ""), (0.8, "met")]),
        ("text_step", turns(TEXT), [(3.0, "met"), (1.2, "missed"), (2.0, "")]),
        ("scaling", {"results": SCALED}, [(0.97, "met"), (1.3, "missed"), (1.5, "")]),
    ],
)
def test_figures_and_whether_they_meet_their_targets(tmp_path, name, found, expected):
    (tmp_path / f"{name}.json").write_text(json.dumps(found))
    lines = figures(tmp_path, name, None)
    assert [line.outcome for line in lines] == [outcome for _, outcome in expected]
    assert [line.value for line in lines] == pytest.approx([value for value, _ in expected])


def test_without_trl_no_ratio_is_made_up(tmp_path):
    (tmp_path / "text_step.json").write_text(json.dumps(turns({"hfkd, EA-KD": [6.5]})))
    (line,) = figures(tmp_path, "text_step", None)
    assert line.value is None
    assert line.outcome.startswith("TRL is missing")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"times": {}}', '{"times": {"public loop": []}}', "null"])
def test_a_broken_file_is_said_so(tmp_path, text):
    (tmp_path / "image_step.json").write_text(text)
    (line,) = figures(tmp_path, "image_step", None)
    assert line.value is None
    assert line.outcome.startswith("not measured: image_step.json is not what image_step writes")


@pytest.mark.parametrize(
    ("target", "shown", "inside", "outside"),
    [
        (Target(2.4), "≥ 2.4", 2.4, 2.399),
        (Target(most=1.05), "≤ 1.05", 1.05, 1.051),
        (Target(0.9, 1.1), "0.9 to 1.1", 1.1, 0.89),
        (Target(40_000), "≥ 40,000", 40_000, float("nan")),
    ],
)
def test_a_target_is_met_at_its_bound(target, shown, inside, outside):
    assert str(target) == shown
    assert target.met(inside)
    assert not target.met(outside)


def test_the_table_of_a_folder_names_what_is_missed_and_what_is_missing(tmp_path, capsys):
    environment = {"devices": ["A processor"], "cpu_count": 2, "versions": {"torch": "9.9"}}
    (tmp_path / "teacher_scan.json").write_text(json.dumps({"share": 0.9, "environment": environment}))
    assert run_all.main(["--from_json", str(tmp_path), "--only", "teacher_scan", "image_step"]) == 0
    shown = capsys.readouterr().out
    text = (tmp_path / "summary.md").read_text()
    assert text.strip() in shown
    assert "| teacher_scan | speed: scan / bare forward | 0.900 | ≥ 0.95 | missed |" in text
    assert "| image_step |  |  |  | not measured: there is no image_step.json |" in text
    assert "Device: A processor; 2 CPUs; bf16 unknown; abilities: unknown; torch 9.9." in text
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert [(f["benchmark"], f["value"], f["result"][:6]) for f in stored["figures"]] == [
        ("teacher_scan", 0.9, "missed"),
        ("image_step", None, "not me"),
    ]


# ---- running ------------------------------------------------------------------------------------------------------

GOOD = "import sys, json; print('a line'); json.dump({'share': 1.0}, open(sys.argv[2], 'w'))"
BAD = "import sys; print('half a line'); sys.exit('it broke')"


def test_one_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    for name, text in (("image_step", BAD), ("teacher_scan", GOOD)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "image_step.json").write_text(json.dumps({"times": STEPS}))  # of an earlier run, which does not count
    assert run_all.main(["--output_dir", str(out), "--only", "image_step", "teacher_scan", "--quick"]) == 1
    text, shown = (out / "summary.md").read_text(), capsys.readouterr().out
    assert "| image_step |  |  |  | failed (exit 1): see image_step.log |" in text
    assert "| teacher_scan | speed: scan / bare forward | 1.000 | ≥ 0.95 | met |" in text
    assert "it broke" in shown
    assert (out / "image_step.log").read_text() == "half a line\nit broke\n"
    assert "show that a benchmark runs" in text
    assert f"torch {torch.__version__}".split("+")[0] in text
    assert str(tmp_path) not in text
    assert run_all.main(["--from_json", str(out), "--only", "teacher_scan"]) == 0


def test_each_command_line_has_what_its_script_takes():
    words = "--quick --dataset_name cifar --teacher_checkpoint t.pth --text_dataset_name dolly.jsonl --tokenizer gpt2 "
    args = run_all.parse_args(shlex.split(words + "--trl trl_dir --flags 'scaling=--only images --rounds 9'"))
    lines = {name: run_all.command_line(name, args) for name in ENTRIES}
    for name, line in lines.items():
        assert Path(line[0]).is_file()
        assert line[1:3] == ["--json", str(args.output_dir / f"{name}.json")]
        assert "--quick" in line
    assert lines["scaling"][-4:] == ["--only", "images", "--rounds", "9"]
    assert lines["loss_overhead"][3:] == lines["chunked_loss"][3:] == ["--quick"]
    assert lines["input_pipeline"][3:] == ["--dataset_name", "cifar", "--quick"]
    assert lines["image_step"][3:] == ["--dataset_name", "cifar", "--teacher_checkpoint", "t.pth", "--quick"]
    assert lines["text_step"][3:-1] == ["--dataset_name", "dolly.jsonl", "--tokenizer", "gpt2", "--trl", "trl_dir"]


@pytest.mark.parametrize("flags", ["nothing=--rounds 9", "scaling"])
def test_flags_for_nobody_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        run_all.parse_args(["--flags", flags])
    assert "give NAME='...'" in capsys.readouterr().err


def test_the_summary_works_without_notes_of_a_run(tmp_path):
    assert "unknown" in summarise(tmp_path, ["scaling"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with a GPU cannot be forked")
def test_what_a_loop_sets_for_its_process_ends_with_it(capfd):
    seen = []
    assert in_child(lambda: [seen.append(1) or 2.5]) == [2.5]
    assert seen == []
    with pytest.raises(RuntimeError, match="ended without a result"):
        in_child(lambda: [1 / 0])
    assert "ZeroDivisionError" in capfd.readouterr().err


# ---- a session on a GPU ----------------------------------------------------------------------------------------------


def gpu_files(folder, **flags):
    names = {"dataset_name": "images", "teacher_checkpoint": "weights.pt", "text_dataset_name": "text", "part_mib": 1}
    names |= {"tokenizer": "tokenizer", "output_dir": "out", "text_rows": 2} | flags
    words = [word for name, value in names.items() for word in (f"--{name}", str(value))]
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_files.py"
    return subprocess.run([sys.executable, str(script), *words, "--wheels"], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def files_to_send(tmp_path):
    for name in ("images", "tokenizer"):
        (tmp_path / name).mkdir()
    for name in ("test-0", "train-0", "train-1", "train-2"):
        (tmp_path / "images" / f"{name}.parquet").write_bytes(name.encode() * 60_000)
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    (tmp_path / "weights.pt").write_bytes(b"w" * 1000)
    (tmp_path / "text").write_text("one\ntwo\nthree\n", encoding="utf-8")
    return tmp_path


def test_what_a_gpu_session_needs_goes_into_folders_that_can_be_sent(files_to_send):
    assert gpu_files(files_to_send).returncode == 0
    out = files_to_send / "out"
    sizes = {part.name: sum(p.stat().st_size for p in part.rglob("*") if p.is_file()) for part in out.iterdir()}
    assert all(size <= 2**20 for size in sizes.values())
    sent = {path.name: path.read_bytes() for path in out.rglob("*.parquet")}
    assert sent == {path.name: path.read_bytes() for path in (files_to_send / "images").iterdir()}
    assert (out / "1" / "text.jsonl").read_text(encoding="utf-8") == "one\ntwo\n"
    assert (out / "1" / "tokenizer" / "vocab.json").is_file()
    again = gpu_files(files_to_send)
    assert again.returncode == 1
    assert "out already exists" in again.stderr


def test_an_image_file_that_fits_no_folder_is_named_before_anything_is_written(files_to_send):
    (files_to_send / "images" / "train-3.parquet").write_bytes(b"x" * (2**20 + 1))
    told = gpu_files(files_to_send)
    assert "train-3.parquet is larger" in told.stderr
    assert not (files_to_send / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("teacher_checkpoint", "other.pt"), ("text_dataset_name", "images"), ("tokenizer", "text")],
)
def test_a_file_for_a_gpu_session_that_is_not_there_is_named_before_anything_is_written(files_to_send, flag, value):
    told = gpu_files(files_to_send, **{flag: value})
    assert f"--{flag} {value} is not a" in told.stderr
    assert "Traceback" not in told.stderr
    assert not (files_to_send / "out").exists()


def test_wheels_for_a_gpu_session_are_of_the_versions_here(monkeypatch, files_to_send):
    """The newest ones may not fit each other."""
    import datasets

    words = ["--dataset_name=images", "--teacher_checkpoint=weights.pt", "--text_dataset_name=text"]
    words += ["--tokenizer=tokenizer", "--output_dir=out", "--wheels", "datasets", "no-such-package", "trl==1.0"]
    called = []
    monkeypatch.chdir(files_to_send)
    monkeypatch.setattr(sys, "argv", ["gpu_files.py", *words])
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    runpy.run_path(str(BENCHMARKS / "gpu_files.py"), run_name="__main__")
    assert called[0][-3:] == [f"datasets=={datasets.__version__}", "no-such-package", "trl==1.0"]


@pytest.mark.parametrize("sent", ["all", "first"])
def test_the_full_protocol_of_a_gpu_session_has_all_training_images(files_to_send, sent):
    """With a python3 that ends at once, and three files of training images, as gpu_files.py sends them."""
    assert gpu_files(files_to_send).returncode == 0
    for name in ("benchmarks", "bin", "files"):
        (files_to_send / name).mkdir()
    shutil.copy(BENCHMARKS / "gpu_session.sh", files_to_send / "benchmarks")
    (files_to_send / "bin" / "python3").write_text("#!/bin/sh\n")
    (files_to_send / "bin" / "python3").chmod(0o755)
    folders = sorted(path.name for path in (files_to_send / "out").iterdir())
    assert len(folders) > 1
    for name in folders if sent == "all" else folders[:1]:
        (files_to_send / "out" / name).rename(files_to_send / "files" / name)
    command = ["bash", str(files_to_send / "benchmarks" / "gpu_session.sh"), "files", "results", "full"]
    surroundings = os.environ | {"PATH": f"{files_to_send / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=files_to_send, env=surroundings, check=True, capture_output=True)
    told = (files_to_send / "results" / "summary.md").read_text()
    assert told.count("| full | done |") == (2 if sent == "all" else 0)
    assert ("| full | needs all folders of gpu_files.py: train-2.parquet is missing" in told) == (sent == "first")


@pytest.mark.parametrize("status", [0, 1])
def test_a_step_of_a_gpu_session_that_fails_leaves_no_figures_of_an_earlier_one(tmp_path, status):
    """With a python3 that ends at once; the step's JSON file is from an earlier session."""
    for name in ("benchmarks", "bin", "files", "runs/gpu_session/json"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(BENCHMARKS / "gpu_session.sh", tmp_path / "benchmarks")
    (tmp_path / "bin" / "python3").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    kept = {name: tmp_path / "runs" / "gpu_session" / "json" / f"{name}.json" for name in ("text_step", "launches")}
    for file in kept.values():
        file.write_text("{}")
    command = ["bash", str(tmp_path / "benchmarks" / "gpu_session.sh"), "files", "out", "text"]
    surroundings = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, env=surroundings, check=True, capture_output=True)
    said = "done" if status == 0 else "failed, exit status 1"
    assert f"| text | {said} |" in (tmp_path / "out" / "summary.md").read_text()
    assert {name for name, file in kept.items() if file.exists()} == {"launches"}  # that step was not run
