"""Layers whose positions are not those of the batch's attention_mask: of decoders, and of speech encoders."""

import pytest
import torch
from task_toys import KINDS, generator, wav2vec2
from toys import arguments
from transformers import Wav2Vec2FeatureExtractor

from hfkd import DistillationTrainer

DECODER = "model.decoder.layers.0"


def speech_rows():
    g = generator()
    lengths = [80 - 4 * i for i in range(8)]
    return [{"input_values": torch.randn(n, generator=g).tolist(), "labels": n % 3} for n in lengths]


def of_speech():
    """A pair whose rows do not depend on the padding beside them."""
    torch.manual_seed(0)
    networks = [wav2vec2(width, feat_extract_norm="layer") for width in (8, 16)]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return *networks, {"train_dataset": speech_rows(), "processing_class": extractor}


def of_texts(name):
    student, teacher = (network.float() for network in KINDS[name].pair())
    return student, teacher, KINDS[name].keywords(dtype=torch.float32)


CASES = {
    "a decoder without a mask": (lambda: of_texts("Whisper"), f"hidden_mse(layers='{DECODER}')"),
    "a decoder beside its encoder's mask": (lambda: of_texts("BART"), f"hidden_mse(layers='{DECODER}')"),
    "the states of the head": (lambda: of_texts("BART"), "hidden_cosine(layers='lm_head:in', projection=True)"),
    "an encoder and its decoder": (
        lambda: of_texts("BART"),
        f"hidden_mse(layers='model.encoder.layers.0') + hidden_mse(layers='{DECODER}')",
    ),
    "frames": (of_speech, "hidden_mse(layers='wav2vec2.encoder.layers.1')"),
}


@pytest.mark.parametrize(("parts", "objective"), CASES.values(), ids=CASES)
def test_padding_is_left_out(tmp_path, parts, objective):
    """The loss of a batch is that of its rows one by one, which have no padding."""
    losses = []
    for size in (8, 1):
        student, teacher, keywords = parts()
        settings = {"objective": objective, "max_steps": 1, "ce_weight": 0.0, "kd_weight": 1.0}
        settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        args = arguments(tmp_path / str(size), **settings)
        losses.append(DistillationTrainer(student, teacher, args, **keywords).train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_layers_of_pictures_are_no_tokens(tmp_path):
    student, teacher, keywords = of_texts("LLaVA")
    objective = "hidden_mse(layers='model.vision_tower.encoder.layers.0'{})"
    made = DistillationTrainer(student, teacher, arguments(tmp_path / "a", objective=objective.format("")), **keywords)
    with pytest.raises(ValueError, match=r"a layer has 5 positions, .* hidden_mse\(\.\.\., count_padding=True\)"):
        made.train()
    args = arguments(tmp_path / "b", objective=objective.format(", count_padding=True"), max_steps=1)
    DistillationTrainer(student, teacher, args, **keywords).train()
