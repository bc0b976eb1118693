"""The UTF-8 bytes of each token of a vocabulary, by which two tokenizers are compared."""

import json
import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BLANK = "▁"  # SentencePiece's space
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes of each token id; None for ids without text: the unknown token, and gaps.

    Supports byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece (Llama 2, Mistral, Gemma), whose
    concatenated tokens are the text. The bytes of special tokens are those of their names. Raises ValueError for other
    kinds.
    """
    pieces = _pieces_of(tokenizer)
    found: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    for token, number in tokenizer.get_vocab().items():
        found[number] = added[number].encode() if number in added else pieces(token)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        found[tokenizer.unk_token_id] = None
    return found


def equal_entries(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, sizes: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Ids of the student and ids of the teacher with the same bytes, each once; and the end-of-sequence ids.

    sizes: the number of logits of each network. Other special tokens are not paired. Of several tokens with the same
    bytes (a letter and its byte token) the one that the tokenizer uses is taken, which is not the byte token.
    """
    mine, its = (_by_bytes(one, size) for one, size in zip((student, teacher), sizes, strict=True))
    pairs = [(number, its[text]) for text, number in mine.items() if text in its]
    ends = student.eos_token_id, teacher.eos_token_id
    if ends[0] is not None and ends[1] is not None and ends[0] < sizes[0] and ends[1] < sizes[1]:
        pairs.append(ends)
    pairs.sort()
    return [a for a, _ in pairs], [b for _, b in pairs]


def _by_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[bytes, int]:
    special, names = set(tokenizer.all_special_ids), {n: t for t, n in tokenizer.get_vocab().items()}
    found: dict[bytes, int] = {}
    for number, text in enumerate(token_bytes(tokenizer)[:size]):
        if text and number not in special and (text not in found or BYTE.fullmatch(names[found[text]])):
            found[text] = number
    return found


def _pieces_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes | None]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = None if backend is None else json.loads(backend.to_str())["decoder"]
    parts = [] if decoder is None else decoder.get("decoders", [decoder])  # of a sequence
    kinds = [part["type"] for part in parts]
    if "ByteLevel" in kinds:
        return _of_letters
    if "Metaspace" in kinds or any(part.get("pattern") == {"String": BLANK} for part in parts):
        return _of_sentencepiece
    raise ValueError(
        f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has a decoder of the type "
        f"{kinds or 'none'}, so that its tokens cannot be mapped to bytes of the text and aligned with another "
        "tokenizer: use a byte-level or SentencePiece tokenizer"
    )


def _of_sentencepiece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(BLANK, " ").encode()


LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of GPT-2's vocabulary


def _of_letters(token: str) -> bytes | None:
    return bytes(LETTERS[letter] for letter in token) if all(letter in LETTERS for letter in token) else None
