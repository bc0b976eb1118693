import evaluate
import pytest
from rouge_score import rouge_scorer

import hfkd.evaluation.metrics.rouge_l
from hfkd.evaluation.metrics import RougeL
from hfkd.evaluation.metrics.rouge_l import rouge_l

TEXTS = ["The cats were sitting on a mat.", "", "Paris, of course", "running dogs"]
REFERENCES = [
    ["A cat sat on the mat", "The cat was sitting on a mat."],
    ["Something"],
    ["paris  of course!"],
    ["dog runs", "x"],
]


@pytest.fixture(params=["class", "file"])
def metric(request):
    return RougeL() if request.param == "class" else evaluate.load(hfkd.evaluation.metrics.rouge_l.__file__)


def test_equals_rouge_score_with_the_best_reference(metric):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    naive = [
        max(100 * scorer.score(target=reference, prediction=text)["rougeL"].fmeasure for reference in references)
        for text, references in zip(TEXTS, REFERENCES, strict=True)
    ]
    scores = metric.compute(predictions=TEXTS, references=REFERENCES, per_example=True)
    assert scores["rougeL_per_example"] == pytest.approx(naive)
    assert scores["rougeL"] == pytest.approx(sum(naive) / 4)
    assert naive[1] == 0
    assert naive[2] == 100


def test_exact_match_ignores_case_punctuation_and_spacing_but_not_articles(metric):
    scores = metric.compute(predictions=TEXTS, references=REFERENCES, per_example=True)
    assert scores["exact_match_per_example"] == [0, 0, 100, 0]
    assert scores["exact_match"] == 25
    assert metric.compute(predictions=["the cat"], references=["cat"])["exact_match"] == 0


@pytest.mark.parametrize(
    ("answer", "reference", "matches"),
    [("", "...", 0), (" ", "?!", 0), ("", "", 0), ("!", "...", 0), ("...", " ...", 100), ("?", "yes", 0)],
)
def test_an_empty_answer_matches_nothing_and_punctuation_only_itself(metric, answer, reference, matches):
    assert metric.compute(predictions=[answer], references=[reference])["exact_match"] == matches
    assert metric.compute(predictions=[answer], references=[["other words", reference]])["exact_match"] == matches


def test_a_reference_may_be_one_text(metric):
    both = [metric.compute(predictions=["a b c"], references=given) for given in (["a c"], [["a c"]])]
    assert both[0] == both[1] == {"rougeL": pytest.approx(80), "exact_match": 0}


def test_rows_may_come_in_batches(metric):
    for text, references in zip(TEXTS, REFERENCES, strict=True):
        metric.add_batch(predictions=[text], references=[references])
    assert metric.compute() == RougeL().compute(predictions=TEXTS, references=REFERENCES)


def test_nothing_to_score_is_refused(metric):
    with pytest.raises(ValueError, match="no predictions to score"):
        metric.compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="row 1 has no reference"):
        metric.compute(predictions=["a", "b"], references=[["a"], []])


SCRIPTS = {
    "Chinese": "今天天气很好",
    "Arabic": "اختر العمر المستقبلي",
    "Russian": "тест привет мир",
    "Hindi": "मलेसियन एयरलाइन्सको विमानमा",
    "Thai": "ภาษาไทยดี",
    "Japanese": "日本語のテキスト",
    "Korean": "안녕 하세요",
    "an operator": "+",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=list(SCRIPTS))
def test_a_text_of_any_script_is_itself_and_the_published_tokenizer_says_what_it_cannot_read(text, caplog):
    given = {"predictions": [text, text], "references": [[text], ["in English"]]}
    assert RougeL(keep_in_memory=True).compute(**given, tokenizer="unicode")["rougeL"] == 50
    assert not caplog.records
    assert RougeL(keep_in_memory=True).compute(**given)["rougeL"] == 0
    assert "in the references of 1 of 2 rows rouge_score's tokenizer, which only supports a-z and 0-9" in caplog.text


def test_half_of_a_text_is_half_a_match():
    assert rouge_l("今天很好", ["今天天气很好"], "unicode") == pytest.approx(2 * 4 / (4 + 6))
    assert rouge_l("привет большой мир", ["привет мир"], "unicode") == pytest.approx(2 * 2 / (3 + 2))
    assert rouge_l("fr Gre", ["für Größe"], "unicode") == 0


def test_english_has_the_published_scores_with_either_tokenizer(caplog):
    texts = ["The cats' running: 3.5 x_y (really!)", "a café isn't far", "police killed the gunman"]
    references = ["cats run 3 5 x y", "the café is not far", "the police kills gunmen"]
    scores = [
        RougeL(keep_in_memory=True).compute(predictions=texts[::2], references=references[::2], tokenizer=name)
        for name in ("rouge_score", "unicode")
    ]
    assert scores[0] == scores[1]
    RougeL(keep_in_memory=True).compute(predictions=texts, references=references)
    assert not caplog.records
    with pytest.raises(ValueError, match="unknown tokenizer 'bpe' of ROUGE-L"):
        RougeL(keep_in_memory=True).compute(predictions=texts, references=references, tokenizer="bpe")
