"""Rows whose teacher reads a prompt of its own, and what they cannot have: entries for tests/bad_input.py."""

from datasets import Dataset, concatenate_datasets
from task_toys import t5
from teacher_prompt_toys import TEACHERS, rows, texts, trainer, without
from text_toys import language_model, taught_model, tokenizer
from transformers import DataCollatorForSeq2Seq

from hfkd.data.pack_rows import pack_rows
from hfkd.data.prompts import read_prompts
from hfkd.data.text import tokenize_dataset
from hfkd.teachers import CachedTextTeacher, build_text_cache

ANSWER = {"role": "assistant", "content": "b"}


def run(**keywords):
    return lambda folder: lambda: trainer(folder / "run", **keywords)


def changed(**columns):
    return run(data=[dict(row) | {name: change(row) for name, change in columns.items()} for row in rows(4)])


def tokenise(row, **keywords):
    return lambda folder: lambda: tokenize_dataset(Dataset.from_list([row]), tokenizer(), **keywords)


def stored(folder):
    plain = rows(4).remove_columns(TEACHERS)
    build_text_cache(taught_model(), plain, folder / "stored", temperatures=1.0, progress_bar=False)
    networks = language_model(), CachedTextTeacher(folder / "stored")
    return lambda: trainer(folder / "run", networks, rows(4))


def store(folder):
    return lambda: build_text_cache(taught_model(), rows(4), folder / "stored", progress_bar=False)


TEACHER_PROMPTS = {
    "teacher_prompt, another response": changed(teacher_labels=lambda row: [*row["teacher_labels"][:-1], 3]),
    "teacher_prompt, a response of other length": changed(teacher_labels=lambda row: row["teacher_input_ids"]),
    "teacher_prompt, teacher_labels that are moved": changed(
        teacher_input_ids=lambda row: [*row["teacher_input_ids"], 5],
        teacher_labels=lambda row: [-100, *row["teacher_labels"]],
    ),
    "teacher_prompt, no teacher_labels": run(data=without("teacher_labels")),
    "teacher_prompt, one row with teacher_input_ids": run(data=[rows(1)[0], *without(*TEACHERS)]),
    "teacher_prompt, rows of which some are the student's alone": lambda folder: (
        lambda: trainer(
            folder / "run",
            data=concatenate_datasets([rows(4), rows(4, seed=5).remove_columns(TEACHERS)]).shuffle(seed=1),
        )
    ),
    "teacher_prompt, rows of tokens with texts beside": run(
        data=[row | {"teacher_prompt": "a"} for row in without(*TEACHERS)]
    ),
    "teacher_prompt, rows that hold several documents": changed(seq_lengths=lambda row: [2, len(row["input_ids"]) - 2]),
    "teacher_prompt, a token that the teacher lacks": changed(
        teacher_input_ids=lambda row: [999, *row["teacher_input_ids"][1:]]
    ),
    "teacher_prompt, a row too long for the teacher": changed(
        teacher_input_ids=lambda row: [3] * 40 + row["teacher_input_ids"],
        teacher_labels=lambda row: [-100] * 40 + row["teacher_labels"],
    ),
    "teacher_prompt, rows tokenised too long for the teacher": run(
        data=rows(4).map(
            lambda row: {
                "teacher_input_ids": [3] * 40 + row["teacher_input_ids"],
                "teacher_labels": [-100] * 40 + row["teacher_labels"],
                "teacher_length": 40 + row["teacher_length"],
            }
        )
    ),
    "teacher_prompt, hidden_mse": run(objective="kd + hidden_mse(layers={0: 0})"),
    "teacher_prompt, another collator": run(data_collator=DataCollatorForSeq2Seq(tokenizer(), padding=True)),
    "teacher_prompt, evaluate_kl without": run(args={"evaluate_kl": True}, scored=rows(4).remove_columns(TEACHERS)),
    "teacher_prompt, an encoder-decoder": run(networks=(t5(8), t5(16))),
    "teacher_prompt, a stored teacher": stored,
    "teacher_prompt, build_text_cache": store,
    "teacher_prompt, pack_rows": lambda folder: lambda: pack_rows(rows(4), 24),
    "teacher_prompt, generated responses": lambda folder: lambda: read_prompts(texts(4), tokenizer()),
    "teacher_prompt, on_policy and no room": run(
        args={"on_policy": 1.0, "on_policy_max_new_tokens": 25}, ce_weight=0.0
    ),
    "teacher_prompt, an instruction": tokenise({"instruction": "a", "response": "b", "teacher_prompt": "c"}),
    "teacher_prompt, turns beside a text": tokenise(
        {"prompt": "a", "completion": "b", "teacher_prompt": [{"role": "user", "content": "c"}]}
    ),
    "teacher_prompt, an empty text": tokenise({"prompt": "a", "completion": "b", "teacher_prompt": ""}),
    "teacher_prompt, TRL's column in its place": tokenise(
        {"prompt": "a", "completion": "b", "privileged_context": "c"}
    ),
    "teacher_prompt, turns with the answer": tokenise(
        {
            "messages": [{"role": "user", "content": "a"}, ANSWER],
            "teacher_prompt": [{"role": "user", "content": "c"}, ANSWER],
        }
    ),
    "teacher_prompt, teacher_max_length=1": tokenise(
        {"prompt": "a", "completion": "b", "teacher_prompt": "c"}, teacher_max_length=1
    ),
}
