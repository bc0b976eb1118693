"""From rows to a batch: each task's own collator, and those that a user brings."""

import pytest
import torch
from task_toys import KINDS, LONG, PAD, VOCAB, bert, gpt2, t5, tokenizer
from text_tokenizer import word_tokenizer
from toys import arguments
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Wav2Vec2FeatureExtractor,
)

from hfkd import DistillationTrainer
from hfkd.utils.targets import IGNORED

TEXTS = [name for name, kind in KINDS.items() if kind.tokenizer and kind.collate is None]
LABELS_ONLY = {"ce_weight": 1.0, "kd_weight": 0.0}


def trainer(folder, student, rows, teacher=None, words=None, collate=None, **settings):
    weights = {} if teacher is not None else LABELS_ONLY
    given = {"processing_class": words, "data_collator": collate}
    return DistillationTrainer(
        student,
        teacher,
        arguments(folder, **(weights | {"max_steps": 1, "evaluate_teacher": False} | settings)),
        train_dataset=rows,
        **{name: value for name, value in given.items() if value is not None},
    )


def like(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", TEXTS)
def test_rows_of_unequal_length_and_what_else_a_dataset_has(tmp_path, name):
    """Words reach no padding, `label` is `labels`, and padding changes no loss."""
    kind = KINDS[name]
    plain = kind.rows()
    rows = [{"text": "a b", "title": [["x"]], **row, "index": i} for i, row in enumerate(plain)]
    if kind.task != "causal_lm":  # whose rows have one label a token, always called so
        rows = [{"label" if k == "labels" else k: v for k, v in row.items()} for row in rows]
    made = trainer(tmp_path, kind.network(), rows, words=tokenizer())
    batch = made.data_collator(rows)
    assert batch["input_ids"].shape[1] == LONG == max(len(row["input_ids"]) for row in plain)
    assert {"labels", "index", "attention_mask"} <= batch.keys()
    assert batch.keys() <= {"labels", "index", "attention_mask", "input_ids", "position_ids", "host_targets"}
    for row, ids, mask, labels in zip(plain, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        n = len(row["input_ids"])
        assert ids[:n].tolist() == row["input_ids"]
        assert ids[n:].eq(PAD).all()
        assert mask.tolist() == [1] * n + [0] * (LONG - n)
        found = labels[: len(row["labels"])] if isinstance(row["labels"], list) else labels
        assert found.tolist() == row["labels"]
        assert labels[len(found) :].eq(IGNORED).all() if found.ndim else True
    made.train()


def test_a_stored_dataset_of_unequal_rows_trains(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    kind = KINDS["BERT, a label a row"]
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes", "so"]), "input_ids": Sequence(Value("int32"))}
    )
    rows = kind.rows()
    columns = {"text": ["x"] * 8, "label": [r["labels"] for r in rows], "input_ids": [r["input_ids"] for r in rows]}
    made = trainer(tmp_path, kind.network(), Dataset.from_dict(columns, features), words=tokenizer())
    assert made.class_names == ("no", "yes", "so")
    made.train()
    made.save_model()
    assert made.model.config.id2label == {0: "no", 1: "yes", 2: "so"}


def test_a_teachers_further_inputs_reach_it(tmp_path):
    """DistilBERT has no token types, and its teacher has: pairs of sentences are told apart by them."""
    kind, ids = KINDS["DistilBERT, masked"], [3, 4, 5, 6]
    rows = [{"input_ids": ids, "token_type_ids": [0, 0, 1, 1], "labels": ids[::-1]}] * 4
    teacher = KINDS["BERT, masked"].network(16, 1)
    made = trainer(tmp_path, kind.network(), rows, teacher, tokenizer())
    batch = made.data_collator(rows)
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1]] * 4
    seen = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask")}
    with torch.no_grad():
        wanted, without = teacher(**seen).logits, teacher(input_ids=batch["input_ids"]).logits
    assert not torch.allclose(wanted, without)
    torch.testing.assert_close(made.teacher(**batch), wanted)


# ---- without a tokenizer ----------------------------------------------------------------------------------------


def test_a_causal_models_rows_need_no_tokenizer(tmp_path):
    rows = KINDS["GPT-2"].rows()
    made = trainer(tmp_path, gpt2(8), rows, gpt2(16))
    batch = made.data_collator(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (8, LONG)
    assert batch["labels"][batch["attention_mask"] == 0].eq(IGNORED).all()
    made.train()


def test_sound_is_padded_by_the_feature_extractor(tmp_path):
    kind = KINDS["Wav2Vec2"]
    rows = [{"input_values": torch.randn(80 - 8 * i).tolist(), "label": i % 3, "path": "a.wav"} for i in range(4)]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    made = trainer(tmp_path, kind.network(dtype=torch.float32), rows, words=extractor)
    batch = made.data_collator(rows)
    assert batch["input_values"].shape == (4, 80)
    assert batch["attention_mask"].sum(-1).tolist() == [80, 72, 64, 56]
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    made.train()


@pytest.mark.parametrize("name", [n for n in TEXTS if KINDS[n].task != "causal_lm"])
def test_other_rows_of_unequal_length_are_refused_without_one(tmp_path, name):
    kind = KINDS[name]
    with pytest.raises(ValueError, match="pass (it|the tokenizer) as processing_class, or pass a data_collator"):
        trainer(tmp_path / "run", kind.network(), kind.rows())
    assert not (tmp_path / "run").exists()


def test_rows_that_are_not_tokenised_are_refused(tmp_path):
    rows = [{"text": "a b", "label": 0}] * 4
    with pytest.raises(
        ValueError, match=r"with columns \['label', 'text'\], cannot be collated to a batch with .*tokenise the d"
    ):
        trainer(tmp_path / "run", bert(BertForSequenceClassification)(8), rows, words=tokenizer())
    for network in (bert(BertForTokenClassification), bert(BertForMaskedLM), t5, gpt2):
        with pytest.raises(ValueError, match="tokenise (the dataset|them)"):
            trainer(tmp_path / "run", network(8), [{"text": "a b", "labels": [0, 1]}] * 4, words=tokenizer())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*TEXTS, "ViT", "AST"])
def test_rows_without_labels_are_refused(tmp_path, name):
    kind = KINDS[name]
    if kind.task in ("masked_lm", "causal_lm"):
        pytest.skip("masked anew, or their tokens are learned")
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in kind.rows()]
    with pytest.raises(ValueError, match="labels"):
        trainer(tmp_path / "run", kind.network(), rows, kind.network(16), kind.tokenizer and tokenizer(), ce_weight=0.1)
    assert not (tmp_path / "run").exists()


# ---- masks ------------------------------------------------------------------------------------------------------


def test_rows_without_labels_are_masked_anew(tmp_path):
    rows = [{"input_ids": torch.randint(3, VOCAB, (LONG,)).tolist()} for _ in range(32)]
    made = trainer(tmp_path, bert(BertForMaskedLM)(8), rows, words=tokenizer())
    first, second = made.data_collator(rows), made.data_collator(rows)
    ids = torch.tensor([row["input_ids"] for row in rows])
    assert not torch.equal(first["labels"], second["labels"])
    chosen = first["labels"] != IGNORED
    assert torch.equal(first["labels"][chosen], ids[chosen])
    assert torch.equal(first["input_ids"][~chosen], ids[~chosen])
    assert 0.05 < chosen.float().mean() < 0.3
    assert (first["input_ids"][chosen] == tokenizer().mask_token_id).float().mean() > 0.5
    assert first["host_targets"].position.tolist() == chosen.flatten().nonzero().flatten().tolist()
    made.train()


def test_no_mask_token_is_needed_for_rows_with_labels(tmp_path):
    rows, words = KINDS["BERT, masked"].rows(), word_tokenizer(pad_token="<end>")
    trainer(tmp_path, bert(BertForMaskedLM)(8), rows, words=words).train()
    rows = [{"input_ids": row["input_ids"]} for row in rows]
    with pytest.raises(ValueError, match="the tokenizer has no mask token to create them"):
        trainer(tmp_path, bert(BertForMaskedLM)(8), rows, words=words)


# ---- a user's own -----------------------------------------------------------------------------------------------


def unlabelled(rows):
    return [{"input_ids": row["input_ids"]} for row in rows]


@pytest.mark.parametrize(
    ("name", "collator"),
    [
        ("BERT, a label a row", DataCollatorWithPadding),
        ("BERT, several labels", DataCollatorWithPadding),
        ("BERT, a label a token", DataCollatorForTokenClassification),
        ("T5", DataCollatorForSeq2Seq),
        ("BART", DataCollatorForSeq2Seq),
        ("Llama", DataCollatorForSeq2Seq),
    ],
)
def test_transformers_collators_are_taken_as_they_are(tmp_path, name, collator):
    """Their batches reach the networks unchanged; `host_targets` is for the loss alone."""
    kind = KINDS[name]
    rows, collate = kind.rows(), collator(tokenizer(), pad_to_multiple_of=8)
    made = trainer(tmp_path, kind.network(), rows, collate=collate)
    assert made.task.name == kind.task
    batch = dict(made.data_collator(rows))
    batch.pop("host_targets", None)
    like(batch, collate(rows))
    made.train()


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_decoder_inputs_that_a_collator_makes_are_the_models_own(tmp_path, name):
    """Those that DataCollatorForSeq2Seq(model=) makes are left out for each network's own: the same step."""
    kind, losses, steps = KINDS[name], [], []
    for model in (True, False):
        student, teacher = kind.pair()
        collate = DataCollatorForSeq2Seq(tokenizer(), model=student if model else None)
        made = trainer(tmp_path / str(model), student, kind.rows(), teacher, collate=collate)
        assert "decoder_input_ids" not in made.data_collator(kind.rows())
        losses.append(made.train().training_loss)
        steps.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(steps[0], steps[1])


def test_a_causal_models_collator_without_masks(tmp_path):
    rows = unlabelled(KINDS["GPT-2"].rows())
    collate = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    made = trainer(tmp_path, gpt2(8), rows, gpt2(16), collate=collate)
    batch = dict(made.data_collator(rows))
    batch.pop("host_targets")
    like(batch, collate(rows))
    made.train()


class Shifted:
    """Positions that start at 3, and a token in the middle that nothing attends to."""

    def __call__(self, rows):
        ids = torch.tensor([row["input_ids"][:5] for row in rows])
        mask = torch.tensor([[1, 1, 0, 1, 1]] * len(rows))
        return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(3, 8).expand(len(rows), -1)} | {
            "labels": ids.flip(-1)
        }


@pytest.mark.parametrize("build", [gpt2, bert(BertForMaskedLM)], ids=["causal", "masked"])
def test_positions_and_masks_of_a_collator_are_kept(tmp_path, build):
    rows, student, calls = KINDS["GPT-2"].rows(), build(8), []
    student.register_forward_pre_hook(lambda _, args, given: calls.append(given), with_kwargs=True)
    made = trainer(tmp_path, student, rows, collate=Shifted(), remove_unused_columns=False)
    calls.clear()
    made.train()
    for given in calls:
        assert torch.equal(given["position_ids"], torch.arange(3, 8).expand(8, -1))
        assert torch.equal(given["attention_mask"], torch.tensor([[1, 1, 0, 1, 1]] * 8))


def test_positions_beside_pictures_are_the_networks_own(tmp_path):
    """Rows padded at their start: a network that reads pictures counts by itself, maybe in several dimensions."""
    kind = KINDS["LLaVA"]

    def left(rows):
        batch = kind.collate(rows)
        return {
            k: torch.stack([x.roll(int((m == 0).sum()), 0) for x, m in zip(v, batch["attention_mask"], strict=True)])
            if v.ndim == 2
            else v
            for k, v in batch.items()
        }

    made = trainer(tmp_path, kind.network(dtype=torch.float32), kind.rows(), collate=left)
    assert "position_ids" not in made.data_collator(kind.rows())
