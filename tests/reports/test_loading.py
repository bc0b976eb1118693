"""What a model card says to load a student with: it does load it."""

import peft
import pytest
import torch
import transformers
from toys import Net
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hfkd.models import image_classifier
from hfkd.reports.loading import loading_of

GPT2 = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=12)
BERT = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=12)
BART = BartConfig(
    d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=12, max_position_embeddings=8,
    pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
)  # fmt: skip
VIT = ViTConfig(
    num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2
)
WHISPER = WhisperConfig(
    d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=12,
    encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=4, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    decoder_start_token_id=3, max_source_positions=4, max_target_positions=4, suppress_tokens=None,
    begin_suppress_tokens=None,
)  # fmt: skip
WAVES = Wav2Vec2Config(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(8,), conv_stride=(2,),
    conv_kernel=(2,), num_feat_extract_layers=1, num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=2,
)  # fmt: skip
SEGFORMER = SegformerConfig(
    num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[3, 3], strides=[2, 2],
    num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, num_labels=3,
)  # fmt: skip
CASES = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2),
        "CausalLM",
        "Tokenizer",
    ),
    "bert": (lambda: BertForMaskedLM(BERT), "MaskedLM", "Tokenizer"),
    "bert rows": (lambda: BertForSequenceClassification(BERT), "SequenceClassification", "Tokenizer"),
    "bert tokens": (lambda: BertForTokenClassification(BERT), "TokenClassification", "Tokenizer"),
    "bart": (lambda: BartForConditionalGeneration(BART), "Seq2SeqLM", "Tokenizer"),
    "bart rows": (lambda: BartForSequenceClassification(BART), "SequenceClassification", "Tokenizer"),
    "whisper": (lambda: WhisperForConditionalGeneration(WHISPER), "SpeechSeq2Seq", "FeatureExtractor"),
    "wav2vec2": (lambda: Wav2Vec2ForSequenceClassification(WAVES), "AudioClassification", "FeatureExtractor"),
    "vit": (lambda: ViTForImageClassification(VIT), "ImageClassification", "ImageProcessor"),
    "segformer": (
        lambda: SegformerForSemanticSegmentation(SEGFORMER),
        "SemanticSegmentation",
        "ImageProcessor",
    ),
    "cifar": (lambda: image_classifier("cifar_resnet8", 10), "ImageClassification", "ImageProcessor"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_named_class_loads_the_very_network(name, tmp_path):
    make, model, inputs = CASES[name]
    network = make()
    loading = loading_of(network)
    assert (loading.model, loading.inputs) == (f"AutoModelFor{model}", f"Auto{inputs}")
    network.save_pretrained(tmp_path)
    loaded = getattr(transformers, loading.model).from_pretrained(tmp_path)
    assert type(loaded) is type(network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))
    assert hasattr(transformers, loading.inputs)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_loaded_by_peft():
    config = peft.LoraConfig(r=1, target_modules=["query"], task_type="SEQ_CLS")
    loading = loading_of(peft.get_peft_model(BertForSequenceClassification(BERT), config))
    assert loading.model == "AutoPeftModelForSequenceClassification"
    assert hasattr(peft, loading.model)


def test_a_subclass_is_loaded_as_its_parent_is_and_other_networks_by_themselves():
    class Mine(BertForMaskedLM):
        """A user's."""

    assert loading_of(Mine(BERT)).model == "AutoModelForMaskedLM"
    assert loading_of(Net()) is None
