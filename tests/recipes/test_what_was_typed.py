"""A recipe does what was typed, or refuses it; each command runs."""

import shutil

import pytest
from digit_files import flags as plain_digit_flags
from recipe_toys import answer_flags, given, image_flags, results, run, text_flags, write_toys


def digit_flags(folder, out, **more):
    return plain_digit_flags(folder / "digits", output_dir=out, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("typed"))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "used"), [(False, "no"), (True, "bf16")])
def test_the_flags_precision_is_that_of_the_run_and_of_its_stored_teacher(folder, monkeypatch, tmp_path, flag, used):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if flag else "bf16")
    stored = {"teacher_cache": tmp_path / "cache", "eval_strategy": "no"}
    run(monkeypatch, "gpt2_dolly_eakd", *text_flags(folder, tmp_path / "text", bf16=flag, **stored))
    run(monkeypatch, "cifar100_energy_kd", *image_flags(folder, tmp_path / "images", bf16=flag))
    for name in ("text", "images"):
        config = results(tmp_path / name)["config"]
        assert (config["mixed_precision"], config["bf16"]) == (used, flag)


# ---- the output folder -----------------------------------------------------------------------------------------------


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "teacher")),
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "teacher", student_name=f / "teacher", teacher_name="x")),
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "digits" / "run")),
        ("takd", lambda f: [*digit_flags(f, f / "teacher"), "--chain", f / "teacher", "cifar_resnet8"]),
        ("dml", lambda f: [*digit_flags(f, f / "teacher"), "--peer_names", "cifar_resnet8", f / "teacher"]),
        ("train_teacher", lambda f: [*digit_flags(f, f / "teacher"), f"--network_name={f / 'teacher'}"]),
        ("reproduce", lambda f: [*image_flags(f, f / "teacher"), "--table=methods_cifar100"]),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "large")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "small")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "link")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "x", teacher_cache=f / "x" / "checkpoint-1")),
        ("sft", lambda f: given(model_name_or_path=f / "small", output_dir=f / "small", use_cpu=True, bf16=False)),
        ("evaluate_instruct", lambda f: answer_flags(f, f / "small")),
    ],
)
def test_an_output_folder_that_is_an_input_is_refused_and_stays_whole(folder, monkeypatch, recipe, flags):
    if not (folder / "link").exists():
        (folder / "link").symlink_to(folder / "small")
        (folder / "x" / "checkpoint-1").mkdir(parents=True)
        (folder / "x" / "checkpoint-1" / "manifest.json").write_text("{}")
    before = content(folder)
    with pytest.raises(ValueError, match="choose another output_dir$"):
        run(monkeypatch, recipe, *flags(folder))
    assert content(folder) == before


def test_a_network_is_scored_where_it_lies(folder, monkeypatch, capsys):
    before = content(folder / "teacher")
    flags = digit_flags(folder, folder / "teacher", network_name=folder / "teacher")
    run(monkeypatch, "train_teacher", *flags, "--evaluate_only")
    assert "eval_accuracy" in capsys.readouterr().out
    assert content(folder / "teacher") == before


def test_a_stage_that_would_write_over_its_own_teacher_is_refused(folder, monkeypatch, tmp_path):
    first = tmp_path / "run" / "1_cifar_resnet8x4"
    shutil.copytree(folder / "teacher", first)
    before = content(first)
    flags = [*digit_flags(folder, tmp_path / "run", pages=False), "--chain", first, "cifar_resnet8x4"]
    with pytest.raises(ValueError, match="is the folder of teacher_name="):
        run(monkeypatch, "takd", *flags)
    assert content(first) == before
