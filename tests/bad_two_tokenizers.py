"""A student and a teacher with different tokenizers, and what they cannot have: entries for tests/bad_input.py."""

import torch
from datasets import Dataset
from text_tokenizer import word_tokenizer
from tokenizer_toys import byte_level, sentencepiece
from transformers import DataCollatorForSeq2Seq
from two_tokenizer_toys import rows, student, teacher, texts, trainer, vision_language

from hfkd.data.pack_rows import pack_rows
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.losses.logits import GOLD


def run(args=None, **keywords):
    return lambda folder: lambda: trainer(folder / "run", args=args, **keywords)


def own(name, **keywords):
    return run(**{name: rows(6).select_columns(["input_ids", "labels", "index"])}, **keywords)


def tokenise(completion, mine=byte_level, **keywords):
    data = Dataset.from_list([{"prompt": "Tell: ", "completion": completion}] * 2)
    return lambda folder: lambda: tokenize_for_both(data, mine(), sentencepiece(), **keywords)


def of_others():
    """The teacher's tokens are one further each."""
    return rows(6).map(lambda row: {"teacher_input_ids": [(token + 1) % 330 for token in row["teacher_input_ids"]]})


def of_images():
    return [{**row, "pixel_values": torch.zeros(3, 8, 8)} for row in rows(2)]


TWO_TOKENIZERS = {
    "two tokenizers, objective=kd": run(objective="kd"),
    "two tokenizers, objective=gold + kd": run(objective="gold + kd"),
    "two tokenizers, objective=gold + uld": run(objective="gold + uld"),
    "two tokenizers, late positions, loss_chunk_size=64": run({"loss_chunk_size": 64}, objective="gold(position='at')"),
    "two tokenizers, on_policy=1": run({"on_policy": 1.0}, ce_weight=0.0),
    "two tokenizers, evaluate_kl": run({"evaluate_kl": True}),
    "two tokenizers, two teachers": run(networks=(student(), [teacher(), teacher()])),
    "two tokenizers, temperature=learned(instance=True)": run(temperature="learned(instance=True)"),
    "two tokenizers, rows of one": own("train_dataset"),
    "two tokenizers, rows of both and no teacher_processing_class": run(teacher_processing_class=None),
    "two tokenizers, a stream of both and no teacher_processing_class": run(
        {"max_steps": 1}, teacher_processing_class=None, train_dataset=rows(6).to_iterable_dataset()
    ),
    "two tokenizers, rows made with another teacher's": run(train_dataset=of_others()),
    "two tokenizers, a stream of texts": run({"max_steps": 1}, train_dataset=texts(4).to_iterable_dataset()),
    "two tokenizers, rows without teacher_labels": run(train_dataset=rows(6).remove_columns("teacher_labels")),
    "two tokenizers, rows without labels": run(train_dataset=rows(6).remove_columns("labels")),
    "two tokenizers, labels cut alone": run(train_dataset=[{**row, "labels": row["labels"][1:]} for row in rows(2)]),
    "two tokenizers, rows that hold several documents": run(
        train_dataset=[{**row, "seq_lengths": [2, len(row["input_ids"]) - 2]} for row in rows(2)]
    ),
    "two tokenizers, rows padded already": run(
        train_dataset=[{**row, "attention_mask": [0, *[1] * (len(row["input_ids"]) - 1)]} for row in rows(2)]
    ),
    "two tokenizers, images beside the texts": run(
        networks=(student(), vision_language(len(sentencepiece()))), train_dataset=of_images()
    ),
    "two tokenizers, pack_rows": lambda folder: lambda: pack_rows(rows(4), 64),
    "two tokenizers, teacher_cache_dir": run({"teacher_cache_dir": "cache"}),
    "two tokenizers, objective=gold + hidden_cosine": run(objective="gold + hidden_cosine"),
    "two tokenizers, kd_weight=0": run(kd_weight=0.0),
    "one tokenizer, a stream of texts": run(
        {"max_steps": 1}, teacher_processing_class=byte_level(), train_dataset=texts(4).to_iterable_dataset()
    ),
    "two tokenizers, a collator of transformers": run(data_collator=DataCollatorForSeq2Seq(byte_level())),
    "one tokenizer, gold(position='at')": run(teacher_processing_class=byte_level(), objective="gold(position='at')"),
    "gold(matched=1)": lambda folder: lambda: GOLD(matched=1.0),
    "tokenize_for_both, a tokenizer of whole words": tokenise("a b", word_tokenizer),
    "tokenize_for_both, empty responses": tokenise(""),
    "tokenize_for_both, prompts that leave the teacher no room": tokenise("a", teacher_max_length=4),
    "tokenize_for_both, a list": lambda folder: lambda: tokenize_for_both([*texts(2)], byte_level(), sentencepiece()),
}
