"""Each answer of a chat as a row: against the whole chat, and what cannot be made of it."""

import json

import pytest
from datasets import Dataset
from text_tokenizer import word_tokenizer

from hfkd.data.instructions import to_prompt_response
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_arguments import TextDataArguments
from hfkd.utils.targets import IGNORED

TEMPLATE = (
    "{% for m in messages %}{{ 'you ' if m.role == 'user' else 'me ' }}{{ m.content }}"
    "{{ ' <end> ' if m.role == 'assistant' else ' ' }}{% endfor %}{{ 'me ' if add_generation_prompt }}"
)
SAID = [
    ("user", "ask a"),
    ("assistant", "b c"),
    ("user", "ask d"),
    ("assistant", "one"),
    ("user", "ask"),
    ("assistant", "two"),
]
CHAT = [{"role": role, "content": content} for role, content in SAID]
ROWS = [{"messages": CHAT, "id": 7}, {"messages": CHAT[:2], "id": 8}]


def tokenizer():
    made = word_tokenizer()
    made.chat_template = TEMPLATE
    return made


def tokens(rows, **keywords):
    return tokenize_dataset(Dataset.from_list(rows), tokenizer(), chat_template=True, **keywords)


def test_the_answers_are_those_of_the_whole_chat_each_after_all_before_it(caplog):
    """A template that only appends text: the labels of all rows together are the assistant's tokens of the chat."""
    made, words = tokens(ROWS, answers="each"), tokenizer()
    whole = words(words.apply_chat_template(CHAT, tokenize=False))["input_ids"]
    assert len(made) == 4
    labelled = set()
    for row in made.select(range(3)):
        assert whole[: row["length"]] == row["input_ids"]
        labelled |= {place for place, label in enumerate(row["labels"]) if label != IGNORED}
    mine = words("me")["input_ids"][0]
    begins = [place for place, token in enumerate(whole) if token == mine]
    ends = [place for place, token in enumerate(whole) if token == words.eos_token_id]
    assert labelled == {p for begin, end in zip(begins, ends, strict=True) for p in range(begin + 1, end + 1)}
    assert made["index"][:] == [0, 1, 2, 3]
    assert "several answers" not in caplog.text
    last = tokens(ROWS)
    assert [last[0]["input_ids"], last[1]["input_ids"]] == [made[2]["input_ids"], made[3]["input_ids"]]
    assert "answers='each'" in caplog.text


def test_answers_of_a_completion_are_those_after_the_prompt():
    rows = Dataset.from_list(
        [{"prompt": CHAT[:3], "completion": CHAT[3:]}, {"prompt": CHAT[:1], "completion": CHAT[1:2]}]
    )
    found = to_prompt_response(rows, tokenizer(), True, answers="each")
    assert [one.strip() for one in found["response"]] == ["one", "two", "b c"]
    assert found["prompt"][2] == "you ask a me "
    texts = Dataset.from_list([{"prompt": CHAT[:1], "completion": "b"}])
    assert to_prompt_response(texts, tokenizer(), True, answers="each")["response"][0].strip() == "b"


def test_turns_without_an_answer_after_them_and_a_greeting_are_no_rows():
    rows = [{"messages": [CHAT[1], *CHAT[:2], CHAT[2]]}]
    found = to_prompt_response(Dataset.from_list(rows), tokenizer(), True, answers="each")
    assert [one.strip() for one in found["response"]] == ["b c"]


@pytest.mark.parametrize(
    ("rows", "answers", "message"),
    [
        (
            [{"messages": CHAT[:2]}, {"messages": CHAT[:1]}],
            "each",
            "row 1 has no turn of the assistant in messages that",
        ),
        ([{"prompt": "a", "completion": "b"}], "each", "answers='each' is for chats"),
        (
            [{"messages": CHAT, "teacher_prompt": CHAT[:1]}],
            "each",
            "but teacher_prompt is what the teacher reads before",
        ),
        ([{"messages": CHAT}], "all", r"unknown answers 'all': pass one of \['last', 'each'\]"),
    ],
)
def test_what_has_no_answers_to_make_rows_of_is_refused(rows, answers, message):
    with pytest.raises(ValueError, match=message):
        tokens(rows, answers=answers)


def test_the_flag_of_recipes_makes_rows_of_each_answer_for_training_and_evaluation(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = TextDataArguments(str(tmp_path), chat_template=True, answers="each").load(tokenizer())
    assert (len(data.train), len(data.dev), len(data.dev_texts)) == (4, 4, 4)
    with pytest.raises(ValueError, match="answers='each' does not work with different tokenizers"):
        TextDataArguments(str(tmp_path), answers="each").load(tokenizer(), tokenizer())
