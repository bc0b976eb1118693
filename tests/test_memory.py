"""What trainers keep in memory."""

import gc
import weakref

import pytest
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


def of_images(folder):
    settings = {"objective": "kd + fitnet(layer='conv')", "train_dataset": Rows()}
    return DistillationTrainer(Net(), teacher(), arguments(folder, max_steps=1), **settings)


def of_texts(folder):
    settings = {"objective": "kd + attention_scores", "train_dataset": TokenRows(), "processing_class": tokenizer()}
    return DistillationTrainer(language_model(), taught_model(), arguments(folder, max_steps=1), **settings)


@pytest.mark.parametrize("build", [of_images, of_texts])
def test_a_trainer_whose_objective_reads_layers_is_freed(tmp_path, build):
    trainer = build(tmp_path)
    trainer.train()
    kept = [weakref.ref(one) for one in (trainer, trainer.model, trainer.teacher.networks[0], trainer.optimizer)]
    del trainer
    gc.collect()
    assert [one() for one in kept] == [None] * len(kept)
