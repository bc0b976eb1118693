"""Responses to the prompts of a data set: which are kept, that a stop changes none, what recipes read of the folder."""

import json
import os
import time

import pytest
import torch
from processes import on_ranks
from text_toys import language_model, tokenizer
from tokenizers import processors

import hfkd.experiments.response_folder
from hfkd.data.prompts import read_prompts
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_arguments import TextDataArguments
from hfkd.data.text_files import read_jsonl
from hfkd.experiments import responses
from hfkd.experiments.instruct import InstructArguments, evaluate_students
from hfkd.experiments.response_folder import ResponseFolder
from hfkd.experiments.responses import ResponseArguments, generate_responses
from hfkd.models.writing import end_ids
from hfkd.training.on_policy.writing import ResponseWriter

WORDS = ("a", "b", "c", "d", "you", "me", "one")
END = 1


def written(path, count=9):
    """Two splits of prompts of one, two and three words."""
    path.mkdir(parents=True)
    for split, n in (("train", count), ("dev", 2)):
        rows = [{"prompt": " ".join(["ask", WORDS[i % 7], "b"][: 1 + i % 3]), "response": "a b"} for i in range(n)]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def often_ending(seed=3, bias=1.5, positions=32):
    """A model that ends a sequence now and then."""
    model = language_model(seed=seed, positions=positions)
    model.lm_head = torch.nn.Linear(16, len(tokenizer()))
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[END] = bias
    model.config.tie_word_embeddings = False
    return model


def arguments(folder, **more):
    given = {"num_samples": 3, "max_new_tokens": 4, "batch_size": 4, "max_prompt_length": 5, "disable_tqdm": True}
    given |= {"dataset_name": str(folder / "rows"), "output_dir": str(folder / "out")}
    return ResponseArguments(**given | more)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(responses, "PART", 2)


@pytest.fixture
def folder(tmp_path):
    written(tmp_path / "rows")
    return tmp_path


def test_each_is_the_response_of_its_row_and_number_and_each_that_is_left_out_is_counted(folder):
    model = often_ending()
    counts = generate_responses(model, tokenizer(), arguments(folder))
    rows = [json.loads(line) for line in (folder / "out" / "train.jsonl").read_text().splitlines()]
    prompts = read_prompts(read_jsonl(folder / "rows" / "train.jsonl"), tokenizer())
    given = {"on_policy_max_new_tokens": 4}
    write = ResponseWriter(responses.OnPolicyArguments(**given), tokenizer(), 42, len(tokenizer()))
    expected, why = [], dict.fromkeys(("ended_at_once", "unfinished", "repeated"), 0)
    for i in range(9):
        seen = set()
        for sample in range(3):
            (tokens,) = write(model, [prompts.ids[i]], [i], sample)  # alone, not in a batch
            text = tokenizer().decode(prompts.ids[i] + tokens[:-1], skip_special_tokens=True)[len(prompts.texts[i]) :]
            if tokens == [END]:
                why["ended_at_once"] += 1
            elif tokens[-1] not in end_ids(model, tokenizer()):
                why["unfinished"] += 1
            elif text in seen:
                why["repeated"] += 1
            else:
                expected.append({"prompt": prompts.texts[i], "response": text, "row": i, "sample": sample})
                seen.add(text)
    assert rows == expected
    assert 0 < len(rows) < 27
    assert why["ended_at_once"] > 0
    assert why["unfinished"] > 0
    assert counts == {"written": 27, "kept": len(rows), "empty": 0, **why, "prompts": 9, "long_prompts": 0}
    assert json.loads((folder / "out" / "responses.json").read_text())["counts"] == counts
    assert not (folder / "out" / "parts").exists()


def test_filters_that_are_off_keep_what_they_would_drop(folder):
    args = arguments(folder, keep_unfinished=True, keep_repeated=True, num_samples=8, max_new_tokens=2)
    counts = generate_responses(often_ending(), tokenizer(), args)
    assert counts["unfinished"] == counts["repeated"] == 0
    assert counts["kept"] == counts["written"] - counts["ended_at_once"] - counts["empty"]
    texts = [json.loads(line)["response"] for line in (folder / "out" / "train.jsonl").read_text().splitlines()]
    assert len(set(texts)) < len(texts)


def test_an_unfinished_response_is_not_learned_to_end(folder):
    args = arguments(folder, keep_unfinished=True, max_new_tokens=2)
    generate_responses(often_ending(), tokenizer(), args)
    rows = read_jsonl(folder / "out" / "train.jsonl")
    assert len(set(rows["unfinished"][:])) == 2
    data = TextDataArguments(str(folder / "out"), max_length=12, max_prompt_length=5)
    for tokens, row in zip(data.load(tokenizer()).train, rows, strict=True):
        assert (tokens["input_ids"][-1] == END) == (not row["unfinished"])
        assert tokens["labels"][-1] == tokens["input_ids"][-1]
        assert len(tokens["labels"]) > tokens["prompt_length"]
    assert data.load(tokenizer()).dev[0]["labels"][-1] == END


def test_rows_generated_with_a_chat_template_are_known_as_such(folder, tmp_path, caplog):
    """A second template is refused, and evaluation with the template is not advised against."""
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    args = arguments(folder, chat_template=True, keep_unfinished=True, keep_repeated=True)
    generate_responses(often_ending(), words, args)
    answers = str(folder / "out")
    for name in (answers, f"{answers}/train.jsonl"):
        with pytest.raises(ValueError, match="were generated with the chat template and already include it"):
            TextDataArguments(name, chat_template=True)
    with pytest.raises(ValueError, match="already include it"):
        generate_responses(often_ending(), words, arguments(folder, dataset_name=answers, chat_template=True))
    (tmp_path / "student").mkdir()
    config = {"config": vars(TextDataArguments(answers))}
    (tmp_path / "student" / "results.json").write_text(json.dumps(config))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "vicuna.jsonl").write_text(json.dumps({"prompt": "ask", "response": "a"}) + "\n")
    for chat, said in ((True, None), (False, "was trained with its chat template but is evaluated without it")):
        given = {"sets_from": str(tmp_path / "sets"), "sets": ["vicuna"], "seeds": [1], "chat_template": chat}
        given |= {"max_new_tokens": 2, "max_prompt_length": 5, "output_dir": str(tmp_path / f"scores-{chat}")}
        caplog.clear()
        evaluate_students([str(tmp_path / "student")], lambda name: (often_ending(), words), InstructArguments(**given))
        assert (said in caplog.text) if said else "template" not in caplog.text


def test_prompts_of_a_chat_template_are_trained_on_as_they_were_answered(folder):
    """The tokenizer begins texts with a token that the template does not write."""
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    start = [("<end>", words.convert_tokens_to_ids("<end>"))]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<end> $A", special_tokens=start)
    generate_responses(often_ending(), words, arguments(folder, chat_template=True, keep_unfinished=True))
    answered = read_prompts(read_jsonl(folder / "rows" / "train.jsonl"), words, chat_template=True)
    by_text = dict(zip(answered.texts, answered.ids, strict=True))
    data = TextDataArguments(str(folder / "out"), max_length=12, max_prompt_length=5)
    for row, one in zip(data.load(words).train, read_jsonl(folder / "out" / "train.jsonl"), strict=True):
        assert row["input_ids"][: row["prompt_length"]] == by_text[one["prompt"]]
    assert data.generation_settings["add_special_tokens"] is False


def test_prompts_of_a_chat_template_are_answered_again_as_such(folder, monkeypatch):
    """As by the next student: without a second beginning of the sequence, and known as such to the next command."""
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    start = [("<end>", words.convert_tokens_to_ids("<end>"))]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<end> $A", special_tokens=start)
    given = {"keep_unfinished": True, "keep_repeated": True, "num_samples": 1}
    generate_responses(often_ending(), words, arguments(folder, chat_template=True, **given))
    answers, again = str(folder / "out"), str(folder / "again")
    asked = []
    write = ResponseWriter.__call__
    monkeypatch.setattr(ResponseWriter, "__call__", lambda s, m, ids, *a: asked.extend(ids) or write(s, m, ids, *a))
    generate_responses(often_ending(), words, arguments(folder, dataset_name=answers, output_dir=again, **given))
    assert asked
    assert all(END not in ids for ids in asked)
    assert TextDataArguments(again).prompts_with_template


@pytest.mark.parametrize("chat", [True, False])
def test_a_chat_is_trained_on_with_the_end_of_turn_that_the_model_wrote(folder, chat):
    """Gemma ends a turn by another token than the tokenizer's end of sequence."""
    words, model = tokenizer(), often_ending()
    words.add_special_tokens({"additional_special_tokens": ["c"]})
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    turn = words.convert_tokens_to_ids("c")
    model.generation_config.eos_token_id = [END, turn]
    with torch.no_grad():
        model.lm_head.bias[turn] = 2.0
    generate_responses(model, words, arguments(folder, chat_template=chat))
    parts = read_jsonl(folder / "out" / "train.jsonl")
    ended = sum("c" in response for response in parts["response"])
    data = TextDataArguments(str(folder / "out"), max_length=16, max_prompt_length=8).load(words)
    ends = [row["input_ids"][-2:] for row in data.train]
    assert sum(end == [turn, END] for end in ends) == ended
    assert (0 < ended < len(parts)) if chat else not ended


def test_prompts_in_a_template_that_the_student_does_not_know_are_warned_of(folder, caplog):
    """Its markers are words like others there, and the student's own template is used in evaluation."""
    marked = "{% for m in messages %}<turn> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    words.chat_template = marked
    model = often_ending()
    model.resize_token_embeddings(len(words))
    generate_responses(model, words, arguments(folder, chat_template=True, keep_unfinished=True))
    data = TextDataArguments(str(folder / "out"), max_length=16, max_prompt_length=8)
    plain = tokenizer()
    plain.chat_template = marked  # without special tokens, as Vicuna's
    for student in (words, plain):
        data.load(student)
    assert "template" not in caplog.text
    data.load(tokenizer())
    assert "include a chat template, but" in caplog.text


def test_a_stopped_run_ends_with_the_same_bytes(folder, tmp_path, monkeypatch, caplog):
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    whole = content(folder / "out")
    (folder / "out").rename(folder / "whole")

    class Stopped(Exception):
        pass

    write, made = ResponseFolder.write_part, []

    def stop(self, number, rows):
        if len(made) == 2:
            raise Stopped
        made.append(number)
        write(self, number, rows)

    monkeypatch.setattr(ResponseFolder, "write_part", stop)
    with pytest.raises(Stopped):
        generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert sorted(content(folder / "out")) == ["parts/part-00000.jsonl", "parts/part-00001.jsonl", "responses.json"]
    damaged = folder / "out" / "parts" / "part-00001.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b'"sample": 1', b'"sample": 2', 1))
    monkeypatch.setattr(ResponseFolder, "write_part", lambda self, n, rows: (made.append(n), write(self, n, rows)))
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert made == [0, 1, 1, 2, 3, 4]
    assert "part-00001.jsonl is damaged and is generated again" in caplog.text
    assert content(folder / "out") == whole
    made.clear()
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert made == []
    assert content(folder / "out") == whole


def test_a_folder_that_is_not_finished_is_not_read(folder, monkeypatch):
    """As where the disk is full: the copy of dev, the only file of rows, would be the training rows."""
    write = hfkd.experiments.response_folder.write_atomically

    def full(path, given):
        if path.name == "train.jsonl":
            raise OSError(28, "No space left on device")
        write(path, given)

    monkeypatch.setattr(hfkd.experiments.response_folder, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert [path.name for path in (folder / "out").glob("*.jsonl")] == ["dev.jsonl"]
    with pytest.raises(ValueError, match="`hfkd generate` has not finished: run the same command again"):
        TextDataArguments(dataset_name=str(folder / "out")).load(tokenizer())
    monkeypatch.setattr(hfkd.experiments.response_folder, "write_atomically", write)
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert TextDataArguments(dataset_name=str(folder / "out"), max_length=12, max_prompt_length=5).load(tokenizer())


def on_rank(rows, out):
    """The part size is that of the module: the toys are one part, which the second rank is slow to read."""
    read = ResponseFolder.part

    def slowly(folder, number):
        time.sleep(1)
        return read(folder, number)

    if os.environ.get("RANK") == "1":
        ResponseFolder.part = slowly
    generate_responses(often_ending(), tokenizer(), arguments(rows, output_dir=out))


@pytest.mark.slow
def test_two_ranks_write_what_one_does(folder, monkeypatch):
    monkeypatch.undo()
    written(folder / "more" / "rows", 150)
    on_rank(folder / "more", str(folder / "one"))
    codes = on_ranks(folder / "log", 2, on_rank, folder / "more", str(folder / "two"))
    assert codes == [0, 0], (folder / "log-0").read_text()[-2000:]
    one, two = content(folder / "one"), content(folder / "two")
    assert one == two


def test_recipes_read_the_folder(folder):
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    texts = TextDataArguments(dataset_name=str(folder / "out"), max_length=12, max_prompt_length=5).load(tokenizer())
    rows = read_jsonl(folder / "out" / "train.jsonl")
    plain = tokenize_dataset(rows, tokenizer(), max_length=12, max_prompt_length=5)
    assert texts.train["input_ids"][:] == plain["input_ids"][:]
    for ids, row in zip(texts.train["input_ids"], rows, strict=True):
        assert ids == tokenizer()(row["prompt"] + row["response"])["input_ids"] + [END]
    assert [row["response"] for row in texts.dev_texts] == ["a b", "a b"]


def test_other_splits_are_those_of_the_dataset_as_it_is(folder, caplog):
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    before = content(folder / "out")
    (folder / "rows" / "dev.jsonl").write_text('{"prompt": "ask", "response": "c d"}\n')
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert "dev.jsonl is not this split of the dataset, and is written again" in caplog.text
    assert [row["response"] for row in read_jsonl(folder / "out" / "dev.jsonl")] == ["c d"]
    assert content(folder / "out") == {**before, "dev.jsonl": (folder / "out" / "dev.jsonl").read_bytes()}


def test_another_split_without_responses_is_refused_before_anything_is_written(folder):
    (folder / "rows" / "dev.jsonl").write_text('{"prompt": "ask"}\n')
    with pytest.raises(
        ValueError, match="the split 'dev', which is copied with its own responses: .*columns .'prompt'"
    ):
        generate_responses(often_ending(), tokenizer(), arguments(folder))
    assert not (folder / "out").exists()


def test_rows_of_questions_alone_are_answered(folder):
    (folder / "rows" / "train.jsonl").write_text('{"instruction": "ask", "context": "me"}\n' * 2)
    args = arguments(folder, max_prompt_length=60, max_new_tokens=3)
    generate_responses(often_ending(positions=40), tokenizer(), args)
    asked = {json.loads(line)["prompt"] for line in (folder / "out" / "train.jsonl").read_text().splitlines()}
    assert len(asked) == 1
    assert "### Input:\nme\n\n### Response:\n" in asked.pop()


ASKED = {"role": "user", "content": "ask me"}
THINKS = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}you{% endif %}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED]},
        {"messages": [ASKED]},
        {"messages": [ASKED, {"role": "assistant", "content": "one"}]},
        {"prompt": "ask me", "response": None},
        {"instruction": "ask me"},
    ],
)
def test_turns_that_end_with_a_question_are_answered(folder, row):
    """Also with a template that begins a thought in the prompt, with which written answers do not begin."""
    words = tokenizer()
    words.chat_template = THINKS
    (folder / "rows" / "train.jsonl").write_text((json.dumps(row) + "\n") * 2)
    (folder / "rows" / "dev.jsonl").unlink()
    generate_responses(often_ending(), words, arguments(folder, chat_template=True))
    answers = [json.loads(line) for line in (folder / "out" / "train.jsonl").read_text().splitlines()]
    assert {one["prompt"] for one in answers} == {"ask me you"}


def test_long_prompts_are_dropped_and_counted(folder):
    counts = generate_responses(often_ending(), tokenizer(), arguments(folder, max_prompt_length=2))
    assert (counts["prompts"], counts["long_prompts"], counts["written"]) == (6, 3, 18)
    rows = [json.loads(line) for line in (folder / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["row"] % 3 for row in rows} <= {0, 1}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "would be identical"),
        ({"top_p": 0.0}, "leaves no token"),
        ({"top_p": 2.0}, "top_p=2.0 must be a number from 0 to 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        arguments(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 30}, "the prompt of row 2 has 3 tokens, .*33 positions, but the model has 32"),
        ({"max_prompt_length": 0}, "max_prompt_length"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_is_written(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        generate_responses(often_ending(), tokenizer(), arguments(folder, **settings))
    assert not (folder / "out").exists()


def test_prompts_that_are_all_too_long(folder):
    (folder / "rows" / "train.jsonl").write_text('{"prompt": "a b c", "response": "a"}\n')
    with pytest.raises(ValueError, match="more than max_prompt_length=2 tokens .the shortest has 3.: increase"):
        generate_responses(often_ending(), tokenizer(), arguments(folder, max_prompt_length=2))


def test_rows_without_a_prompt(folder):
    (folder / "rows" / "train.jsonl").write_text('{"text": "a b c"}\n')
    with pytest.raises(ValueError, match="row 0 has an empty prompt"):
        generate_responses(often_ending(), tokenizer(), arguments(folder))


def test_a_model_that_ends_at_once_leaves_no_data_set(folder):
    with pytest.raises(ValueError, match="0 of 27 responses are kept .27 ended at once.. Check that the model"):
        generate_responses(often_ending(bias=1e4), tokenizer(), arguments(folder))
    assert not list((folder / "out").glob("*.jsonl"))


def test_responses_that_no_filter_left_are_kept_by_another_and_not_written_again(folder, monkeypatch):
    never = {"bias": -1e4}
    with pytest.raises(ValueError, match="27 not ended within max_new_tokens.*or pass keep_unfinished"):
        generate_responses(often_ending(**never), tokenizer(), arguments(folder))
    monkeypatch.setattr(ResponseWriter, "__call__", None)
    counts = generate_responses(often_ending(**never), tokenizer(), arguments(folder, keep_unfinished=True))
    assert counts["kept"] == 27 - counts["repeated"] - counts["empty"] > 20


def test_responses_of_another_version_are_neither_continued_nor_read(folder):
    generate_responses(often_ending(), tokenizer(), arguments(folder))
    stored = json.loads((folder / "out" / "responses.json").read_text())
    (folder / "out" / "responses.json").write_text(json.dumps(stored | {"version": 2}))
    before, words = content(folder / "out"), "responses.json has version 2 of its format.*generate the responses again"
    with pytest.raises(ValueError, match=words):
        generate_responses(often_ending(), tokenizer(), arguments(folder))
    with pytest.raises(ValueError, match=words):
        TextDataArguments(str(folder / "out")).splits(tokenizer())
    assert content(folder / "out") == before


def test_a_folder_of_others_is_refused_and_stays_as_it_is(folder):
    generate_responses(often_ending(), tokenizer(), arguments(folder), name="mine")
    before = content(folder / "out")
    for model, settings, words in (
        (often_ending(seed=4), {}, "their weights is .*mine.*choose another output_dir"),
        (often_ending(), {"temperature": 0.5}, "their temperature is 1.0 .*that of this run is 0.5"),
        (often_ending(), {"keep_repeated": True}, "their keep_repeated is False"),
        (often_ending(), {"max_rows": 3}, "their prompts is"),
    ):
        with pytest.raises(ValueError, match=words):
            generate_responses(model, tokenizer(), arguments(folder, **settings))
    assert content(folder / "out") == before
    (folder / "out" / "train.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="was changed or damaged after it was written"):
        generate_responses(often_ending(), tokenizer(), arguments(folder))
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already has other files \(notes.txt\)"):
        generate_responses(often_ending(), tokenizer(), arguments(folder, output_dir=str(folder / "full")))
