"""Layers whose positions are not those of the batch's attention_mask: of decoders, and of speech encoders."""

import copy

import pytest
import torch
from task_toys import KINDS, generator, wav2vec2
from toys import arguments
from transformers import BartConfig, BartForSequenceClassification, Wav2Vec2FeatureExtractor

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


def bart_classifier(width):
    config = BartConfig(
        vocab_size=40, d_model=width, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=width, decoder_ffn_dim=width, dropout=0.0, num_labels=3,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return BartForSequenceClassification(config)


def test_a_decoder_that_reads_the_inputs_has_their_mask(tmp_path):
    """A classifier's labels are no targets of its decoder."""
    torch.manual_seed(0)
    student, teacher = bart_classifier(8), bart_classifier(8)
    g = generator()
    rows = [
        {"input_ids": [0, *torch.randint(5, 40, (4 + i,), generator=g).tolist(), 2], "labels": i % 3} for i in range(8)
    ]
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    losses = []
    for size in (8, 1):
        settings = {"objective": f"hidden_mse(layers='{DECODER}')", "max_steps": 1, "ce_weight": 0.0, "kd_weight": 1.0}
        settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = DistillationTrainer(
            copy.deepcopy(student), teacher, arguments(tmp_path / str(size), **settings), train_dataset=rows,
            data_collator=padded,
        )  # fmt: skip
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def padded(rows):
    length = max(len(row["input_ids"]) for row in rows)
    columns = {name: [row[name] + [fill] * (length - len(row[name])) for row in rows] for name, fill in PADS.items()}
    return {name: torch.tensor(values) for name, values in (columns | {"labels": [r["labels"] for r in rows]}).items()}


PADS = {"input_ids": 1, "attention_mask": 0}
