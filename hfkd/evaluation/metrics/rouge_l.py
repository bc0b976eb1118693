"""ROUGE-L and exact match of generated answers, as MiniLLM and DSKD report them, and in scripts other than Latin.

`evaluate.load` copies this file alone, so it imports nothing of hfkd.
"""

import logging
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf

logger = logging.getLogger(__name__)

TOKENIZERS = ("rouge_score", "unicode")
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Han with its extensions, kana.
ONE_BY_ONE = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)

DESCRIPTION = "ROUGE-L (F-measure, Porter stemmer) and exact match, each the best over a row's references, times 100."
CITATION = """@inproceedings{lin2004rouge,
  title={ROUGE: A Package for Automatic Evaluation of Summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}"""
INPUTS = """
Args:
    predictions: texts. An empty one scores 0.
    references: for each prediction a text, or a list of texts, of which the best match counts.
    per_example: also return `rougeL_per_example` and `exact_match_per_example`, in the order of the rows.
    tokenizer: "rouge_score", the published one, which only supports a-z and 0-9; or "unicode", for all scripts.
Returns:
    `rougeL` and `exact_match`, means over the rows, 0 to 100.
"""


class RougeL(evaluate.Metric):
    """ROUGE-L and exact match, offline: `RougeL().compute(predictions=[...], references=[...])`.

    Exact match compares in lower case, without ASCII punctuation and with single spaces; articles are kept (unlike in
    SQuAD). Both take the maximum over the references. Raises ValueError for no rows or a row without references.

    rouge_score's own tokenizer keeps a-z and 0-9: a Chinese, Arabic, Russian or Hindi text has no tokens and scores 0
    even against itself, which is logged as a warning. `tokenizer="unicode"` gives the same scores on ASCII texts.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                Features({"predictions": text, "references": ListOf(text)}),
                Features({"predictions": text, "references": text}),
            ],
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Scores of these texts, or of those passed to `add` and `add_batch` before."""
        # evaluate reads the first row before it calls `_compute`
        if predictions is not None and len(predictions) == 0:
            raise ValueError("there are no predictions to score: pass at least one row")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]] | list[str],
        per_example: bool = False,
        tokenizer: str = "rouge_score",
    ) -> dict[str, float | list[float]]:
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"unknown tokenizer {tokenizer!r} of ROUGE-L: pass one of {list(TOKENIZERS)}")
        lists = [[given] if isinstance(given, str) else given for given in references]
        empty = next((row for row, given in enumerate(lists) if not given), None)
        if empty is not None:
            raise ValueError(f"row {empty} has no reference to compare with: add at least one, or remove the row")
        _warn_of_unread(lists, tokenizer)
        scores = {
            "rougeL": [100 * rouge_l(text, given, tokenizer) for text, given in zip(predictions, lists, strict=True)],
            "exact_match": [100.0 * exact_match(text, given) for text, given in zip(predictions, lists, strict=True)],
        }
        means: dict[str, float | list[float]] = {name: fmean(values) for name, values in scores.items()}
        return means | ({f"{name}_per_example": values for name, values in scores.items()} if per_example else {})


def rouge_l(prediction: str, references: Sequence[str], tokenizer: str = "rouge_score") -> float:
    """The best ROUGE-L F-measure over the references, 0 to 1."""
    scorer = _scorer(tokenizer)
    return max(scorer.score(target=reference, prediction=prediction)["rougeL"].fmeasure for reference in references)


class UnicodeTokenizer:
    """Splits text of any script into lower-case words of letters, marks and digits; characters in scripts without
    spaces. Words of a-z are stemmed as in rouge_score.

    A text without words (operators, emoji) is split into characters.
    """

    def __init__(self) -> None:
        from nltk.stem import porter  # a dependency of rouge_score

        self._stem = cache(porter.PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", text).lower()
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in JOINERS else " " for c in text)
        words = WORDS.findall(kept)
        if not words:
            return [c for c in text if not c.isspace()]
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in words]


JOINERS = "\u200c\u200d"  # used within words of Persian and Indian scripts
WORDS = re.compile(f"[{ONE_BY_ONE}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*|[^\\s{ONE_BY_ONE}]+")


@cache
def _scorer(tokenizer: str) -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError("ROUGE-L needs rouge-score, which is not installed: pip install 'hfkd[text]'") from error
    own = UnicodeTokenizer() if tokenizer == "unicode" else None
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=own)


def _warn_of_unread(references: Sequence[Sequence[str]], tokenizer: str) -> None:
    """Warn of references in which the tokenizer ignores at least half of the letters and digits, or finds no token."""
    if tokenizer != "rouge_score":
        return
    unread = sum(any(map(_unread, given)) for given in references)
    if unread:
        logger.warning(
            "ROUGE-L: in the references of %d of %d rows rouge_score's tokenizer, which only supports a-z and "
            "0-9, ignores at least half of the characters, so that they score about 0 even against themselves. "
            "Use tokenizer='unicode' (--rouge_tokenizer unicode) for other scripts.",
            unread,
            len(references),
        )


def _unread(text: str) -> bool:
    known = sum(c.isascii() and c.isalnum() for c in text.lower())
    others = sum(c.isalnum() and not c.isascii() for c in text)
    return bool(text.strip()) and known <= others


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction equals a reference up to case, ASCII punctuation and spacing; False for an empty one."""
    return bool(prediction.strip()) and _normalized(prediction) in {_normalized(reference) for reference in references}


def _normalized(text: str) -> str:
    """The text for comparison; a text with punctuation only is kept as it is."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split()) or text.strip()
