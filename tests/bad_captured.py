"""Log-probabilities of others that are not those of the rows: entries for tests/bad_input.py."""

import math

from datasets import Dataset
from text_toys import VOCAB, language_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.teachers import CachedTextTeacher, build_captured_cache

ROWS = token_dataset(4)
IDS, VALUES = [2, 3], [math.log(0.5), math.log(0.25)]


def entries(row, ids=IDS, values=VALUES):
    count = len(row["input_ids"]) - 1
    return {"input_ids": row["input_ids"], "target_logprobs": [values] * count, "target_token_ids": [ids] * count}


def captured(change=lambda made: made, **settings):
    """What `change` makes of the captured rows, stored."""

    def make(folder):
        made = change([entries(row) for row in ROWS])
        given = {"num_classes": VOCAB, "progress_bar": False} | settings
        return lambda: build_captured_cache(Dataset.from_list(made), ROWS, folder / "cache", **given)

    return make


def replaced(**values):
    """The first row with other numbers."""
    return captured(lambda made: [entries(ROWS[0], **values), *made[1:]])


def trained(**slots):
    def make(folder):
        captured()(folder)()
        args = arguments(folder / "run", **{"temperature": 1.0} | slots)
        teacher = CachedTextTeacher(folder / "cache")
        return lambda: DistillationTrainer(
            language_model(), teacher, args, train_dataset=ROWS, processing_class=tokenizer()
        )

    return make


CAPTURED = {
    "captured: a row less": captured(lambda made: made[:-1]),
    "captured: rows in another order": captured(lambda made: [made[1], made[0], *made[2:]]),
    "captured: another tokenizer": captured(
        lambda made: [{**made[0], "input_ids": [5 + t % 3 for t in made[0]["input_ids"]]}, *made[1:]]
    ),
    "captured: rows cut otherwise": captured(
        lambda made: [{name: values[:-1] for name, values in made[0].items()}, *made[1:]]
    ),
    "captured: a response's entries alone": captured(
        lambda made: [made[0] | {n: made[0][n][-2:] for n in ("target_logprobs", "target_token_ids")}, *made[1:]]
    ),
    "captured: a token outside of the vocabulary": replaced(ids=[2, VOCAB]),
    "captured: a token twice": replaced(ids=[2, 2]),
    "captured: fewer than k": captured(k=5),
    "captured: logits": replaced(values=[7.5, 3.25]),
    "captured: a log-probability that is null": replaced(values=[math.log(0.5), None]),
    "captured: a NaN log-probability": replaced(values=[math.log(0.5), math.nan]),
    "captured: words for token ids": captured(
        lambda made: [
            {"input_ids": row["input_ids"], "logprobs": [[{"token": "you", "logprob": -1.0}]]} for row in made
        ]
    ),
    "captured: alignment='last'": captured(alignment="last"),
    "captured: no tokens": captured(lambda made: [{"logprobs": [[-1.0]]} for _ in made]),
    "captured: ids that do not fit": replaced(ids=[2]),
    "captured: probabilities that sum to more than 1": replaced(values=[-0.1, -0.2]),
    "captured: columns of other names": captured(
        lambda made: [{"input_ids": row["input_ids"], "scores": row["target_logprobs"]} for row in made]
    ),
    "captured: DistillKit's compressed format": captured(
        lambda made: [{"input_ids": row["input_ids"], "compressed_logprobs": [[1]]} for row in made]
    ),
    'captured: weighting="entropy"': trained(weighting="entropy"),
    "captured: temperature=2.0": trained(temperature=2.0),
    'captured: temperature="energy"': trained(temperature="energy(temperature=1, increase=0, decrease=0)"),
}
