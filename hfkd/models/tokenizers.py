"""Tokenizers as they are stored, in folders and on the Hub."""

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FILE = "tokenizer.json"
# Words, digits, blanks, marks, another script and an emoji: what tokenizers of different classes split differently.
PROBE = "The cats' tails, 12,345 of them:\n\n\tdef  naïve(x):  return x+10  # STRASSE 東京 🙂"


def stored_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id. Warns if transformers loads another one than its tokenizer.json is.

    transformers builds the tokenizers of some classes from the vocabulary alone, with rules of the class in place of
    those in the file; those of models of type qwen2 always.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
    _warn_of_another(tokenizer, name_or_path)
    return tokenizer


def _warn_of_another(tokenizer: PreTrainedTokenizerBase, name_or_path: str | Path) -> None:
    path = _file(name_or_path)
    if path is None or not tokenizer.is_fast:
        return
    stored = Tokenizer.from_file(str(path))
    stored.no_padding()
    stored.no_truncation()
    its = stored.encode(PROBE, add_special_tokens=False).ids
    ours = tokenizer.encode(PROBE, add_special_tokens=False, verbose=False)
    if its != ours:
        logger.warning(
            "transformers loads the tokenizer of %s as a %s: %d tokens of %r, which by its %s are %d others. "
            "If the model was trained with that file, load the tokenizer by "
            "transformers.PreTrainedTokenizerFast.from_pretrained(%r), and pass it as processing_class.",
            name_or_path,
            type(tokenizer).__name__,
            len(ours),
            PROBE,
            FILE,
            len(its),
            str(name_or_path),
        )


def _file(name_or_path: str | Path) -> Path | None:
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder / FILE if (folder / FILE).is_file() else None
    cached: Any = try_to_load_from_cache(str(name_or_path), FILE)
    return Path(cached) if isinstance(cached, str) else None
