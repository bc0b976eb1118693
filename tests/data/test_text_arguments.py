import json
import logging

import pytest
from text_tokenizer import word_tokenizer

from hfkd.data.prompts import read_prompts
from hfkd.data.text_arguments import TextDataArguments
from hfkd.evaluation.sets import with_references
from hfkd.experiments.instruct import InstructArguments
from hfkd.experiments.responses import ResponseArguments


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = [{"prompt": "ask you", "completion": "answer me"}] * 6


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_data_set_with_its_own_splits_keeps_them(tmp_path, name):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / f"{name}.jsonl", ROWS[:4])
    arguments = TextDataArguments(str(tmp_path), max_train_rows=5, max_dev_rows=3)
    data = arguments.load(word_tokenizer())
    assert (len(data.train), len(data.dev)) == (5, 3)
    assert data.dev_texts[0] == {"prompt": "ask you", "response": "answer me"}
    assert data.train[0]["input_ids"][-1] == word_tokenizer().eos_token_id


def test_one_file_is_all_for_training(tmp_path):
    write(tmp_path / "mine.jsonl", ROWS)
    data = TextDataArguments(str(tmp_path / "mine.jsonl")).load(word_tokenizer())
    assert (len(data.train), data.dev, data.dev_texts) == (6, None, None)


def test_training_rows_are_packed_and_dev_rows_are_not(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "dev.jsonl", ROWS)
    data = TextDataArguments(str(tmp_path), max_length=16, max_prompt_length=8, packing=True).load(word_tokenizer())
    assert sum(len(lengths) for lengths in data.train["seq_lengths"]) == len(ROWS)
    assert len(data.train) < len(ROWS) == len(data.dev)


def test_without_a_training_split(tmp_path):
    for name in ("dev", "test"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"has the splits \['dev', 'test'\], but one must be named train"):
        TextDataArguments(str(tmp_path)).load(word_tokenizer())


def test_what_looks_like_dolly_is_said_to_be_split_like_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hfkd")
    rows = [{"instruction": "ask", "context": "", "response": "answer"}] * 1510
    write(tmp_path / "mine.jsonl", rows)
    data = TextDataArguments(str(tmp_path / "mine.jsonl")).load(word_tokenizer())
    assert (len(data.train), len(data.dev)) == (10, 1000)
    said = "the first 500 are for test, the next 1000 for dev, and the last 10 for training"
    assert f"{tmp_path}/mine.jsonl has a single split and Dolly's columns" in caplog.text
    assert said in caplog.text
    write(tmp_path / "train.jsonl", rows)
    (tmp_path / "mine.jsonl").rename(tmp_path / "dev.jsonl")
    caplog.clear()
    data = TextDataArguments(str(tmp_path)).load(word_tokenizer())
    assert (len(data.train), len(data.dev)) == (1510, 1510)
    assert "Dolly" not in caplog.text


def test_dollys_prompts_in_a_chat_template_are_the_same_in_training_generation_and_evaluation(tmp_path):
    """The question alone, as in the other test sets, and not the instruction format inside of the template."""
    rows = [{"instruction": "ask", "context": "", "response": word} for word in ("a", "b") * 760]
    write(tmp_path / "dolly.jsonl", rows)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant {% endif %}"
    name, wanted = str(tmp_path / "dolly.jsonl"), "user ask assistant "
    trained = TextDataArguments(name, max_length=48, max_prompt_length=40, chat_template=True).load(tokenizer)
    assert (len(trained.train), trained.train[0]["prompt_length"]) == (20, 3)
    assert set(trained.dev_texts["prompt"]) == {wanted}
    answers = ResponseArguments(name, max_prompt_length=40, chat_template=True).splits(tokenizer)
    assert set(read_prompts(answers["train"], tokenizer, chat_template=True).texts) == {wanted}
    scored = InstructArguments(dolly=name, sets=["dolly"], chat_template=True).load(tokenizer)["dolly"]
    assert set(scored["prompt"]) == {wanted}


def test_dolly_is_split_as_published(data_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_dir / "gpt2-tokenizer")
    data = TextDataArguments(str(data_dir / "dolly"), max_train_rows=20, max_dev_rows=10).load(tokenizer)
    assert (len(data.train), len(data.dev), len(data.dev_texts)) == (20, 10, 10)
    assert data.dev_texts[0]["prompt"].startswith("Below is an instruction")


@pytest.mark.parametrize("generated", [False, True])
def test_references_of_chats_have_no_end_of_turn(tmp_path, generated):
    """Generated texts have none, and ROUGE would read <end_of_turn> as three words; training has it."""
    words = word_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    words.chat_template = "{% for m in messages %}{{ m.content }} <end_of_turn> {% endfor %}"
    row = ROWS[0]
    if generated:  # as by hfkd generate --chat_template
        row = {"prompt": "ask you <end_of_turn> ", "response": "answer me <end_of_turn> "}
        (tmp_path / "responses.json").write_text(json.dumps({"settings": {"chat_template": True}}))
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.jsonl", [row] * 3)
    data = TextDataArguments(str(tmp_path), chat_template=not generated).load(words)
    assert with_references(data.dev_texts)[0] == {"prompt": "ask you <end_of_turn> ", "references": ["answer me"]}
    assert data.dev[0]["input_ids"] == words("ask you <end_of_turn> answer me <end_of_turn> <end>")["input_ids"]
