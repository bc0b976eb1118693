"""A recipe does what was typed, or refuses it; each command runs."""

import pytest
from recipe_toys import image_flags, results, run, text_flags, write_toys


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
