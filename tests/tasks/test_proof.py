"""hfkd's loss is the model's own, or the model is refused: compared on two rows when the trainer is built."""

import pytest
import task_toys
import torch
from test_choice import SMALL, trainer, vit
from text_toys import language_model, token_dataset, tokenizer
from torch.nn.functional import cross_entropy
from toys import Rows, arguments
from transformers import (
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ViTForImageClassification,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from hfkd import DistillationTrainer
from hfkd.tasks.image_classification import ImageClassification
from hfkd.tasks.proof import compare_own_loss
from hfkd.teachers import build_text_cache

VOCAB = 30
X = torch.randint(3, VOCAB, (4, 8), generator=torch.Generator().manual_seed(3))
TEXT = [{"input_ids": x, "labels": x} for x in X]


def bart():
    config = BartConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=VOCAB, pad_token_id=1
    )
    return BartForCausalLM(config)


def xlnet():
    return XLNetLMHeadModel(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=VOCAB))


def xlm():
    return XLMWithLMHeadModel(XLMConfig(emb_dim=16, n_layers=1, n_heads=2, vocab_size=VOCAB))


def llama(**keywords):
    config = LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=VOCAB, initializer_range=0.3, **keywords)
    return LlamaForCausalLM(config)


def gpt2():
    return language_model(vocab=VOCAB)


def voxtral():
    """Among transformers' sequence-to-sequence classes, and a decoder that shifts its labels."""
    text = {"model_type": "llama", **SMALL, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": VOCAB}
    audio = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    audio |= {"model_type": "voxtral_encoder", "vocab_size": VOCAB, "num_mel_bins": 8, "max_source_positions": 20}
    return VoxtralForConditionalGeneration(VoxtralConfig(text_config=text, audio_config=audio))


def labels_only(folder, student, rows=TEXT, **keywords):
    return trainer(folder, student, rows, ce_weight=1.0, kd_weight=0.0, **keywords)


def test_a_causal_model_that_does_not_shift_is_refused_with_both_numbers(tmp_path):
    student = bart().eval()
    with torch.no_grad():
        output = student(input_ids=X[:2], labels=X[:2])
    shifted = cross_entropy(output.logits[:, :-1].flatten(0, 1), X[:2, 1:].flatten())
    assert abs(shifted - output.loss) > 0.1
    said = (
        f"the loss computed by BartForCausalLM on two rows is {output.loss:.4f}, but the cross-entropy computed by "
        f"hfkd is {shifted:.4f}: the model predicts each label at its own position, and causal_lm shifts the labels "
        "by one"
    )
    with pytest.raises(ValueError, match=said):
        labels_only(tmp_path / "run", student)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("build", [xlnet, xlm])
def test_so_are_others(tmp_path, build):
    with pytest.raises(ValueError, match="predicts each label at its own position"):
        labels_only(tmp_path, build())


@pytest.mark.parametrize("build", [llama, voxtral, gpt2, lambda: llama().bfloat16()])
def test_a_model_that_shifts_is_trained_on_its_own_loss(tmp_path, build):
    torch.manual_seed(0)
    student = build().eval()
    evaluated = labels_only(tmp_path, student).evaluate()["eval_loss"]
    with torch.no_grad():
        assert evaluated == pytest.approx(student(input_ids=X, labels=X).loss.item(), rel=1e-5)


def test_a_teacher_that_does_not_shift_is_refused(tmp_path):
    for teacher in (bart(), [gpt2(), bart()]):
        with pytest.raises(ValueError, match="BartForCausalLM .* predicts each label at its own position"):
            trainer(tmp_path, gpt2(), TEXT, teacher)


def test_a_cache_of_a_teacher_that_does_not_shift_is_not_built(tmp_path):
    with pytest.raises(ValueError, match="BartForCausalLM .* predicts each label at its own position"):
        build_text_cache(bart(), token_dataset(4), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from TEXT


def test_without_rows_to_look_at_made_up_ones_do(tmp_path):
    for keywords in ({"train_dataset": Endless()}, {}):
        settings = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0)
        DistillationTrainer(llama(), None, settings, processing_class=tokenizer(), **keywords)
        with pytest.raises(ValueError, match="BartForCausalLM .* predicts each label at its own position"):
            DistillationTrainer(bart(), None, settings, processing_class=tokenizer(), **keywords)


def test_rows_whose_first_tokens_are_no_targets_decide_it_too(tmp_path):
    x = torch.randint(3, VOCAB, (2, 20))
    rows = [{"input_ids": i, "labels": torch.where(torch.arange(20) < 15, -100, i)} for i in x]
    labels_only(tmp_path, llama(), rows)
    with pytest.raises(ValueError, match="predicts each label at its own position"):
        labels_only(tmp_path, bart(), rows)


def test_logits_that_are_all_the_same_decide_it_too(tmp_path):
    """log(vocabulary) is the loss in any place; a label in the first one counts for those alone that do not shift."""
    flat, causal = bart(), llama()
    for network in (flat, causal):
        torch.nn.init.zeros_(network.get_output_embeddings().weight)
    labels_only(tmp_path, causal)
    with pytest.raises(ValueError, match="BartForCausalLM .* predicts each label at its own position"):
        labels_only(tmp_path, flat)


def test_a_loss_with_another_term_is_refused(tmp_path):
    def smoothed(logits, labels, vocab_size, **others):
        return cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, label_smoothing=0.3
        )

    student = llama()
    student.loss_function = smoothed
    with pytest.raises(ValueError, match="has another loss than causal_lm, or adds a term that hfkd would omit"):
        labels_only(tmp_path, student)


def test_a_loss_in_half_precision_passes_and_the_wrong_place_does_not(tmp_path):
    def half(place):
        def loss(logits, labels, vocab_size, **others):
            z, y = (logits[:, :-1], labels[:, 1:]) if place == "next" else (logits, labels)
            return cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100)

        student = llama().bfloat16()
        student.loss_function = loss
        return student

    labels_only(tmp_path, half("next"))
    with pytest.raises(ValueError, match="LlamaForCausalLM .* predicts each label at its own position"):
        labels_only(tmp_path, half("own"))


class Views(Rows):
    """Two views of each image, for which the model could not compute its loss, which was then not compared."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": torch.stack([row["pixel_values"], row["pixel_values"].flip(-1)])}


def test_an_image_classifier_of_another_loss_is_refused(tmp_path, caplog):
    class Weighted(ViTForImageClassification):
        def forward(self, pixel_values, labels=None):
            output = super().forward(pixel_values)
            if labels is not None:
                output.loss = cross_entropy(output.logits, labels, weight=torch.tensor([9.0, 1, 1, 1, 1]))
            return output

    student = Weighted(vit().config)
    with torch.no_grad():
        student.classifier.weight.mul_(50)
    args = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0)
    for rows in (Rows(), Views()):
        with pytest.raises(ValueError, match="the loss computed by Weighted on two rows is .* has another loss"):
            DistillationTrainer(student, None, args, train_dataset=rows)
        DistillationTrainer(vit(), None, args, train_dataset=rows)
    assert "cannot compute a loss itself" not in caplog.text


def test_a_model_that_cannot_compute_its_own_loss_is_trained_and_it_is_said(tmp_path, caplog):
    class Renamed(ViTForImageClassification):
        """transformers guesses the loss from the class's name, and takes this for a language model."""

    labels_only(tmp_path, Renamed(vit().config), Rows()).train()
    assert "Renamed cannot compute a loss itself" in caplog.text


class NoisyForImageClassification(ViTForImageClassification):
    """Draws, and counts in a buffer, in eval mode too."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, pixel_values, labels=None):
        self.count += 1
        return super().forward(pixel_values + 0.1 * torch.randn_like(pixel_values), labels=labels)


def test_looking_changes_nothing():
    """Modes, buffers, config and random state; a classifier's own loss would write into the config."""
    student = NoisyForImageClassification(vit().config)
    student.vit.eval()
    modes = [module.training for module in student.modules()]
    before, random = {k: v.clone() for k, v in student.state_dict().items()}, torch.get_rng_state()
    compare_own_loss(student, {"pixel_values": torch.zeros(2, 3, 8, 8)}, ImageClassification())
    assert torch.equal(torch.get_rng_state(), random)
    assert student.config.problem_type is None
    assert modes == [module.training for module in student.modules()]
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_a_head_that_only_sees_labelled_tokens_is_compared_too(tmp_path):
    """ModernBERT's with `sparse_prediction`, which with labels returns the logits of their tokens alone."""
    sizes = task_toys.sizes(8) | {"vocab_size": task_toys.VOCAB, "pad_token_id": task_toys.PAD}
    networks = [ModernBertForMaskedLM(ModernBertConfig(**sizes, sparse_prediction=sparse)) for sparse in (True, False)]
    rows, words = task_toys.masked(), task_toys.tokenizer()
    DistillationTrainer(*networks, arguments(tmp_path), train_dataset=rows, processing_class=words)
