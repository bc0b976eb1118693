from statistics import stdev

import pytest

from hfkd.evaluation import SETS, markdown_table, students_table
from hfkd.evaluation.tables import average


def scores_of(rouge, rows):
    per_seed = {seed: {"rougeL": rouge + seed / 10, "exact_match": 1.0} for seed in (10, 20)}
    values = [seed["rougeL"] for seed in per_seed.values()]
    return {
        "rougeL": sum(values) / 2,
        "rougeL_sd": stdev(values),
        "exact_match": 1.0,
        "exact_match_sd": 0.0,
        "rows": rows,
        "per_seed": per_seed,
    }


def test_table_has_the_papers_order_and_average():
    table = markdown_table({name: scores_of(20 + i, SETS[name].rows) for i, name in enumerate(reversed(SETS))})
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "Dolly", "SInst", "Vicuna", "S-NI", "UnNI", "Average",
    ]  # fmt: skip
    assert "| Dolly | 25.50 ± 0.71 | 1.00 ± 0.00 | 500 |  |" in table
    assert "| Average | 23.50 ± 0.71 | 1.00 ± 0.00 | 12,516 |  |" in table


def test_table_says_what_is_missing_or_cannot_be_compared():
    table = markdown_table({"dolly": scores_of(20, 500), "uinst": scores_of(2, 1050), "tales": scores_of(5, 3)})
    assert "| SInst | – | – | 0 | missing |" in table
    assert "| UnNI | 3.50 ± 0.71 | 1.00 ± 0.00 | 1,050 | not comparable with published figures, which have" in table
    assert "| Average | 21.50 ± 0.71 | 1.00 ± 0.00 | 500 | over 1 of 5 sets: not the published average |" in table
    assert table.endswith("| tales | 6.50 ± 0.71 | 1.00 ± 0.00 | 3 |  |\n")


def test_prompts_in_a_chat_template_are_not_the_published_ones():
    scores = {name: scores_of(20, SETS[name].rows) for name in SETS}
    plain = {name: one | {"settings": {"add_special_tokens": True}} for name, one in scores.items()}
    chat = {name: one | {"settings": {"add_special_tokens": False}} for name, one in scores.items()}
    assert "not comparable" not in markdown_table(plain)
    assert "500 | not comparable with published figures: prompts in a chat template |" in markdown_table(chat)
    assert " * |" in students_table({"chat": chat})
    assert " * |" not in students_table({"plain": plain})


def test_students_stand_side_by_side_each_with_its_average():
    table = students_table(
        {
            "runs/kd": {"dolly": scores_of(20, 500), "uinst": scores_of(2, 1050)},
            "runs/rkl": {"dolly": scores_of(30, 500)},
            "runs/none": {"tales": scores_of(30, 500)},
            "runs/all": {name: scores_of(20, SETS[name].rows) for name in SETS},
        }
    )
    lines = [line.replace(" ± 0.71", "") for line in table.splitlines()]
    assert lines == [
        "| Student | Dolly | SInst | Vicuna | S-NI | UnNI | Average |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| runs/kd | 21.50 | – | – | – | 3.50 * | 21.50 * |",
        "| runs/rkl | 31.50 | – | – | – | – | 31.50 * |",
        "| runs/none | – | – | – | – | – | – |",
        "| runs/all | 21.50 | 21.50 | 21.50 | 21.50 | 21.50 | 21.50 |",
        "",
        r"\* other rows or settings than the published figures, or an average over other sets than theirs",
    ]
    assert "±" in table


def test_students_that_have_answered_different_rows_are_said_not_to_be_comparable():
    one, other = (scores_of(20, 500) | {"references": name} for name in "ab")
    old = scores_of(20, 500)  # without a record of the rows
    table = students_table({"kd": {"dolly": one, "vicuna": one}, "rkl": {"dolly": other, "vicuna": one}})
    assert "\nDolly: not the same rows for all students" in table
    assert "Vicuna:" not in table
    assert "not the same rows" not in students_table(
        {"kd": {"dolly": one}, "rkl": {"dolly": one}, "old": {"dolly": old}}
    )


@pytest.mark.parametrize(
    "scores",
    [
        {"dolly": scores_of(20, 500), "uinst": scores_of(2, 1050)},
        {"dolly": scores_of(20, 8), "uinst": scores_of(2, 8)},
        {name: scores_of(i, SETS[name].rows) for i, name in enumerate(SETS)},
    ],
    ids=["some comparable", "none comparable", "all comparable"],
)
def test_both_tables_have_one_average_and_the_same_doubt(scores):
    one = next(line for line in markdown_table(scores).splitlines() if line.startswith("| Average |"))
    side = students_table({"a": scores}).splitlines()[2]
    value = one.split("|")[2].strip()
    starred = side.split("|")[-2].strip()
    assert starred.removesuffix(" *") == value
    assert starred.endswith("*") == bool(one.split("|")[5].strip())


def test_rows_of_the_published_number_with_other_settings_are_not_comparable():
    other = scores_of(20, 500) | {"settings": {"max_new_tokens": 16, "no_repeat_ngram_size": 6}}
    table = markdown_table({"dolly": other, "vicuna": scores_of(5, 80)})
    assert "| 500 | not comparable with published figures: max_new_tokens=16 for 256 |" in table
    assert "| Average | 6.50 ± 0.71 " in table
    assert " * |" in students_table({"a": {"dolly": other}}).splitlines()[2]


def test_sets_that_share_no_seed_have_an_average_and_no_deviation():
    one = scores_of(20, 500)
    other = scores_of(10, 80) | {"per_seed": {30: {"rougeL": 10.0, "exact_match": 0.0}}, "rougeL": 10.0}
    mean = average({"dolly": one, "vicuna": other})
    assert mean["rougeL"] == pytest.approx((one["rougeL"] + 10) / 2)
    assert mean["rougeL_sd"] is None


def test_a_bar_in_a_name_begins_no_cell():
    scores = {"dolly": scores_of(20, 500), "a|b": scores_of(5, 3)}
    assert "| a\\|b | 6.50 ± 0.71 |" in markdown_table(scores)
    assert "| students/a\\|b | 21.50 ± 0.71 * |" in students_table({"students/a|b": {"dolly": scores_of(20, 9)}})
