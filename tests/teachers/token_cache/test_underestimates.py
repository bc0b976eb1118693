"""A cache of the likeliest classes says what it hides of a divergence, when the trainer is built."""

import re

import pytest
import torch
from text_toys import language_model, token_dataset
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.teachers import CachedTextTeacher, build_text_cache

WORDS = 400


def model(width, seed, scale):
    made = language_model(width, WORDS, seed)
    with torch.no_grad():
        made.transformer.wte.weight.mul_(scale)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    build_text_cache(model(24, 1, 20), token_dataset(), folder, k=16, temperatures=(1.0, 2.0), progress_bar=False)
    return folder


def kd_of(folder, taught, student, **keywords):
    settings = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 32, "temperature": 2.0}
    args = arguments(folder, **{k: v for k, v in settings.items() if k != "temperature"})
    slots = {"temperature": 2.0, "data_collator": TokenCollator(0), "train_dataset": token_dataset()}
    trainer = DistillationTrainer(student, taught, args, **slots | keywords)
    trainer.train()
    return next(entry["kd"] for entry in trainer.state.log_history if "kd" in entry)


def test_reverse_kl_of_a_new_student_is_said_with_about_the_right_number(cache, tmp_path, caplog):
    kept = kd_of(tmp_path / "a", CachedTextTeacher(cache), model(16, 0, 1), objective="reverse_kl")
    live = kd_of(tmp_path / "b", model(24, 1, 20), model(16, 0, 1), objective="reverse_kl")
    assert live > 1.5 * kept
    (said,) = [message for message in caplog.messages if "most probable of" in message]
    shown, whole = re.search(r" is (\S+), but about (\S+) with the live teacher \(", said).groups()
    assert "has the 16 most probable of 400 classes" in said
    assert float(shown) == pytest.approx(kept, rel=0.15)
    assert float(whole) == pytest.approx(live, rel=0.15)


@pytest.mark.parametrize(
    ("objective", "temperature", "student"),
    [("kd", 1.0, (16, 0, 1)), ("reverse_kl", 1.0, (24, 1, 20)), ("kd", 2.0, (24, 1, 20))],
)
def test_what_is_near_the_live_value_is_not_worth_a_word(cache, tmp_path, caplog, objective, temperature, student):
    """The teacher's own probabilities weigh kd; a student that is the teacher puts little on the other classes."""
    kd_of(tmp_path, CachedTextTeacher(cache), model(*student), objective=objective, temperature=temperature)
    assert "likeliest of 400" not in caplog.text


def test_a_cache_of_all_classes_hides_nothing(tmp_path, caplog):
    build_text_cache(model(24, 1, 20), token_dataset(), tmp_path / "c", k=WORDS, temperatures=2.0, progress_bar=False)
    kd_of(tmp_path / "a", CachedTextTeacher(tmp_path / "c"), model(16, 0, 1), objective="reverse_kl")
    assert caplog.messages == []


def test_a_mask_hides_without_end(tmp_path, caplog):
    masked = model(24, 1, 20)
    masked.lm_head.register_forward_hook(
        lambda head, states, logits: torch.cat([logits[..., :50], torch.full_like(logits[..., 50:], -1e9)], -1)
    )
    build_text_cache(masked, token_dataset(), tmp_path / "c", k=16, temperatures=2.0, progress_bar=False)
    student = model(16, 0, 1).train()
    kd_of(tmp_path / "a", CachedTextTeacher(tmp_path / "c"), student, objective="reverse_kl")
    assert "with the live teacher" in caplog.text
