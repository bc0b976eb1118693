"""Students whose weights are not those that from_pretrained builds a place for."""

import logging

import pytest
from text_toys import TokenRows, language_model
from torch import nn
from toys import Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.models import image_classifier, prune_layers, with_projector

SAYS = "not what a"


def untied(**keywords):
    tied = language_model(**keywords)
    tied.config.tie_word_embeddings = False
    return type(tied)(tied.config)


def built(folder, student, taught, rows):
    return DistillationTrainer(student, taught, arguments(folder), train_dataset=rows)


def test_weights_that_are_tied_by_hand_are_refused(tmp_path):
    """One of them would be saved, and the other be random in a student that is loaded again."""
    student = untied()
    student.set_output_embeddings(student.get_input_embeddings())
    with pytest.raises(ValueError, match=r"of the student are one tensor.*Set tie_word_embeddings=True"):
        built(tmp_path, student, language_model(), TokenRows())


def test_layers_that_are_one_layer_are_refused(tmp_path):
    student = language_model(layers=2)
    layers = next(m for m in student.modules() if isinstance(m, nn.ModuleList) and len(m) > 1)
    layers[1] = layers[0]
    with pytest.raises(ValueError, match="of the student are one tensor"):
        built(tmp_path, student, language_model(), TokenRows())


def test_a_head_that_was_replaced_is_warned_of(tmp_path, caplog):
    student = untied()
    head = student.get_output_embeddings()
    student.set_output_embeddings(nn.Sequential(nn.Linear(head.in_features, 4), nn.Linear(4, head.out_features)))
    built(tmp_path, student, language_model(), TokenRows())
    assert SAYS in caplog.text
    assert "from_pretrained will not load them" in caplog.text


CHANGES = {
    "eps": lambda layer: setattr(layer.ln_1, "eps", 0.1),
    "ReLU()": lambda layer: setattr(layer.mlp, "act", nn.ReLU()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_layer_that_was_changed_by_hand_is_warned_of(tmp_path, caplog, what):
    """Its weights are saved, and used by another layer when they are loaded."""
    student = language_model(layers=2)
    CHANGES[what](student.transformer.h[1])
    built(tmp_path, student, language_model(), TokenRows())
    name = {"eps": "transformer.h.1.ln_1", "ReLU()": "transformer.h.1.mlp.act"}[what]
    assert f"{name} of the student were changed by hand: {name} is " in caplog.text
    assert what in caplog.text


def test_dropout_that_was_changed_is_not(tmp_path, caplog):
    student = language_model()
    student.transformer.drop.p = 0.5
    built(tmp_path, student, language_model(), TokenRows())
    assert "changed by hand" not in caplog.text


def test_what_the_configuration_says_is_not_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    network = image_classifier("cifar_resnet8", 5)
    network.save_pretrained(tmp_path / "stored")
    students = {
        "fresh": network,
        "stored": image_classifier(tmp_path / "stored", 5),
        "new head": image_classifier(tmp_path / "stored", 5, new_head=True),
        "projector": with_projector(image_classifier("cifar_resnet8", 5), 12),
    }
    for name, student in students.items():
        built(tmp_path / name, student, teacher(), Rows())
    resized, taught = language_model(), language_model()
    for network in (resized, taught):
        network.resize_token_embeddings(network.config.vocab_size + 3)
    built(tmp_path / "resized", resized, taught, TokenRows())
    built(tmp_path / "pruned", prune_layers(language_model(layers=2), 1), language_model(), TokenRows())
    assert SAYS not in caplog.text
    assert "changed by hand" not in caplog.text
