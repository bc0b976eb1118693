"""Two small tokenizers of different kinds, trained here: byte-level as GPT-2's, and SentencePiece-like as Llama's."""

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Once upon a time there was a cat. The cat and the dog went to the park.",
    "one two three, and then the others came to see what they had found there",
    "日本語と中文, Tell: the story of a little girl who had a red ball.",
] * 4


@cache
def _byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=340, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer.to_str()


def byte_level(bos=False):
    """About 340 tokens; `bos`: a text begins with the end of sequence."""
    tokenizer = Tokenizer.from_str(_byte_level())
    if bos:
        end = tokenizer.token_to_id("<|end|>")
        tokenizer.post_processor = processors.TemplateProcessing("<|end|> $A", special_tokens=[("<|end|>", end)])
    named = {"bos_token": "<|end|>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", **named)


@cache
def _sentencepiece():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    seen = [text.replace("日本語と中文", "") for text in TEXT]  # what is left to the bytes
    tokenizer.train_from_iterator(
        seen, trainers.BpeTrainer(vocab_size=330, special_tokens=[*special, *fallback], show_progress=False)
    )
    return tokenizer.to_str()


def sentencepiece(first=None):
    """About 330 tokens, 256 of them bytes, a space before the first; `first`: what normalises a text before that."""
    state = json.loads(_sentencepiece())
    special = {"<unk>", "<s>", "</s>"}
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([*([first] if first else []), *steps])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
