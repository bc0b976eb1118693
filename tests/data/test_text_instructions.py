import pytest
from datasets import Dataset, DatasetDict
from text_tokenizer import word_tokenizer
from transformers import AutoTokenizer

from hfkd.data.instructions import accepted_columns, dolly_rows, instruction_prompt, to_prompt_response, to_prompts
from hfkd.data.text_files import read_jsonl

# The bytes of MiniLLM's tools/process_data_dolly.py.
PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a fish.\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nName a fish.\n\n"
    "### Input:\nIn salt water.\n\n### Response:\n"
)
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"


def pair(tokenizer=None, chat_template=False, **row):
    found = to_prompt_response(Dataset.from_list([row]), tokenizer, chat_template)
    assert found.column_names == ["prompt", "response"]
    return found[0]["prompt"], found[0]["response"]


def chat_tokenizer(template=CHAT):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_template_byte_for_byte():
    assert instruction_prompt("Name a fish.") == PLAIN
    assert instruction_prompt("Name a fish.", "In salt water.") == WITH_INPUT


@pytest.mark.parametrize("name", ["self-inst", "sinst", "vicuna", "uinst"])
def test_template_is_the_one_the_published_sets_were_written_with(data_dir, name):
    rows = read_jsonl(data_dir / "instruct_eval" / f"{name}.jsonl")
    assert to_prompt_response(rows)["prompt"][:] == rows["prompt"][:]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name a fish.", "response": "Cod"},
        {"instruction": "Name a fish.", "context": "", "response": "Cod"},
        {"instruction": "Name a fish.", "context": None, "response": "Cod"},
        {"instruction": "Name a fish.", "input": "", "output": "Cod"},
        {"instruction": "Name a fish.", "output": ["Cod", "Eel"]},
        {"prompt": PLAIN, "completion": "Cod"},
        {"prompt": PLAIN, "response": "Cod", "category": "x"},
        {"prompt": PLAIN, "output": "Cod"},
        {"messages": [{"role": "user", "content": "Name a fish."}, {"role": "assistant", "content": "Cod"}]},
        {
            "prompt": [{"role": "user", "content": "Name a fish."}],
            "completion": [{"role": "assistant", "content": "Cod"}],
        },
        {"prompt": [{"role": "user", "content": "Name a fish."}], "completion": "Cod"},
    ],
)
def test_every_accepted_shape(row):
    assert pair(**row) == (PLAIN, "Cod")
    assert to_prompts(Dataset.from_list([row])) == [PLAIN]


@pytest.mark.parametrize("column", ["context", "input"])
def test_context_goes_into_the_prompt(column):
    assert pair(instruction="Name a fish.", response="Cod", **{column: "In salt water."}) == (WITH_INPUT, "Cod")


@pytest.mark.parametrize("chat", [True, False])
def test_one_of_two_inputs_is_not_left_out(chat):
    row = {"instruction": "Name a fish.", "response": "Cod", "context": "In salt water."}
    with pytest.raises(ValueError, match="row 0 has two inputs, in context and in input: write both into one"):
        pair(chat_tokenizer(), chat, **row, input="In cold water.")
    for other in ("In salt water.", "", None):
        assert pair(chat_tokenizer(), chat, **row, input=other) == pair(chat_tokenizer(), chat, **row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "In salt water: a"}, {"role": "assistant", "content": "b"}]},
        {
            "prompt": [{"role": "user", "content": "In salt water: a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        {"prompt": "In salt water: a", "response": "b"},
    ],
)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("column", ["context", "input"])
def test_a_context_must_be_in_the_prompt(row, chat, column):
    with pytest.raises(ValueError, match=f"row 0 has a value in the column {column}, which is not written into"):
        pair(chat_tokenizer(), chat, **row, **{column: "In cold water"})
    for there in ("In salt water", "In salt water\n"):
        assert pair(chat_tokenizer(), chat, **row, **{column: there}) == pair(chat_tokenizer(), chat, **row)


def test_text_is_all_response():
    assert pair(text="Once upon a time") == ("", "Once upon a time")


def test_chat_template_renders_and_leaves_its_end_to_the_tokenising():
    asked = ("<user>Name a fish.<end>\n<assistant>", "Cod")
    assert pair(chat_tokenizer(), True, instruction="Name a fish.", response="Cod") == asked
    assert pair(chat_tokenizer(), True, prompt="Name a fish.", completion="Cod") == asked
    with_context = pair(chat_tokenizer(), True, instruction="Name a fish.", context="In salt water.", output="Cod")
    assert with_context[0] == "<user>Name a fish.\n\nIn salt water.<end>\n<assistant>"


def test_chat_of_many_turns_answers_with_the_last(caplog):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "A fish?"), ("assistant", "Cod")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt, response = pair(chat_tokenizer(), True, messages=messages)
    assert prompt == "<system>Be brief.<end>\n<user>Hi<end>\n<assistant>Yes?<end>\n<user>A fish?<end>\n<assistant>"
    assert response == "Cod"
    assert (
        "1 of 1 rows are chats with several answers. The last of each is its response, and the 1 before" in caplog.text
    )
    caplog.clear()
    completion = {"prompt": messages[:2], "completion": messages[2:]}
    assert pair(chat_tokenizer(), True, **completion) == (prompt, response)
    assert "1 of 1 rows are chats with several answers" in caplog.text
    caplog.clear()
    pair(chat_tokenizer(), True, prompt=messages[:4], completion=messages[4:])  # as it says itself
    to_prompts(Dataset.from_list([{"messages": messages[:4]}]), chat_tokenizer(), True)
    assert caplog.text == ""
    with pytest.raises(ValueError, match="set chat_template=True"):
        pair(messages=messages)


@pytest.mark.parametrize(
    ("tokenizer", "row", "message"),
    [
        (word_tokenizer(), {"prompt": "a", "response": "b"}, "the tokenizer has no chat template"),
        (chat_tokenizer(), {"text": "a"}, "without turns"),
        (
            chat_tokenizer(),
            {"messages": [{"role": "user", "content": "a"}]},
            "row 0 has the turns .* the last of two or more turns",
        ),
        (
            chat_tokenizer("{{ messages | length }}<assistant>"),
            {"prompt": "a", "response": "b"},
            "row 0: with the answer, the chat template",
        ),
    ],
)
def test_bad_chats_are_refused(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        pair(tokenizer, True, **row)


ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("row", [{"messages": [ASKED, ANSWERED]}, {"prompt": [ASKED], "completion": [ANSWERED]}])
def test_what_a_template_would_write_beside_the_turns_is_not_left_out(row):
    for name, value in (("tools", [{"name": "look"}]), ("chat_template_kwargs", {"thinking": True})):
        with pytest.raises(ValueError, match=f"row 0 has {name}, which are not written into the prompt"):
            pair(chat_tokenizer(), True, **row, **{name: value})
        assert pair(chat_tokenizer(), True, **row, **{name: None}) == pair(chat_tokenizer(), True, **row)


WITHOUT_THOUGHT = (  # as DeepSeek's
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RESHAPED = (  # as Qwen's
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_thoughts_of_the_answer_are_not_left_out():
    answer = {"role": "assistant", "content": "<think>two of them</think>b"}
    with pytest.raises(ValueError, match="row 0: the content of the answer is not written whole into the response"):
        pair(chat_tokenizer(WITHOUT_THOUGHT), True, messages=[ASKED, answer])
    found = pair(chat_tokenizer(RESHAPED), True, messages=[ASKED, answer])
    assert found == ("<user>a<assistant>", "<think>\ntwo of them\n</think>\n\nb")
    earlier = [ASKED, answer, ASKED, ANSWERED]  # templates leave out those of earlier turns, which are not learned
    assert pair(chat_tokenizer(WITHOUT_THOUGHT), True, messages=earlier) == (
        "<user>a<assistant>b<user>a<assistant>",
        "b",
    )
    beside = [ASKED, ANSWERED | {"reasoning_content": "two of them"}]
    for chat in (True, False):
        with pytest.raises(ValueError, match="row 0: the reasoning_content of the answer is not written whole"):
            pair(chat_tokenizer(), chat, messages=beside)
    assert to_prompts(Dataset.from_list([{"messages": beside}])) == [instruction_prompt("a")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, ANSWERED]},
        {"prompt": "a", "response": "b"},
        {"instruction": "a", "input": "", "output": "b"},
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_a_system_prompt_or_earlier_turns_in_a_column_are_not_left_out(row, chat):
    tokenizer = chat_tokenizer() if chat else None
    for name, value in (("system", "be brief"), ("system_prompt", "be brief"), ("history", [["x", "y"]])):
        with pytest.raises(ValueError, match=f"row 0 has a value in the column {name}, which is not written"):
            pair(tokenizer, chat, **row, **{name: value})
        assert pair(tokenizer, chat, **row, **{name: value[:0]}) == pair(tokenizer, chat, **row)


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "a"}]])
def test_turns_that_are_no_text_are_not_written_as_python_has_them(content):
    with pytest.raises(ValueError, match="row 0: content is .* instead of text"):
        pair(messages=[{"role": "user", "content": content}, {"role": "assistant", "content": content and [ASKED]}])


@pytest.mark.parametrize("messages", [None, [ASKED, {"role": "assistant", "content": None}], [ASKED, {"content": "b"}]])
def test_a_chat_without_an_answer_names_its_row(messages):
    """As in a table, where other rows have what this one lacks; a template writes an empty answer, or None."""
    other = [ASKED, ANSWERED]
    with pytest.raises(ValueError, match="row 1(:| has the turns)"):
        to_prompt_response(Dataset.from_list([{"messages": other}, {"messages": messages}]), chat_tokenizer(), True)


def test_what_only_other_rows_of_a_table_have_is_not_written():
    """The arguments of tool calls, and the parts of a content, have the keys of all of them in a table."""
    template = "{% for m in messages %}{{ m.content or '' }}{{ (m.tool_calls or '') | tojson }}\n{% endfor %}"
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "find", "arguments": {"word": "b"}}]
    answers = [{"role": "assistant", "content": None, "tool_calls": [call]} for call in calls]
    found = to_prompt_response(
        Dataset.from_list([{"messages": [ASKED, answer]} for answer in answers]), chat_tokenizer(template), True
    )
    assert ["null" in response for response in found["response"]] == [False, False]
    assert '{"a": 1}' in found["response"][0]
    template = (
        "{% for m in messages %}{% for part in m.content %}{{ '<image>' if 'image' in part else part.text }}"
        "{% endfor %}{% endfor %}"
    )
    answer = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    parts = {"type": "image", "image": "cat.png"}, {"type": "text", "text": "a"}
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": [part]}, answer]} for part in parts])
    assert to_prompt_response(rows, chat_tokenizer(template), True)["prompt"][:] == ["<image>", "a"]


def test_unknown_columns_say_what_there_is_and_what_is_accepted():
    with pytest.raises(ValueError, match=r"\['question', 'answer'\]: rename them to one of messages, instruction \+ "):
        accepted_columns(Dataset.from_list([{"question": "a", "answer": "b"}]))


def test_all_splits_at_once_are_refused():
    rows = Dataset.from_list([{"text": "a"}])
    for given in (DatasetDict(train=rows), rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match="pass a single split"):
            to_prompt_response(given)


@pytest.mark.parametrize("value", [None, 3])
def test_a_value_that_is_not_text_names_its_row(value):
    rows = Dataset.from_dict({"prompt": ["a", "b"], "response": [["x"], [value]] if value is None else [1, value]})
    with pytest.raises(ValueError, match=r"row \d: response is .* instead of text"):
        to_prompt_response(rows)


def test_dollys_splits_have_the_published_sizes(data_dir):
    rows = read_jsonl(data_dir / "dolly" / "databricks-dolly-15k.jsonl")
    split = dolly_rows(rows, AutoTokenizer.from_pretrained(data_dir / "gpt2-tokenizer"))
    assert {name: len(part) for name, part in split.items()} == {"train": 11435, "dev": 1000, "test": 500}
    assert all(part.column_names == rows.column_names for part in split.values())
    # the rows dropped so far come before row 500, so the first test row is the file's first
    assert split["test"][0]["response"] == rows[0]["response"]
    assert split["train"][-1]["response"] == rows[-1]["response"]


def test_splitting_other_data_than_dolly_warns_or_refuses(caplog):
    rows = Dataset.from_dict({"instruction": ["a"] * 1600, "response": ["b"] * 1600})
    assert len(dolly_rows(rows, word_tokenizer())["train"]) == 100
    assert "100 training rows instead of the published 11435" in caplog.text
    with pytest.raises(ValueError, match="0 of 1600 rows have a prompt of at most 2 tokens"):
        dolly_rows(rows, word_tokenizer(), max_prompt_tokens=2)
