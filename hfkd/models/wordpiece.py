"""Training of a WordPiece tokenizer, for networks with random weights."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]"}
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
LETTERS = 0.25  # largest share of the vocabulary for letters at the start of words, and for those within


def train_wordpiece(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """A tokenizer like BERT's uncased one with up to `size` tokens, trained on `texts` deterministically.

    Raises ValueError for a size that is too small for the special tokens and the letters.
    """
    normalizer, special = normalizers.BertNormalizer(lowercase=True), list(SPECIAL.values())
    letters = _letters(texts, normalizer, int(LETTERS * size))
    if size < len(special) + 2 * len(letters) or not letters:
        raise ValueError(
            f"a vocabulary of {size} tokens is too small for {special} and the letters of the texts: increase it"
        )
    # The trainer gives letters within words ids in an order that varies between calls, and breaks ties by id.
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
    # A tokenizer of the same vocabulary, without `within` as special tokens.
    tokenizer = _tokenizer(models.WordPiece(learnt.get_vocab(), unk_token="[UNK]"), normalizer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=INPUTS, **SPECIAL)


def _letters(texts: Sequence[str], normalizer: Any, count: int) -> list[str]:
    """The `count` most frequent characters, sorted; others become unknown tokens."""
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
