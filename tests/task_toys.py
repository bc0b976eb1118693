"""A tiny pair of networks and a few rows for every task: real models of transformers, from their configurations.

Without dropout, so that splitting a batch changes nothing but rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from text_tokenizer import WORDS, word_tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    CLIPVisionConfig,
    ConvNextConfig,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hfkd.utils.targets import IGNORED

VOCAB, CLASSES, ROWS = len(WORDS), 3, 8
PAD = 1  # "<end>", which no row has
IMAGE = MASK = 2  # "<s>", which stands for a picture's patches, or for a token that is masked
LONG = 15  # of the longest row


def tokenizer():
    return word_tokenizer(pad_token="<end>", mask_token="<s>")


def sizes(width: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}


def encoder(width: int, **more: Any) -> dict[str, Any]:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return sizes(width) | dropout | {"num_labels": CLASSES} | more


def bert(kind: Any, **more: Any) -> Callable[[int], Any]:
    return lambda width: kind(
        BertConfig(**encoder(width), vocab_size=VOCAB, pad_token_id=PAD, max_position_embeddings=32, **more)
    )


def roberta(width: int) -> Any:
    config = RobertaConfig(**encoder(width), vocab_size=VOCAB, pad_token_id=PAD, max_position_embeddings=LONG + 2)
    return RobertaForMaskedLM(config)


def distilbert(width: int) -> Any:
    dims = {"dim": width, "hidden_dim": width, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.3}
    return DistilBertForMaskedLM(DistilBertConfig(**dims, **rates, vocab_size=VOCAB, pad_token_id=PAD))


def t5(width: int) -> Any:
    dims = {"d_model": width, "d_kv": 4, "d_ff": width, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(
        T5Config(**dims, vocab_size=VOCAB, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=3)
    )


def _two_sided(width: int) -> dict[str, Any]:
    sides = {f"{side}_{name}": 1 if name == "layers" else 2 for side in ("encoder", "decoder") for name in SIDE}
    dims = {"d_model": width, "encoder_ffn_dim": width, "decoder_ffn_dim": width, "vocab_size": VOCAB}
    tokens = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    return sides | dims | tokens | {"dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.3}


SIDE = ("layers", "attention_heads")


def bart(width: int) -> Any:
    return BartForConditionalGeneration(BartConfig(**_two_sided(width), max_position_embeddings=32))


def whisper(width: int, mels: int = 6) -> Any:
    sound = {"num_mel_bins": mels, "max_source_positions": 8, "max_target_positions": 20}
    return WhisperForConditionalGeneration(WhisperConfig(**_two_sided(width), **sound))


def vit(width: int, **more: Any) -> Any:
    return ViTForImageClassification(ViTConfig(**encoder(width), image_size=8, patch_size=4, **more))


def several_labels(width: int) -> Any:
    return vit(width, problem_type="multi_label_classification")


def gpt2(width: int) -> Any:
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}
    config = GPT2Config(
        n_embd=width, n_layer=1, n_head=2, n_positions=32, vocab_size=VOCAB, bos_token_id=2, eos_token_id=3, **rates
    )
    return GPT2LMHeadModel(config)


def decoder(width: int, **more: Any) -> dict[str, Any]:
    tokens = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
    dims = {"num_key_value_heads": 1, "head_dim": 4, "vocab_size": VOCAB, "max_position_embeddings": 32}
    return sizes(width) | dims | tokens | {"initializer_range": 0.3} | more


def gemma2(width: int) -> Any:
    caps = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0, "sliding_window": 32}
    return Gemma2ForCausalLM(Gemma2Config(**decoder(width), **caps, attn_implementation="eager"))


def mixtral(width: int) -> Any:
    experts = {"num_local_experts": 3, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    experts |= {"experts_implementation": "eager"}  # the grouped product knows no float64
    return MixtralForCausalLM(MixtralConfig(**decoder(width), **experts))


def llava(width: int) -> Any:
    vision = CLIPVisionConfig(**sizes(8), image_size=8, patch_size=4, initializer_factor=3.0)
    text = LlamaConfig(**decoder(width))
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE, image_token_id=IMAGE, pad_token_id=PAD
        )
    )


def gemma3(kind: Any = Gemma3ForConditionalGeneration, **more: Any) -> Callable[[int], Any]:
    """Takes images, and is given texts alone more often than not."""
    seen = sizes(8) | {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    tokens = {"mm_tokens_per_image": 4, "boi_token_index": 0, "eoi_token_index": PAD, "image_token_index": IMAGE}

    def build(width: int) -> Any:
        read = decoder(width) | {"head_dim": 8, "num_key_value_heads": 1}
        return kind(Gemma3Config(text_config=read, vision_config=seen, **tokens, **more))

    return build


def ast(width: int) -> Any:
    sound = {"max_length": 16, "num_mel_bins": 8, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    return ASTForAudioClassification(ASTConfig(**encoder(width), **sound))


def wav2vec2(width: int, **more: Any) -> Any:
    layers = {"conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0}
    rates |= {"activation_dropout": 0.0}
    rest = {"layerdrop": 0.0, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    masks = {"apply_spec_augment": False, "initializer_range": 0.3, "num_labels": CLASSES}
    config = Wav2Vec2Config(**sizes(width), **layers, **rates, **rest, **masks, classifier_proj_size=width, **more)
    return Wav2Vec2ForSequenceClassification(config)


def without_batch_norm(network: Any) -> Any:
    """So that splitting a batch changes nothing but rounding."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.Identity())
    return network


def segformer(width: int) -> Any:
    """Maps at a quarter of the image."""
    dims = {
        "hidden_sizes": [width] * 4,
        "num_attention_heads": [1] * 4,
        "depths": [1] * 4,
        "decoder_hidden_size": width,
    }
    rates = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0, "initializer_range": 0.3}
    config = SegformerConfig(**dims, **rates, mlp_ratios=[1] * 4, sr_ratios=[2, 1, 1, 1], num_labels=CLASSES)
    return without_batch_norm(SegformerForSemanticSegmentation(config))


def upernet(width: int) -> Any:
    """Maps of the image's size, and an auxiliary head."""
    stages = {"out_features": [f"stage{k}" for k in (1, 2, 3)], "num_stages": 3, "patch_size": 1}
    backbone = ConvNextConfig(hidden_sizes=[width] * 3, depths=[1] * 3, **stages)
    heads = {"hidden_size": width, "auxiliary_channels": width, "auxiliary_in_channels": width, "pool_scales": [1, 2]}
    config = UperNetConfig(backbone_config=backbone, **heads, initializer_range=0.5, num_labels=CLASSES)
    return without_batch_norm(UperNetForSemanticSegmentation(config))


class Pixels(torch.nn.Module):
    """A network of one's own that says nothing of its head: maps at half of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu()) * 4


# ---- rows -------------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _texts(count: int, seed: int, low: int = 5) -> list[list[int]]:
    g = generator(seed)
    lengths = torch.randint(low, LONG, (count,), generator=g).tolist()
    lengths[0] = LONG
    return [torch.randint(3, VOCAB, (n,), generator=g).tolist() for n in lengths]


def texts(label: Callable[[list[int], int, torch.Generator], Any]) -> Callable[..., list[dict[str, Any]]]:
    """Rows of unequal length, whose `labels` are what `label` makes of their ids and number."""

    def rows(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
        g = generator(seed + 100)
        return [{"input_ids": ids, "labels": label(ids, i, g)} for i, ids in enumerate(_texts(count, seed))]

    return rows


def masked(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    """One token in three is the mask token, and its label what stood there."""
    rows = []
    for number, ids in enumerate(_texts(count, seed)):
        hidden = [(i + number) % 3 == 0 for i in range(len(ids))]
        seen = [MASK if hide else token for token, hide in zip(ids, hidden, strict=True)]
        labels = [token if hide else IGNORED for token, hide in zip(ids, hidden, strict=True)]
        rows.append({"input_ids": seen, "labels": labels})
    return rows


def one_class(ids: list[int], number: int, g: torch.Generator) -> int:
    return number % CLASSES


def each_class(ids: list[int], number: int, g: torch.Generator) -> list[float]:
    return torch.randint(0, 2, (CLASSES,), generator=g).float().tolist()


def tags(ids: list[int], number: int, g: torch.Generator) -> list[int]:
    """The first token and some others have none."""
    found = torch.randint(-1, CLASSES, (len(ids),), generator=g)
    found[0], found[1] = -1, 0
    return [IGNORED if tag < 0 else tag for tag in found.tolist()]


def answers(ids: list[int], number: int, g: torch.Generator) -> list[int]:
    return [IGNORED] * 2 + ids[2:]


def targets(ids: list[int], number: int, g: torch.Generator) -> list[int]:
    return torch.randint(3, VOCAB, (2 + number % 4,), generator=g).tolist()


def images(count: int = ROWS, seed: int = 0, label: Any = one_class) -> list[dict[str, Any]]:
    g = generator(seed)
    return [
        {"pixel_values": torch.randn(3, 8, 8, generator=g), "labels": torch.tensor(label([], i, g))}
        for i in range(count)
    ]


def tagged_images(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    return images(count, seed, each_class)


def masks(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    """Images with a class for most pixels; the mask of the second is all ignored, that of the third of one class."""
    g = generator(seed)
    rows = []
    for number in range(count):
        labels = torch.randint(-1, CLASSES, (6, 9), generator=g)
        labels[labels < 0] = 255 if number % 2 else IGNORED
        labels = torch.full_like(labels, 255) if number == 1 else labels * 0 + 1 if number == 2 else labels
        rows.append({"pixel_values": torch.randn(3, 6, 9, generator=g), "labels": labels})
    return rows


def pictures(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    """A picture of four patches, and what is said of it."""
    seen = images(count, seed)
    return [
        {"input_ids": [IMAGE] * 4 + ids, "labels": [IGNORED] * 5 + ids[1:], "pixel_values": one["pixel_values"]}
        for one, ids in zip(seen, _texts(count, seed), strict=True)
    ]


def spoken(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    g = generator(seed)
    return [{"input_features": torch.randn(6, 16, generator=g), "labels": targets([], i, g)} for i in range(count)]


def waves(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    g = generator(seed)
    return [{"input_values": torch.randn(80, generator=g), "labels": i % CLASSES} for i in range(count)]


def spectra(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    g = generator(seed)
    return [{"input_values": torch.randn(16, 8, generator=g), "labels": i % CLASSES} for i in range(count)]


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator of a user's own: tokens padded at their end, all else stacked."""
    fill = {"input_ids": PAD, "labels": IGNORED}
    values = {name: [torch.as_tensor(row[name]) for row in rows] for name in rows[0]}
    batch = {
        k: pad_sequence(v, True, fill[k]) if k in fill and v[0].ndim else torch.stack(v) for k, v in values.items()
    }
    if "input_ids" in batch:
        batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    return batch


@dataclass(frozen=True)
class Kind:
    """A kind of model. `router`: its loss has a term that couples the rows. `tokenizer`: None where it has no text.

    `auxiliary`: it has a second head, whose loss joins its own.
    """

    task: str
    build: Callable[[int], Any]
    rows: Callable[..., list[dict[str, Any]]]
    tokenizer: Any = tokenizer
    collate: Any = None
    router: bool = False
    auxiliary: bool = False

    def network(self, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(seed)
        return self.build(width).to(dtype)

    def pair(self) -> tuple[Any, Any]:
        """A student, and a wider teacher of other weights."""
        return self.network(8, 0), self.network(16, 1)

    def keywords(self, count: int = ROWS, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """The rows and what makes batches of them, as `DistillationTrainer` takes it; inputs in `dtype`."""
        rows = [
            {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in row.items()}
            for row in self.rows(count)
        ]
        made = {"processing_class": self.tokenizer and self.tokenizer(), "data_collator": self.collate}
        return {"train_dataset": rows, "eval_dataset": rows} | {k: v for k, v in made.items() if v is not None}


LABELLED, SEQUENCES = texts(one_class), texts(targets)
KINDS = {
    "BERT, masked": Kind("masked_lm", bert(BertForMaskedLM), masked),
    "DistilBERT, masked": Kind("masked_lm", distilbert, masked),
    "RoBERTa, masked": Kind("masked_lm", roberta, masked),
    "BERT, a label a row": Kind("sequence_classification", bert(BertForSequenceClassification), LABELLED),
    "BERT, a label a token": Kind("token_classification", bert(BertForTokenClassification), texts(tags)),
    "BERT, several labels": Kind(
        "multi_label_classification",
        bert(BertForSequenceClassification, problem_type="multi_label_classification"),
        texts(each_class),
    ),
    "AST": Kind("sequence_classification", ast, spectra, None),
    "Wav2Vec2": Kind("sequence_classification", wav2vec2, waves, None),
    "ViT": Kind("image_classification", vit, images, None),
    "SegFormer": Kind("semantic_segmentation", segformer, masks, None, padded),
    "UPerNet, auxiliary head": Kind("semantic_segmentation", upernet, masks, None, padded, auxiliary=True),
    "ViT, several labels": Kind("multi_label_classification", several_labels, tagged_images, None),
    "T5": Kind("seq2seq_lm", t5, SEQUENCES),
    "BART": Kind("seq2seq_lm", bart, SEQUENCES),
    "Whisper": Kind("seq2seq_lm", whisper, spoken, None, padded),
    "GPT-2": Kind("causal_lm", gpt2, texts(answers)),
    "Llama": Kind("causal_lm", lambda width: LlamaForCausalLM(LlamaConfig(**decoder(width))), texts(answers)),
    "Qwen2": Kind("causal_lm", lambda width: Qwen2ForCausalLM(Qwen2Config(**decoder(width))), texts(answers)),
    "Qwen3": Kind("causal_lm", lambda width: Qwen3ForCausalLM(Qwen3Config(**decoder(width))), texts(answers)),
    "Gemma 2, soft-capped": Kind("causal_lm", gemma2, texts(answers)),
    "Gemma 3, texts alone": Kind("causal_lm", gemma3(), texts(answers)),
    "Gemma 3, a label a row": Kind(
        "sequence_classification",
        gemma3(Gemma3ForSequenceClassification, num_labels=CLASSES, pad_token_id=PAD),
        LABELLED,
    ),
    "Mixtral, router loss": Kind("causal_lm", mixtral, texts(answers), router=True),
    "LLaVA": Kind("causal_lm", llava, pictures, None, padded),
}
