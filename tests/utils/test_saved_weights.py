"""A student's weights that changed after they were saved are refused by whoever loads them."""

import json

import pytest
from text_toys import language_model, token_dataset, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.models import image_classifier
from hfkd.models.checkpoints import load_checkpoint
from hfkd.models.language import causal_lm
from hfkd.utils.saved_weights import SAVED


def flip(path):
    """Another value of a weight, in a file that can be read."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def saved(tmp_path):
    student = image_classifier("cifar_resnet8", CLASSES)
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    trainer = DistillationTrainer(student, teacher(), args, train_dataset=Rows())
    trainer.train()
    trainer.save_model()
    return tmp_path


@pytest.mark.parametrize(("where", "listing"), [(".", SAVED), ("checkpoint-3", "files.json")])
def test_a_flipped_bit_is_named_and_a_change_on_purpose_is_taken(saved, where, listing):
    folder = saved / where
    network = image_classifier("cifar_resnet8", CLASSES)
    load_checkpoint(network, folder / "model.safetensors")
    flip(folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors is damaged: .* \(delete {listing} beside it"):
        load_checkpoint(network, folder / "model.safetensors")
    (folder / listing).unlink()
    load_checkpoint(network, folder / "model.safetensors")


def test_a_language_model_is_looked_at_too(tmp_path):
    trainer = DistillationTrainer(
        language_model(), language_model(seed=1), arguments(tmp_path),
        train_dataset=token_dataset(8), processing_class=tokenizer(),
    )  # fmt: skip
    trainer.save_model()
    causal_lm(str(tmp_path))
    flip(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        causal_lm(str(tmp_path))


def test_saving_again_writes_a_new_list(tmp_path):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    trainer.save_model()
    before = json.loads((tmp_path / SAVED).read_text())
    assert list(before) == ["model.safetensors"]
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / SAVED).read_text()) != before
