"""A tokenizer of a few words, for tests that need no real one."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("<unk>", "<end>", "<s>", "a", "b", "c", "d", "ask", "answer", "you", "me", "one", "two", "three")


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a word of `WORDS`, `<end>` the end of sequence, no pad token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", **special)
