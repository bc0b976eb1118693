import logging

import pytest
from datasets import Dataset
from text_tokenizer import word_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from hfkd.data.instructions import dolly_rows, to_prompt_response
from hfkd.data.text import encode_texts, tokenize_dataset
from hfkd.data.text_files import read_jsonl
from hfkd.data.two_tokenizers import tokenize_for_both

END = 1  # word_tokenizer's end of sequence


def pairs(*rows):
    return Dataset.from_dict({"prompt": [p for p, _ in rows], "response": [r for _, r in rows]})


@pytest.fixture(scope="module")
def gpt2(data_dir):
    return AutoTokenizer.from_pretrained(data_dir / "gpt2-tokenizer")


@pytest.fixture(scope="module")
def dolly(data_dir, gpt2):
    splits = dolly_rows(read_jsonl(data_dir / "dolly" / "databricks-dolly-15k.jsonl"), gpt2)
    return {name: to_prompt_response(rows) for name, rows in splits.items()}


def targets(row):
    return [label for label in row["labels"] if label != -100]


def test_columns_of_a_row():
    row = tokenize_dataset(pairs(("ask a", "one two")), word_tokenizer())[0]
    assert row == {
        "input_ids": [7, 3, 11, 12, END],
        "labels": [-100, -100, 11, 12, END],
        "prompt_length": 2,
        "length": 5,
        "index": 0,
    }


def test_labels_of_real_rows_decode_to_the_response(dolly, gpt2):
    rows = tokenize_dataset(dolly["dev"], gpt2)
    assert len(rows) == 1000
    complete = 0
    for given, row in zip(dolly["dev"], rows, strict=True):
        text = gpt2.decode(targets(row))
        assert gpt2.decode(row["input_ids"][: row["prompt_length"]]) == given["prompt"]
        if row["length"] < 512:
            assert text == given["response"] + "<|endoftext|>"
            complete += 1
        else:
            assert (given["response"] + "<|endoftext|>").startswith(text)
    assert complete > 950


def test_joint_and_separate_agree_on_dolly(dolly, gpt2):
    joint, separate = (tokenize_dataset(dolly["dev"], gpt2, tokenization=how) for how in ("joint", "separate"))
    assert joint["input_ids"][:] == separate["input_ids"][:]


def test_joint_and_separate_differ_where_the_response_starts_inside_a_word(gpt2):
    rows = pairs(("The answer is", " forty"), ("Say: re", "markable"))
    joint, separate = (tokenize_dataset(rows, gpt2, tokenization=how) for how in ("joint", "separate"))
    assert joint["input_ids"][0] == separate["input_ids"][0]
    # "remark" is one merge, which would swallow the end of the prompt: that row is tokenised separately
    assert joint["input_ids"][1] == separate["input_ids"][1]
    prompt = encode_texts(["Say: re"], gpt2)[0]
    assert joint["input_ids"][1][: len(prompt)] == prompt
    assert gpt2.decode(targets(joint[1])) == "markable<|endoftext|>"


def test_joint_keeps_a_sentencepiece_response_free_of_a_second_leading_space(data_dir):
    stories = AutoTokenizer.from_pretrained(data_dir / "stories260K")
    rows = pairs(("One day\n", "a dog ran"))
    joint, separate = (tokenize_dataset(rows, stories, tokenization=how)[0] for how in ("joint", "separate"))
    assert joint["input_ids"] == [*stories("One day\na dog ran")["input_ids"], stories.eos_token_id]
    assert joint["input_ids"] != separate["input_ids"]
    assert joint["input_ids"][0] == separate["input_ids"][0] == stories.bos_token_id
    assert joint["labels"][0] == -100


def test_long_prompts_are_dropped_or_cut(caplog):
    rows = pairs(("a b c", "one"), ("a b", "two"))
    dropped = tokenize_dataset(rows, word_tokenizer(), max_prompt_length=2)
    assert dropped["input_ids"][:] == [[3, 4, 12, END]]
    assert dropped["index"][:] == [0]  # the row of the dataset returned
    assert "truncated to their first" not in caplog.text
    for how in ("joint", "separate"):
        caplog.clear()
        cut = tokenize_dataset(rows, word_tokenizer(), max_prompt_length=2, long_prompts="cut", tokenization=how)
        assert cut["input_ids"][:] == [[3, 4, 11, END], [3, 4, 12, END]]
        assert cut["prompt_length"][:] == [2, 2]
        assert "1 prompts were truncated to their first 2 tokens" in caplog.text


def test_a_long_row_loses_the_end_of_its_response():
    rows = tokenize_dataset(
        pairs(("a", "one two three"), ("a", "one two")), word_tokenizer(), max_length=4, max_prompt_length=2
    )
    assert rows["labels"][:] == [[-100, 11, 12, 13], [-100, 11, 12, END]]


def test_an_empty_response_is_kept_and_counted(caplog):
    with caplog.at_level(logging.INFO, "hfkd"):
        rows = tokenize_dataset(
            pairs(("a b", ""), ("a", "one"), ("a b c d", "two")), word_tokenizer(), max_prompt_length=3
        )
    assert rows[0]["labels"] == [-100, -100, END]
    assert "2 rows tokenised: 1 dropped" in caplog.text
    assert "1 empty responses" in caplog.text


def test_truncated_and_empty_responses_of_many_rows_are_counted(caplog):
    """Which are read some at a time."""
    rows = pairs(*[("a", "one two three"), ("a", "one two"), ("a", "")] * 700)
    with caplog.at_level(logging.INFO, "hfkd"):
        tokenize_dataset(rows, word_tokenizer(), max_length=4, max_prompt_length=2)
    assert "2100 rows tokenised: 0 dropped" in caplog.text
    assert "700 with a response truncated at 4 tokens" in caplog.text
    assert "700 empty responses" in caplog.text


def test_a_row_with_nothing_to_predict_is_dropped():
    rows = tokenize_dataset(Dataset.from_dict({"text": ["", "a"]}), word_tokenizer())
    assert rows["input_ids"][:] == [[3, END]]


def test_blank_texts_do_not_teach_to_end_at_once(data_dir, caplog):
    """A third of WikiText's rows are empty; a tokenizer that begins texts with a BOS would learn its end after it."""
    stories = AutoTokenizer.from_pretrained(data_dir / "stories260K")
    with caplog.at_level(logging.INFO, "hfkd"):
        rows = tokenize_dataset(Dataset.from_dict({"text": ["", "Once upon", " \n"]}), stories)
    assert rows["input_ids"][:] == [stories("Once upon")["input_ids"] + [stories.eos_token_id]]
    assert "1 rows tokenised: 2 dropped" in caplog.text
    assert "0 empty responses" in caplog.text
    both = tokenize_for_both(Dataset.from_dict({"text": ["", "Once upon", " \n"]}), stories, stories)
    assert both["input_ids"][:] == rows["input_ids"][:]


def test_text_is_all_target(data_dir):
    stories = AutoTokenizer.from_pretrained(data_dir / "stories260K")
    texts = read_jsonl(data_dir / "stories260K-samples.jsonl").select(range(50))
    rows = tokenize_dataset(texts, stories)
    for given, row in zip(texts, rows, strict=True):
        assert row["input_ids"][0] == stories.bos_token_id
        assert row["labels"] == [-100, *row["input_ids"][1:]]
        if row["length"] < 512:
            assert stories.decode(targets(row), skip_special_tokens=True) == given["text"]


def test_index_stays_with_its_row():
    rows = tokenize_dataset(pairs(("a", "one"), ("b", "two"), ("c", "three")), word_tokenizer())
    picked = rows.shuffle(seed=1).select([2, 0])
    assert all(rows[row["index"]] == row for row in picked)


def test_chat_text_ends_once_and_gets_no_second_bos():
    tokenizer = word_tokenizer(bos_token="<s>")
    tokenizer.chat_template = "<s>{% for m in messages %} {{ m.content }} <end> {% endfor %}"
    row = tokenize_dataset(pairs(("ask", "answer")), tokenizer, chat_template=True)[0]
    assert row["input_ids"] == [2, 7, END, 8, END]
    assert row["labels"] == [-100, -100, -100, 8, END]


@pytest.mark.parametrize("how", ["joint", "separate"])
def test_a_text_that_brings_its_end_gets_no_second(how):
    rows = tokenize_dataset(Dataset.from_dict({"text": ["a b <end>"]}), word_tokenizer(), tokenization=how)
    assert rows[0]["input_ids"] == [3, 4, END]


def test_many_texts_are_encoded_a_part_at_a_time(monkeypatch):
    """A million prompts of `hfkd generate` at once took tens of gigabytes in each process."""
    words, sizes = word_tokenizer(), []
    kind = type(words)
    call = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, texts, **how: sizes.append(len(texts)) or call(self, texts, **how)
    )
    texts = [" ".join(["ask", "you"] * (1 + number % 5)) for number in range(2500)]
    found = encode_texts(texts, words)
    assert max(sizes) <= 1000
    assert found[::100] == [encode_texts([text], words)[0] for text in texts[::100]]


def test_prompts_for_generation_have_no_end_of_sequence():
    class Appending(type(word_tokenizer())):
        def __call__(self, texts, add_special_tokens=True):
            ids = super().__call__(texts, add_special_tokens=False)["input_ids"]
            return {"input_ids": [[*row, END] if add_special_tokens else row for row in ids]}

    tokenizer = Appending(tokenizer_object=word_tokenizer().backend_tokenizer, eos_token="<end>")
    assert encode_texts(["a b", "c"], tokenizer) == [[3, 4], [5]]
    assert encode_texts(["a <end>"], tokenizer, add_special_tokens=False) == [[3, END]]
    assert encode_texts([], tokenizer) == []


def test_the_second_time_comes_from_the_cache(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "one"}\n' * 3)
    first, second = (tokenize_dataset(read_jsonl(path), word_tokenizer()) for _ in range(2))
    assert first.cache_files == second.cache_files != []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"long_prompts": "truncate"}, r"unknown long_prompts 'truncate': pass one of \['drop', 'cut'\]"),
        ({"tokenization": "both"}, r"unknown tokenization 'both'"),
        ({"max_length": 256}, "max_prompt_length=256 and max_length=256"),
        ({"max_prompt_length": 0}, "at least 1 token"),
        ({"max_prompt_length": 1}, "none of the 1 rows is left"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenize_dataset(pairs(("a b", "one")), word_tokenizer(), **arguments)


def test_data_or_tokenizer_that_cannot_teach_is_refused():
    with pytest.raises(ValueError, match="the dataset is empty"):
        tokenize_dataset(pairs(), word_tokenizer())
    endless = word_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        tokenize_dataset(pairs(("a", "b")), endless)


def adding_bos():
    """A tokenizer that puts a BOS first, as Llama's does."""
    tokenizer = word_tokenizer(bos_token="<s>")
    processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


@pytest.mark.parametrize("tokenization", ["joint", "separate"])
@pytest.mark.parametrize(
    ("columns", "prompt"),
    [({"prompt": "<s> ask you", "completion": " a b"}, 3), ({"prompt": "ask you", "completion": " a b"}, 3)],
)
def test_a_bos_that_the_prompt_has_is_not_doubled(columns, prompt, tokenization):
    tokenizer = adding_bos()
    (row,) = tokenize_dataset(Dataset.from_list([columns]), tokenizer, tokenization=tokenization)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "ask", "you", "a", "b", "<end>"]
    assert row["labels"] == [-100] * prompt + row["input_ids"][prompt:]


@pytest.mark.parametrize("tokenization", ["joint", "separate"])
@pytest.mark.parametrize("text", ["<s> ask you a b", "ask you a b", "<s> ask you a b <end>"])
def test_a_bos_that_the_text_has_is_neither_doubled_nor_a_target(text, tokenization):
    tokenizer = adding_bos()
    (row,) = tokenize_dataset(Dataset.from_list([{"text": text}]), tokenizer, tokenization=tokenization)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "ask", "you", "a", "b", "<end>"]
    assert row["labels"] == [-100, *row["input_ids"][1:]]


def test_a_prompt_is_generated_from_as_it_was_trained_on():
    tokenizer = adding_bos()
    assert encode_texts(["<s> ask you", "ask you", "<s> <s> ask", ""], tokenizer) == [
        [2, 7, 9],
        [2, 7, 9],
        [2, 2, 7],
        [2],
    ]
