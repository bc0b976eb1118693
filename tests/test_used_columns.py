"""Scripts of transformers' tutorials with the class swapped: rows keep the columns that they were made from."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from text_tokenizer import WORDS, word_tokenizer
from timm.data import Mixup
from toys import CLASSES, Net, Rows, arguments
from toys import teacher as net_teacher
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hfkd import DistillationTrainer

TOKENIZER = word_tokenizer(pad_token="<end>", mask_token="<unk>")
TEXTS = ["a b c", "you ask me one two", "answer", "d d d a b one", "me", "two three a", "b c d", "you"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(kind, seed=0, **keywords):
    torch.manual_seed(seed)
    return kind(BertConfig(vocab_size=len(WORDS), **SMALL, **keywords))


def t5(seed):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), decoder_start_token_id=1, pad_token_id=1, eos_token_id=1, **sizes)
    )


def labelled(texts):
    rows = {"text": texts, "label": [i % 2 for i in range(len(texts))], "id": [f"row {i}" for i in range(len(texts))]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "id": Value("string")})
    return Dataset.from_dict(rows, features=features)


def classified():
    return labelled(TEXTS).map(lambda rows: TOKENIZER(rows["text"], truncation=True, max_length=8), batched=True)


def tagged():
    def align(rows):
        made = TOKENIZER([words.split() for words in rows["text"]], is_split_into_words=True)
        made["labels"] = [[-100 if i == 0 else i % 3 for i in range(len(ids))] for ids in made["input_ids"]]
        return made | {"ner_tags": [[0] * n for n in range(1, len(TEXTS) + 1)]}

    return labelled(TEXTS).remove_columns("label").map(align, batched=True)


def summarised():
    made = classified()
    return made.map(lambda row: {"labels": [row["input_ids"][0], 1]})


TUTORIALS = {
    "text classification": (
        lambda seed: bert(BertForSequenceClassification, seed),
        classified,
        DataCollatorWithPadding(TOKENIZER),
    ),
    "token classification": (
        lambda seed: bert(BertForTokenClassification, seed, num_labels=3),
        tagged,
        DataCollatorForTokenClassification(TOKENIZER),
    ),
    "masked language modelling": (
        lambda seed: bert(BertForMaskedLM, seed),
        classified,
        DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.5),
    ),
    "summarisation": (t5, summarised, DataCollatorForSeq2Seq(TOKENIZER)),
}


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_texts_words_and_names_that_rows_keep_reach_no_collator_of_transformers(tmp_path, tutorial, unused):
    model, rows, collator = TUTORIALS[tutorial]
    data = {"train_dataset": rows(), "eval_dataset": rows(), "data_collator": collator}
    args = arguments(tmp_path, remove_unused_columns=unused, num_train_epochs=1, max_steps=-1)
    trainer = DistillationTrainer(model(0), model(1), args, processing_class=TOKENIZER, **data)
    trainer.train()
    assert trainer.state.global_step == 1
    if tutorial != "masked language modelling":  # whose masks are drawn anew
        batch = collator(
            [{k: row[k] for k in row.keys() - {"text", "id", "ner_tags", "label"}} | labels_of(row) for row in rows()]
        )
        with torch.no_grad():
            own = trainer.model.eval()(**batch).loss.item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(own, abs=1e-5)


def labels_of(row):
    return {"labels": row["labels"] if "labels" in row else row["label"]}


def test_a_dataset_is_given_to_its_transform_whole_where_unused_columns_are_to_go(tmp_path):
    rows = Rows()
    stored = Dataset.from_dict({"image": [x.tolist() for x in rows.images], "label": rows.labels.tolist()})

    def transform(batch):
        batch["pixel_values"] = [torch.tensor(image) for image in batch.pop("image")]
        return batch

    stored.set_transform(transform)
    losses = {}
    for unused in (False, True):
        args = arguments(tmp_path / str(unused), remove_unused_columns=unused)
        data = {"train_dataset": stored, "eval_dataset": stored, "data_collator": DefaultDataCollator()}
        trainer = DistillationTrainer(Net(), net_teacher(), args, **data)
        trainer.train()
        losses[unused] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses[False]) == 3
    assert losses[True] == losses[False]


def test_hfkds_own_collator_takes_a_label_for_labels(tmp_path):
    rows = Rows()
    named = [{"pixel_values": x, "label": int(y)} for x, y in zip(rows.images, rows.labels, strict=True)]
    found = []
    for data in (rows, named):
        trainer = DistillationTrainer(Net(), net_teacher(), arguments(tmp_path / str(len(found))), eval_dataset=data)
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]


def test_a_collator_of_the_users_own_gets_every_column_unless_told_otherwise(tmp_path):
    seen = set()

    class Mine(DataCollatorWithPadding):
        def __call__(self, rows):
            seen.update(rows[0])
            return super().__call__([{k: row[k] for k in ("input_ids", "attention_mask", "label")} for row in rows])

    student, data = bert(BertForSequenceClassification), classified()
    for unused in (False, True):
        seen.clear()
        args = arguments(tmp_path / str(unused), ce_weight=1, kd_weight=0, remove_unused_columns=unused)
        DistillationTrainer(student, None, args, train_dataset=data, data_collator=Mine(TOKENIZER)).train()
        assert ("text" in seen) is not unused


@pytest.mark.parametrize("collator", [None, DataCollatorWithPadding(TOKENIZER)])
def test_a_teacher_reads_what_its_student_does_not(tmp_path, collator):
    """DistilBERT knows no token types, which tell BERT where the second sentence begins."""
    data = classified().map(lambda row: {"token_type_ids": [i % 2 for i in range(len(row["input_ids"]))]})
    torch.manual_seed(0)
    student = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    )
    teacher, seen = bert(BertForSequenceClassification, 1), []
    teacher.bert.embeddings.token_type_embeddings.register_forward_pre_hook(lambda module, ids: seen.append(ids[0]))
    args = arguments(tmp_path, max_steps=1)
    DistillationTrainer(
        student, teacher, args, train_dataset=data, data_collator=collator, processing_class=TOKENIZER
    ).train()
    assert int(seen[-1].sum()) == sum(sum(row["token_type_ids"]) for row in data)


def mixing(rows):
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    images, labels = torch.stack([r["pixel_values"] for r in rows]), torch.tensor([r["labels"] for r in rows])
    return dict(zip(("pixel_values", "labels"), mixup(images, labels), strict=True))


def test_mixup_of_timm_as_the_collator_trains_on_its_shares(tmp_path):
    args = arguments(tmp_path, max_steps=1, ce_weight=1, kd_weight=0)
    trainer = DistillationTrainer(Net(), None, args, train_dataset=Rows(), data_collator=mixing)
    np.random.seed(1)
    batch = mixing([Rows()[i] for i in range(8)])
    ce = torch.nn.functional.cross_entropy(Net()(batch["pixel_values"]), batch["labels"])
    assert trainer.compute_loss(trainer.model.train(), batch).item() == pytest.approx(ce.item(), abs=1e-6)


def test_a_collator_that_mixes_what_is_scored_is_warned_of(tmp_path, caplog):
    for parts in ({"train_dataset": Rows()}, {"train_dataset": Rows(), "eval_dataset": {"seen": Rows()}}):
        DistillationTrainer(Net(), net_teacher(), arguments(tmp_path), data_collator=mixing, **parts)
        said = [r.getMessage() for r in caplog.records if "computed on mixed images" in r.getMessage()]
        assert len(said) == len(parts) - 1
    assert "labels of seen" in said[0]


@pytest.mark.parametrize(
    ("rows", "scored", "name", "remedy"),
    [(27, 8, "train_dataset", "dataloader_drop_last=True"), (32, 9, "eval_dataset", "score another number of rows")],
)
def test_an_odd_last_batch_for_such_a_collator_is_told_before_training(tmp_path, rows, scored, name, remedy):
    parts = {"train_dataset": Rows(rows), "eval_dataset": Rows(scored), "data_collator": mixing}
    with pytest.raises(ValueError, match=f"rows of {name} in batches of 8 leave a last batch of .*{remedy}"):
        DistillationTrainer(Net(), net_teacher(), arguments(tmp_path, max_steps=4), **parts)
    parts["eval_dataset"] = Rows(scored // 2 * 2)
    DistillationTrainer(
        Net(), net_teacher(), arguments(tmp_path, max_steps=4, dataloader_drop_last=True), **parts
    ).train()


def test_an_odd_last_batch_that_never_comes_is_none(tmp_path):
    """Three batches of 8 and one of 3: the loader makes a batch while the one before it is trained on."""
    parts = {"train_dataset": Rows(27), "data_collator": mixing}
    made = DistillationTrainer(Net(), net_teacher(), arguments(tmp_path, max_steps=2), **parts)
    assert made.train().global_step == 2
    for settings in ({"max_steps": 3}, {"max_steps": 2, "gradient_accumulation_steps": 2}):
        with pytest.raises(ValueError, match="leave a last batch of 3"):
            DistillationTrainer(Net(), net_teacher(), arguments(tmp_path, **settings), **parts)


def test_labels_of_another_name_would_leave_evaluation_without_a_loss(tmp_path):
    with pytest.raises(ValueError, match=r"label_names=\['label'\] must contain 'labels'"):
        arguments(tmp_path, label_names=["label"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(torch.zeros(3, 8, 8), 0, 1)] * 8, "rows are of type tuple: make each row a dict"),
        ([{"image": torch.zeros(3, 8, 8), "target": 0}] * 8, "have no 'pixel_values' but .'image', 'target'."),
        (
            [{"pixel_values": torch.zeros(3, 8, 8)}] * 8,
            "no labels .they have .'pixel_values'.., but ce_weight",
        ),
    ],
)
def test_rows_that_hfkds_collator_cannot_use_are_said(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        DistillationTrainer(Net(), net_teacher(), arguments(tmp_path), train_dataset=rows)


def test_what_a_users_collator_cannot_do_is_said_with_the_rows(tmp_path):
    with pytest.raises(
        ValueError, match=r"first rows of train_dataset, with columns \['labels', 'pixel_values'\] .*KeyE"
    ):
        DistillationTrainer(
            Net(), net_teacher(), arguments(tmp_path), train_dataset=Rows(), data_collator=lambda rows: rows[0]["image"]
        )
