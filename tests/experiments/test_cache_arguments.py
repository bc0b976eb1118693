"""A complete cache is used without its teacher, unless the teacher's files are other ones."""

import pytest
import torch
from text_toys import language_model, taught_model, token_dataset, tokenizer

from hfkd.experiments.cache_arguments import TeacherCacheArguments
from hfkd.models.language import causal_lm
from hfkd.teachers import CachedTextTeacher
from hfkd.teachers.source import model_source


@pytest.fixture
def ask(tmp_path):
    """Asks the flags for a teacher, and says how often it was loaded."""
    taught_model().save_pretrained(tmp_path / "teacher")
    loads = []

    def teacher(name=None, how=("auto",), **flags):
        def load():
            loads.append(name)
            return causal_lm(name or tmp_path / "teacher", *how)

        cache = TeacherCacheArguments(**{"teacher_cache_k": 4} | flags)
        name = name or str(tmp_path / "teacher")
        return cache.teacher(
            str(tmp_path / "cache"), load, name, token_dataset(), language_model(), tokenizer(), 2.0, how=how
        ), len(loads)

    return teacher


def test_it_is_loaded_once(ask, tmp_path):
    assert isinstance(ask()[0], CachedTextTeacher)
    assert ask()[1] == 1


def test_files_touched_or_copied_are_the_same(ask, tmp_path):
    ask()
    for file in (tmp_path / "teacher").iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert ask()[1] == 1


def test_a_teacher_trained_further_under_its_name_is_refused(ask, tmp_path):
    ask()
    other = taught_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="contains another teacher cache: its teacher is"):
        ask()


def test_another_file_of_the_same_teacher_is_compared_once(ask, tmp_path):
    ask()
    (tmp_path / "teacher" / "generation_config.json").write_text("{}")
    assert [ask()[1], ask()[1]] == [2, 2]


@pytest.mark.parametrize("flag", ["k", "entropy_temperature", "energy_temperature"])
def test_a_cache_of_other_flags_is_refused(ask, flag):
    """Training would use what is stored, and results.json would say what was asked for."""
    ask()
    with pytest.raises(ValueError, match=f"--teacher_cache_{flag} 2: .* was stored with"):
        ask(**{f"teacher_cache_{flag}": 2})


@pytest.mark.parametrize("how", [("bfloat16",), ("auto", True)], ids=["another dtype", "random weights"])
def test_a_cache_of_the_same_files_loaded_in_another_way_is_refused(ask, how):
    ask(how=how)
    with pytest.raises(ValueError, match="its teacher is .* of weights in their dtype and quantisation"):
        ask()


def test_another_name_of_the_same_dtype_is_compared_once(ask):
    ask()
    assert [ask(how=("float32",))[1], ask(how=("float32",))[1]] == [2, 2]


def test_what_is_damaged_is_made_again(ask, tmp_path):
    rows = list(token_dataset())
    whole = ask()[0].look_up(rows)
    shard = tmp_path / "cache" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    again, loads = ask()
    assert loads == 2
    assert all(torch.equal(again.look_up(rows)[name], values) for name, values in whole.items())


def test_the_same_teacher_under_another_path_is_the_same(ask, tmp_path):
    """As on another machine, with a slash at the end, or relative; also where a file has to be made again."""
    ask()
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert [ask(name=f"{tmp_path}/moved{end}")[1] for end in ("", "/")] == [1, 1]
    (tmp_path / "cache" / "shard-00000.arrow").unlink()
    assert [ask(name=f"{tmp_path}/moved")[1] for _ in range(2)] == [2, 2]
    taught_model(16).save_pretrained(tmp_path / "another")
    with pytest.raises(ValueError, match="has the outputs of .*/teacher, but the teacher is .*/another"):
        ask(name=f"{tmp_path}/another")


def test_a_model_without_files_has_no_source(tmp_path):
    assert model_source(tmp_path) is None
    assert model_source(tmp_path / "nowhere") is None
    assert model_source("nobody/nothing") is None


def test_an_adapter_has_its_base_models_files(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path / "base"}"}}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    language_model().save_pretrained(tmp_path / "base")
    before = model_source(adapter)
    assert model_source(adapter) == before
    language_model(seed=3).save_pretrained(tmp_path / "base")
    assert model_source(adapter) != before
