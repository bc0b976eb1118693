"""The temperature where nobody chose one: 1 for language models, 4 for all else; one that is given is that one."""

import logging

import pytest
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.temperatures import Constant, Energy


def language(folder, keywords=None, **given):
    return DistillationTrainer(
        language_model(),
        taught_model(),
        arguments(folder, max_steps=1, **given),
        train_dataset=TokenRows(),
        processing_class=tokenizer(),
        **(keywords or {}),
    )


def test_language_models_learn_at_one_and_the_log_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hfkd"):
        trainer = language(tmp_path / "usual")
    assert "using temperature=1, the default for language models" in caplog.text
    assert trainer.distillation_loss.temperature == Constant(1.0)
    assert trainer.settings["temperature"] == repr(Constant(1.0))
    trainer.train()
    given = language(tmp_path / "given", temperature="1.0")
    given.train()
    losses = [next(e["loss"] for e in t.state.log_history if "loss" in e) for t in (trainer, given)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("keywords", "given", "expected"),
    [
        ({}, {"temperature": 4.0}, Constant(4.0)),
        ({}, {"temperature": "4.0"}, Constant(4.0)),
        ({"temperature": 4.0}, {}, Constant(4.0)),
        ({"temperature": 2.0}, {"temperature": "4.0"}, Constant(2.0)),
        ({"temperature": "energy"}, {}, Energy()),
    ],
)
def test_one_that_is_given_stays(tmp_path, caplog, keywords, given, expected):
    with caplog.at_level(logging.INFO, "hfkd"):
        trainer = language(tmp_path, keywords, **given)
    assert trainer.distillation_loss.temperature == expected
    assert "No temperature was set" not in caplog.text


def test_images_are_learned_at_four(tmp_path):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    assert trainer.distillation_loss.temperature == Constant(4.0)
