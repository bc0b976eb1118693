"""Labels that stand in another place than the task reads them from, or that a copy of the input would get right."""

import logging

import pytest
import torch
from datasets import Dataset
from task_toys import KINDS, PAD
from text_toys import VOCAB, language_model, token_dataset, tokenizer
from toys import arguments
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    default_data_collator,
)

from hfkd import DistillationTrainer

TOKENS = [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 3]] * 8
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert(kind, **keywords):
    torch.manual_seed(0)
    return kind(BertConfig(vocab_size=VOCAB, **SMALL, **keywords))


def masking_tokenizer():
    made = tokenizer()
    made.add_special_tokens({"pad_token": "<end>", "mask_token": "<unk>"})
    return made


def trainer(folder, student, rows, collator=None, **keywords):
    args = arguments(folder, ce_weight=1, kd_weight=0, max_steps=1)
    return DistillationTrainer(student, None, args, train_dataset=rows, data_collator=collator, **keywords)


def copied():
    """Rows as the tutorials' group_texts makes them."""
    return Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in TOKENS])


@pytest.mark.parametrize("kind", ["hfkd's", "mlm=False", "of the user's own"])
def test_a_masked_language_model_is_not_trained_to_copy_its_input(tmp_path, kind):
    known = masking_tokenizer()
    collator = {
        "hfkd's": None,
        "mlm=False": DataCollatorForLanguageModeling(known, mlm=False),
        "of the user's own": lambda rows: default_data_collator(rows),
    }[kind]
    with pytest.raises(
        ValueError, match="all of the 12 labels of the first rows equal the tokens .* nothing is masked"
    ):
        trainer(tmp_path, bert(BertForMaskedLM), copied(), collator, processing_class=known)


def test_it_is_where_a_collator_masks_or_the_labels_are_left_out(tmp_path):
    known = masking_tokenizer()
    masking = DataCollatorForLanguageModeling(known, mlm_probability=0.5)
    for number, (rows, collator) in enumerate(((copied(), masking), (copied().remove_columns("labels"), None))):
        made = trainer(tmp_path / str(number), bert(BertForMaskedLM), rows, collator, processing_class=known)
        made.train()
        assert made.state.log_history[0]["ce"] > 1


def test_labels_of_words_are_not_taken_for_those_of_tokens(tmp_path):
    rows = Dataset.from_list([{"input_ids": ids, "labels": [0, 1, 1]} for ids in TOKENS])
    known = masking_tokenizer()
    for collator in (None, DataCollatorForTokenClassification(known)):
        with pytest.raises(ValueError, match="row 0 has 3 labels for 6 tokens: align labels with tokens"):
            trainer(tmp_path, bert(BertForTokenClassification), rows, collator, processing_class=known)

    def aligned(rows):  # a collator that knows which word a token is of
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows]).repeat_interleave(2, 1)}

    trainer(tmp_path, bert(BertForTokenClassification), rows, aligned).train()


def test_labels_that_are_the_next_tokens_already_are_not_shifted_again(tmp_path):
    rows = Dataset.from_list([{"input_ids": ids[:-1], "labels": ids[1:]} for ids in TOKENS])
    with pytest.raises(ValueError, match="each label of the first rows is the token at the next position"):
        trainer(tmp_path, language_model(), rows)


def test_a_causal_model_whose_inputs_are_masked_is_warned_of(tmp_path, caplog):
    def warned():
        return [r.getMessage() for r in caplog.records if r.name == "hfkd.tasks.causal_lm"]

    trainer(tmp_path / "plain", language_model(), token_dataset())
    assert warned() == []
    masking = DataCollatorForLanguageModeling(masking_tokenizer(), mlm_probability=0.9)
    trainer(tmp_path / "masked", language_model(), copied(), masking)
    assert [r.levelno for r in caplog.records if r.name == "hfkd.tasks.causal_lm"] == [logging.WARNING]
    assert "check that the collator is not one for masked language modelling (mlm=True)." in warned()[0]


SPOKEN = KINDS["Whisper"].rows()
PICTURES = KINDS["LLaVA"].rows()
TRANSLATED = KINDS["T5"].rows()
START, PADS = 3, [PAD] * 4  # of those networks
WARNED = {
    "the decoder's start": ("Whisper", [row | {"labels": [START, *row["labels"]]} for row in SPOKEN], "write it twice"),
    "padding": ("T5", [row | {"labels": row["labels"] + PADS} for row in TRANSLATED], "up to 4 at an end of a row"),
    "padding of a decoder": (
        "Llama",
        [{"input_ids": row["input_ids"] + PADS, "labels": row["input_ids"] + PADS} for row in TRANSLATED],
        "up to 4 at an end of a row",
    ),
    "a picture's patches": (
        "LLaVA",
        [row | {"labels": row["input_ids"]} for row in PICTURES],
        "8 labels of the first rows are token 2, which stands for other inputs than text (image_token_id",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_labels_that_no_network_should_write_are_warned_of(tmp_path, caplog, name):
    kind, rows, said = WARNED[name]
    kind = KINDS[kind]
    student, warner = kind.network(dtype=torch.float32), "hfkd.tasks.label_tokens"
    words = kind.tokenizer and kind.tokenizer()

    def warned(folder, its):
        caplog.clear()
        trainer(folder, student, its, kind.collate, processing_class=words)
        return [r.getMessage() for r in caplog.records if r.name == warner]

    assert warned(tmp_path / "right", kind.rows()) == []
    found = warned(tmp_path / "wrong", rows)
    assert len(found) == 1
    assert said in found[0]


def test_padding_that_a_mask_leaves_out_of_the_loss_is_not_warned_of(tmp_path, caplog):
    rows = [
        {"input_ids": row["input_ids"] + PADS, "attention_mask": [1] * len(row["input_ids"]) + [0] * len(PADS)}
        for row in TRANSLATED
    ]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    trainer(tmp_path, KINDS["Llama"].network(dtype=torch.float32), rows, processing_class=KINDS["Llama"].tokenizer())
    assert [r for r in caplog.records if r.name == "hfkd.tasks.label_tokens"] == []


def test_decoder_inputs_that_are_shifted_are_taken(tmp_path):
    rows = [row | {"decoder_input_ids": [PAD, *row["labels"][:-1]]} for row in TRANSLATED]
    rows = [{name: row[name][:2] for name in row} for row in rows]
    trainer(tmp_path, KINDS["T5"].network(dtype=torch.float32), rows, processing_class=KINDS["T5"].tokenizer()).train()


def test_rows_without_tokens_are_told_what_makes_them(tmp_path):
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(ValueError, match=r"no 'input_ids' but \['messages'\]: tokenise them"):
        trainer(tmp_path, language_model(), chats)


@pytest.mark.parametrize("given", ["hfkd's", "transformers'", "of the user's own"])
def test_labels_of_a_decoder_are_not_padded_at_their_start(tmp_path, given):
    kind, words = KINDS["T5"], KINDS["T5"].tokenizer()
    words.padding_side = "left"
    collate = {
        "hfkd's": None,
        "transformers'": DataCollatorForSeq2Seq(words),
        "of the user's own": lambda rows: dict(DataCollatorForSeq2Seq(words)(rows)),
    }[given]
    said = "begin with -100" if given == "of the user's own" else "pads rows on the left"
    with pytest.raises(ValueError, match=f"{said}.* generation never writes: pad labels on the right"):
        trainer(tmp_path, kind.network(), kind.rows(), collate, processing_class=words)
