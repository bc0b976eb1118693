"""Rows as scripts for Trainer have them: each is trained on as it means, or refused in words."""

import datasets
import numpy as np
import pytest
import task_toys
import torch
from PIL import Image
from task_toys import gpt2, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    ViTImageProcessor,
)

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator
from hfkd.data.text import tokenize_dataset

STATISTICS = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def pictures(count=8, size=8):
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def processor():
    return ViTImageProcessor(size={"height": 8, "width": 8}, **STATISTICS)


def trainer(folder, rows, student=None, taught=None, **keywords):
    taught = teacher() if taught is None else taught
    return DistillationTrainer(student or Net(), taught, arguments(folder), train_dataset=rows, **keywords)


# ---- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, processor()], ids=["no processor", "the processor"])
@pytest.mark.parametrize("batched", [True, False])
def test_pixels_that_a_processor_made_and_a_dataset_stored(tmp_path, batched, given):
    """As transformers' tutorial for images, by map: nested lists [3, H, W], which are processed once."""
    make, images = processor(), pictures()

    def batches(rows):
        return {"pixel_values": make(rows["image"], return_tensors="np")["pixel_values"]}

    def one(row):
        return {"pixel_values": make(row["image"], return_tensors="np")["pixel_values"]}  # [1, 3, H, W]

    stored = datasets.Dataset.from_dict({"image": images, "labels": [i % CLASSES for i in range(8)]})
    stored = stored.cast_column("image", datasets.Image())
    rows = stored.map(batches if batched else one, batched=batched, remove_columns="image")
    made = trainer(tmp_path, rows, processing_class=given)
    batch = next(iter(made.get_train_dataloader()))
    expected = make(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        batch["pixel_values"].sum((1, 2, 3)).sort().values, expected.sum((1, 2, 3)).sort().values
    )
    assert batch["pixel_values"].shape == (8, 3, 8, 8)


def test_arrays_of_floats_have_their_channels_first():
    pixels = np.random.default_rng(0).random((2, 3, 5, 4), dtype=np.float32)
    for image in (pixels, pixels.astype(np.float64), pixels.tolist()):
        batch = ImageCollator()([{"pixel_values": one, "labels": 0} for one in image])
        torch.testing.assert_close(batch["pixel_values"], torch.tensor(pixels))
    last = ImageCollator()([{"pixel_values": pixels[0].transpose(1, 2, 0), "labels": 0}])
    torch.testing.assert_close(last["pixel_values"][0], torch.tensor(pixels[0]))


def test_grey_pictures_among_others_are_rgb_for_a_network_of_three_channels(tmp_path):
    images = [picture.convert("L") if i % 3 == 0 else picture for i, picture in enumerate(pictures())]
    rows = [{"pixel_values": image, "labels": i % CLASSES} for i, image in enumerate(images)]
    made = trainer(tmp_path, rows)
    made.train()
    batch = made.data_collator(rows[:2])["pixel_values"]
    assert batch.shape == (2, 3, 8, 8)
    assert torch.equal(batch[0, 0], batch[0, 2])
    assert ImageCollator(channels=1)(rows[:1])["pixel_values"].shape[1] == 1


def test_pairs_of_image_and_label(tmp_path):
    """As torchvision's ImageFolder gives them, before and after ToTensor."""
    pairs = [(row["pixel_values"], row["labels"]) for row in map(Rows().__getitem__, range(16))]
    of_pairs, of_rows = (trainer(tmp_path / name, rows) for name, rows in (("a", pairs), ("b", Rows(16))))
    of_pairs.train(), of_rows.train()
    for one, other in zip(of_pairs.model.parameters(), of_rows.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    trainer(tmp_path / "c", [(picture, 1) for picture in pictures()])


def test_rows_to_predict_need_no_labels(tmp_path):
    made = trainer(tmp_path, Rows())
    found = made.predict([{"pixel_values": image} for image in Rows(13).images])
    assert found.predictions.shape == (13, CLASSES)
    assert found.label_ids is None
    expected = made.predict(Rows(13)).predictions
    np.testing.assert_allclose(found.predictions, expected)


def test_labels_to_learn_are_needed(tmp_path):
    bare = [{"pixel_values": image} for image in Rows().images]
    for rows, eval_rows, which in ((bare, None, "training rows"), (Rows(), bare, "rows of eval_dataset")):
        with pytest.raises(ValueError, match=f"the {which} have no labels"):
            trainer(tmp_path, rows, eval_dataset=eval_rows)


class Labelled(Rows):
    def __init__(self, label, count=16):
        super().__init__(count)
        self.label = label

    def __getitem__(self, i):
        return super().__getitem__(i) | {"labels": self.label}


@pytest.mark.parametrize(
    ("label", "message"), [(-1, "eval_dataset: the labels are all -1"), (5, "eval_dataset: labels run from 5 to 5")]
)
def test_labels_of_an_evaluation_set_are_looked_at_before_training(tmp_path, label, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, Rows(), eval_dataset=Labelled(label))


def test_inputs_for_metrics(tmp_path):
    """`include_for_metrics` of a network that does not say which input is its main one."""
    args = arguments(tmp_path, include_for_metrics=["inputs"])
    made = DistillationTrainer(
        Net(), teacher(), args, eval_dataset=Rows(13), compute_metrics=lambda found: {"seen": len(found.inputs)}
    )
    assert made.evaluate()["eval_seen"] == 13
    assert not hasattr(made.model, "main_input_name")


# ---- tokens -----------------------------------------------------------------------------------------------------

SHORT = {"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}


def test_rows_without_labels_learn_their_tokens(tmp_path):
    """As TRL has it: all of them, or those of the completion."""
    ids = [3, 4, 5, 6]
    made = trainer(
        tmp_path, [{"input_ids": ids, "completion_mask": [0, 0, 1, 1]}, {"input_ids": ids}] * 8, gpt2(8), gpt2(8)
    )
    batch = made.data_collator([{"input_ids": ids, "completion_mask": [0, 0, 1, 1]}, {"input_ids": ids}])
    assert batch["labels"].tolist() == [[-100, -100, 5, 6], ids]
    made.train()
    with pytest.raises(ValueError, match="completion_mask has 1 values for a row of 4 tokens"):
        made.data_collator([{"input_ids": ids, "completion_mask": [1]}])


@pytest.mark.parametrize("columns", [("text",), ("prompt", "completion")])
def test_rows_that_are_texts_are_tokenised(tmp_path, columns, caplog):
    rows = datasets.Dataset.from_list([dict.fromkeys(columns, "a b c one two")] * 8)
    made = trainer(tmp_path, rows, gpt2(8), gpt2(8), processing_class=tokenizer(), eval_dataset={"dev": rows})
    row = made.train_dataset[0]
    prompt = 0 if columns == ("text",) else 5
    assert [label != -100 for label in row["labels"]] == [False] * prompt + [True] * (len(row["input_ids"]) - prompt)
    assert "max_length=32, max_prompt_length=31" in caplog.text
    made.train()
    made.evaluate()


@pytest.mark.parametrize("text", [True, False])
def test_labels_that_are_words_are_told_how_to_become_ids(tmp_path, text):
    classifier = task_toys.bert(BertForSequenceClassification)
    rows = [{"input_ids": [3, 4], "label": "cat"}] if text else [{"pixel_values": Rows().images[0], "label": "cat"}]
    networks = (classifier(8), classifier(8)) if text else (Net(), teacher())
    with pytest.raises(ValueError, match=r"the labels are strings, such as 'cat': .*class_encode_column\('label"):
        trainer(tmp_path, rows * 8, *networks, processing_class=tokenizer() if text else None)


def test_a_row_longer_than_a_table_of_positions_is_named(tmp_path):
    long = {"input_ids": [3] * 40, "labels": [3] * 40}
    message = r"a row has 40 tokens, but GPT2LMHeadModel has 32 positions: truncate the rows to 32 tokens"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [long] * 8, gpt2(8), gpt2(8))
    late = trainer(tmp_path, [SHORT] * 8 + [long] * 8, gpt2(8), gpt2(8))
    with pytest.raises(ValueError, match=message):
        late.train()


def test_a_padding_token_that_no_network_knows_is_named(tmp_path):
    words = tokenizer()
    words.add_special_tokens({"pad_token": "<new>"})
    short = {"input_ids": [3, 4], "labels": [3, 4]}
    with pytest.raises(
        ValueError,
        match=r"token id 14 in the first rows, or in their padding, is out of range: GPT2LMHeadModel has "
        "embeddings for 14 tokens",
    ):
        trainer(tmp_path, [SHORT, short] * 4, gpt2(8), gpt2(8), processing_class=words)


def test_a_stream_is_not_tokenised_in_words():
    stream = datasets.Dataset.from_list([{"text": "a b"}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="of type IterableDataset: pass one split .*from_generator"):
        tokenize_dataset(stream, tokenizer())


def test_batch_values_that_are_no_tensors(tmp_path):
    """The padding-free collator's maximal lengths are plain numbers."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    llama = task_toys.LlamaForCausalLM(task_toys.LlamaConfig(**task_toys.decoder(8)))
    made = trainer(tmp_path, [SHORT] * 16, llama, gpt2(8), data_collator=collator)
    made.train()
    assert made.state.global_step == 3


def test_each_decoder_starts_with_its_own_token(tmp_path):
    """`DataCollatorForSeq2Seq(model=student)` makes decoder inputs with the student's start."""
    student, taught = task_toys.bart(8), task_toys.bart(8)
    taught.load_state_dict(student.state_dict())
    taught.config.decoder_start_token_id = 2
    rows = [{"input_ids": [3, 4, 5], "labels": [4, 5, 6]}] * 16
    collator = DataCollatorForSeq2Seq(tokenizer(), model=student)
    made = trainer(tmp_path, rows, student, taught, data_collator=collator)
    batch = made.data_collator(rows[:2])
    assert "decoder_input_ids" not in batch
    with torch.no_grad():
        given = made.teacher(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
        expected = taught(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    torch.testing.assert_close(given, expected)


def test_rows_to_predict_are_not_masked(tmp_path):
    bert = task_toys.bert(BertForMaskedLM)
    rows = [{"input_ids": [3, 4, 5, 6, 7, 8] * 2}] * 8
    made = trainer(tmp_path, rows, bert(8), bert(16), processing_class=tokenizer())
    batch = next(iter(made.get_test_dataloader(rows)))
    assert batch["input_ids"].tolist() == [row["input_ids"] for row in rows]
    first, again = (made.predict(rows).predictions for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_masking_whole_words_needs_to_know_them(tmp_path):
    bert = task_toys.bert(BertForMaskedLM)
    whole = {"whole_word_mask": True, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    collator = DataCollatorForLanguageModeling(tokenizer(), **whole)
    rows = [{"input_ids": [3, 4, 5, 6], "offset_mapping": [[0, 1], [2, 3], [4, 5], [6, 7]]}] * 8
    trainer(tmp_path, rows, bert(8), bert(16), data_collator=collator).train()
    with pytest.raises(ValueError, match="whole_word_mask=True needs the column offset_mapping"):
        trainer(tmp_path, [{"input_ids": [3, 4, 5, 6]}] * 8, bert(8), bert(16), data_collator=collator)


@pytest.mark.parametrize("column", ["ner_tags", "labels"])
def test_names_of_the_words_classes_reach_the_students_config(tmp_path, column):
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {column: datasets.List(datasets.ClassLabel(names=names)), "input_ids": datasets.List(datasets.Value("int64"))}
    )
    stored = {"input_ids": [[3, 4, 5, 6]] * 8, column: [[0, 1, 2, 0]] * 8}
    rows = datasets.Dataset.from_dict(stored, features)
    if column != "labels":
        rows = rows.map(lambda row: {"labels": [-100, 0, 1, 1]}, remove_columns=[])
    bert = task_toys.bert(BertForTokenClassification)
    made = trainer(tmp_path, rows, bert(8), bert(16), processing_class=tokenizer())
    made.train()
    assert made.model.config.id2label == dict(enumerate(names))
