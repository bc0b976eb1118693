"""A WordPiece tokenizer of one's own texts, for networks that start from fresh weights."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]"}
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
LETTERS = 0.25  # of the vocabulary, at most: at the start of a word, and as many within


def train_wordpiece(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """BERT's uncased tokenizer with up to `size` tokens, learnt from `texts`; the same texts give the same tokens.

    Raises ValueError for a size that has no room for letters beside the special tokens.
    """
    normalizer, special = normalizers.BertNormalizer(lowercase=True), list(SPECIAL.values())
    letters = _letters(texts, normalizer, int(LETTERS * size))
    if size < len(special) + 2 * len(letters) or not letters:
        raise ValueError(
            f"a vocabulary of {size} tokens is too small for {special} and the texts' letters: make it larger"
        )
    # The trainer numbers letters within words in an order that changes from call to call, and breaks ties by number.
    within = [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *within],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learnt = _tokenizer(models.WordPiece(unk_token="[UNK]"), normalizer)
    learnt.train_from_iterator(texts, trainer)
    tokenizer = _tokenizer(models.WordPiece(learnt.get_vocab(), unk_token="[UNK]"), normalizer)  # `within` not special
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=INPUTS, **SPECIAL)


def _letters(texts: Sequence[str], normalizer: Any, count: int) -> list[str]:
    """The most frequent characters, in their own order; those seldomer than `count` others are unknown."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(normalizer.normalize_str(text))
    ranked = sorted((-n, letter) for letter, n in found.items() if not letter.isspace())
    return sorted(letter for _, letter in ranked[:count])


def _tokenizer(model: Any, normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
