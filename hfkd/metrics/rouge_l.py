"""ROUGE-L and exact match of generated answers, as MiniLLM and DSKD report them.

`evaluate.load` copies this file alone, so it imports nothing of hfkd.
"""

import string
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf

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
    references: for each prediction a text, or a list of texts of which the best counts.
    per_example: also return `rougeL_per_example` and `exact_match_per_example`, in the order of the rows.
Returns:
    `rougeL` and `exact_match`, means over the rows, 0 to 100.
"""


class RougeL(evaluate.Metric):
    """ROUGE-L and exact match, offline: `RougeL().compute(predictions=[...], references=[...])`.

    Exact match compares in lower case, without ASCII punctuation and with single spaces; articles stay (SQuAD drops
    them). Both take the maximum over the references. Raises ValueError for no rows or a row without references.
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
        """Scores of these texts, or of those given to `add` and `add_batch` before."""
        # evaluate looks at the first row before `_compute` sees any
        if predictions is not None and len(predictions) == 0:
            raise ValueError("there are no predictions to score: give at least one row")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self, predictions: list[str], references: list[list[str]] | list[str], per_example: bool = False
    ) -> dict[str, float | list[float]]:
        lists = [[given] if isinstance(given, str) else given for given in references]
        empty = next((row for row, given in enumerate(lists) if not given), None)
        if empty is not None:
            raise ValueError(f"row {empty} has no reference to compare with: give at least one, or leave the row out")
        scores = {
            "rougeL": [100 * rouge_l(text, given) for text, given in zip(predictions, lists, strict=True)],
            "exact_match": [100.0 * exact_match(text, given) for text, given in zip(predictions, lists, strict=True)],
        }
        means: dict[str, float | list[float]] = {name: fmean(values) for name, values in scores.items()}
        return means | ({f"{name}_per_example": values for name, values in scores.items()} if per_example else {})


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The best ROUGE-L F-measure over the references, 0 to 1."""
    scorer = _scorer()
    return max(scorer.score(target=reference, prediction=prediction)["rougeL"].fmeasure for reference in references)


@cache
def _scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError("ROUGE-L needs rouge-score, which is not installed: pip install 'hfkd[text]'") from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction equals a reference but for case, ASCII punctuation and spacing; an empty one does not."""
    return bool(prediction.strip()) and _normalized(prediction) in {_normalized(reference) for reference in references}


def _normalized(text: str) -> str:
    """Of a text without words the text itself: punctuation is all that it says."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split()) or text.strip()
