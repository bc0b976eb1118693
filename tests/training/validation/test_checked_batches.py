"""A label or a token id that no network knows is named with its row, wherever it comes, before any network sees it."""

import pytest
import torch
from datasets import Dataset
from text_toys import VOCAB, TokenRows, language_model, taught_model, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import ViTConfig, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator


class Wrong(Rows):
    """A plain dataset whose row 20 has another label, with or without an index."""

    def __init__(self, label, index=False):
        super().__init__()
        self.labels[20] = label
        self.index = index

    def __getitem__(self, i):
        return super().__getitem__(i) | ({"index": i} if self.index else {})


def image_run(folder, rows, **keywords):
    given = {"train_dataset": rows, "eval_dataset": Rows(8)} | keywords
    settings = given.pop("settings", {})
    return DistillationTrainer(Net(), teacher(), arguments(folder, max_steps=8, **settings), **given)


NONE = rf"is out of range: the student has {CLASSES} classes \(0 to {CLASSES - 1}\); give it more labels"


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("label", "message"), [(CLASSES, rf"the label {CLASSES} of row 20 {NONE}"), (-1, f"the label -1 of row 20 {NONE}")]
)
def test_a_label_out_of_range_is_named_with_its_row(tmp_path, label, message, index, workers):
    run = image_run(tmp_path, Wrong(label, index), settings={"dataloader_num_workers": workers})
    with pytest.raises(ValueError, match=message):
        run.train()


@pytest.mark.parametrize("own", [True, False])
def test_an_image_without_a_label_is_refused_where_nothing_else_teaches_it(tmp_path, own):
    labels_alone = {"settings": {"ce_weight": 1.0, "kd_weight": 0.0}}
    collator = labels_alone | ({"data_collator": lambda rows: ImageCollator()(rows)} if own else {})
    with pytest.raises(ValueError, match="row 20 has the label -100, which means no label"):
        image_run(tmp_path, Wrong(-100), **collator).train()
    first = Rows()
    first.labels[0] = -100
    with pytest.raises(ValueError, match="-100"):
        image_run(tmp_path, first, **labels_alone)


def test_evaluation_refuses_and_prediction_lets_rows_without_a_label_pass(tmp_path):
    run = image_run(tmp_path, Rows())
    with pytest.raises(ValueError, match="row 20 has the label -100"):
        run.evaluate(Wrong(-100))
    assert run.predict(Wrong(-100)).predictions.shape == (32, CLASSES)
    with pytest.raises(ValueError, match=f"the label {CLASSES} of row 20"):
        run.predict(Wrong(CLASSES))


def test_a_stream_names_the_row_of_its_batch(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            rows = Wrong(CLASSES)
            return (rows[i] for i in range(32))

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=CLASSES))
    run = DistillationTrainer(student, teacher(), arguments(tmp_path), train_dataset=Stream())
    with pytest.raises(ValueError, match=f"the label {CLASSES} of row 4 of a batch {NONE}"):
        run.train()


def test_the_trainers_collator_stays_the_callers_and_losses_what_they_were(tmp_path):
    collator = ImageCollator()
    run = image_run(tmp_path, Rows(), data_collator=collator)
    run.train()
    assert run.data_collator is collator
    assert run.evaluate()["eval_loss"] > 0


# ---- tokens ----------------------------------------------------------------------------------------------------------


def text_run(folder, rows, taught=None):
    return DistillationTrainer(
        language_model(), taught or taught_model(), arguments(folder), train_dataset=rows, processing_class=tokenizer()
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("labels", VOCAB, rf"the label {VOCAB} of row 20 is out of range: the student has {VOCAB} classes"),
        ("labels", -1, "the label -1 of row 20 is out of range"),
        (
            "input_ids",
            VOCAB,
            rf"token id {VOCAB} of row 20 is out of range: both networks have embeddings for {VOCAB} tokens",
        ),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_token_out_of_range_is_named_with_its_row(tmp_path, plain, column, value, message):
    rows = TokenRows()
    rows.rows[20][column][-1] = value
    with pytest.raises(ValueError, match=message):
        text_run(tmp_path, rows if plain else Dataset.from_list(rows.rows)).train()


def test_ids_that_only_the_student_has_are_refused_before_the_teacher_sees_them(tmp_path):
    rows = TokenRows()
    rows.rows[20]["input_ids"][-1] = VOCAB + 1
    wide = language_model(vocab=VOCAB + 8)
    args = arguments(tmp_path)
    run = DistillationTrainer(wide, taught_model(), args, train_dataset=rows, processing_class=tokenizer())
    with pytest.raises(
        ValueError, match=rf"token id {VOCAB + 1} of row 20 is out of range: both networks have embeddings for {VOCAB}"
    ):
        run.train()


def test_targets_that_are_ignored_are_no_labels(tmp_path):
    text_run(tmp_path, TokenRows()).train()
