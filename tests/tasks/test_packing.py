"""Packed, flattened and padded rows train as the same documents apart, or are refused when the trainer is built."""

import functools
import itertools
import logging

import pytest
import torch
from bad_training import opt
from datasets import Dataset
from text_toys import VOCAB, TokenRows, language_model, taught_model, tokenizer
from toys import arguments
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.teachers import CachedTextTeacher
from hfkd.teachers.token_cache.build import build_text_cache
from hfkd.utils.targets import IGNORED

DOCUMENTS = TokenRows(6, seed=4).rows
SLOTS = {"temperature": "energy(ratio=0.34)", "weighting": "entropy"}
WAYS = {"targets": {}, "chunks": {"loss_chunk_size": 5}, "whole logits": {"objective": "dist"}}


def llama(seed, spread):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, pad_token_id=0, max_position_embeddings=64))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(spread)
    return model


# ---- ways to give the same documents ------------------------------------------------------------------------------


def end_to_end(lists):
    return list(itertools.chain.from_iterable(lists))


def joined(documents, **columns):
    row = {name: end_to_end(one[name] for one in documents) for name in ("input_ids", "labels")}
    return row | {name: values(documents) for name, values in columns.items()}


def positions(documents):
    return [i for one in documents for i in range(len(one["input_ids"]))]


def lengths(documents):
    return [len(one["input_ids"]) for one in documents]


def ones(documents):
    return [1] * sum(lengths(documents))


def two_rows(**columns):
    return [joined(DOCUMENTS[:4], **columns), joined(DOCUMENTS[4:], **columns)]


def padded(row, before, after, label=IGNORED):
    """The row with padding of its own, and the mask that says so."""
    real = len(row["input_ids"])
    return {
        "input_ids": [1] * before + row["input_ids"] + [1] * after,
        "labels": [label] * before + row["labels"] + [label] * after,
        "attention_mask": [0] * before + [1] * real + [0] * after,
    }


def flattened(**keywords):
    return DataCollatorWithFlattening(**keywords)


class OfBatches:
    """A user's own collator: rows of equal length as they are, whatever their columns."""

    def __call__(self, rows):
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def left(label):
    width = max(lengths(DOCUMENTS)) + 1
    return [padded(row, width - len(row["input_ids"]), 0, label) for row in DOCUMENTS]


def padded_packed():
    """Packed to one length, with padding between the documents and after them."""
    rows = []
    for part in (DOCUMENTS[:4], DOCUMENTS[4:]):
        some = [padded(one, 0, 2) | {"position_ids": [*range(len(one["input_ids"])), 0, 0]} for one in part]
        row = {name: end_to_end(one[name] for one in some) for name in some[0]}
        short = 60 - len(row["input_ids"])
        rows.append({name: [*values, *[IGNORED if name == "labels" else 0] * short] for name, values in row.items()})
    return rows


FORMS = {
    "position_ids": (two_rows(position_ids=positions), None),
    "position_ids and a mask": (two_rows(position_ids=positions, attention_mask=ones), None),
    "seq_lengths": (two_rows(seq_lengths=lengths), None),
    "packed and padded": (padded_packed(), None),
    "packed and padded, own collator": (padded_packed(), OfBatches()),
    "padded at the start": (left(IGNORED), None),
    "padded at the start and labelled there": (left(1), None),
    "padded at the start, own collator": (left(1), OfBatches()),
    "padded at the end": ([padded(row, 0, 3, 1) for row in DOCUMENTS], None),
    "flattened": (DOCUMENTS, flattened()),
    "flattened for flash attention": (DOCUMENTS, flattened(return_flash_attn_kwargs=True)),
    "flattened with cu_seq_lens alone": (
        DOCUMENTS,
        flattened(return_flash_attn_kwargs=True, return_position_ids=False),
    ),
    "flattened with seq_idx alone": (DOCUMENTS, flattened(return_seq_idx=True, return_position_ids=False)),
}


def first_step(trainer):
    logged = next(entry for entry in trainer.state.log_history if "kd" in entry)
    return {name: logged[name] for name in ("loss", "ce", "kd", "temperature", "weight", "grad_norm")}


def results(folder, rows, collator, make, **settings):
    """One step and one evaluation on all rows: what is logged, the thresholds, and the student's parameters after."""
    settings = SLOTS | {"per_device_train_batch_size": len(rows), "per_device_eval_batch_size": len(rows)} | settings
    trainer = DistillationTrainer(
        make(1, 2.0),
        make(2, 4.0),
        arguments(folder, **settings, max_steps=1, evaluate_kl=True, max_grad_norm=1.0),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        data_collator=collator,
    )
    before = trainer.evaluate()
    trainer.train()
    numbers = {name: value for name, value in before.items() if name in ("eval_loss", "eval_kl")}
    numbers |= first_step(trainer)
    low, high = trainer.distillation_loss.temperature.thresholds
    return numbers | {"low": low, "high": high}, dict(trainer.model.named_parameters()), trainer.scan_result


def gpt2(seed, spread):
    model = language_model(seed=seed, positions=64, layers=2)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(5 * spread)
    return model


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """What the documents give in rows of their own."""
    return functools.cache(lambda make: results(tmp_path_factory.mktemp("apart"), DOCUMENTS, None, make))


FEW = ("position_ids", "packed and padded", "padded at the start", "flattened")


@pytest.mark.parametrize(("make", "form"), [*((gpt2, form) for form in FORMS), *((llama, form) for form in FEW)])
def test_a_step_is_that_of_the_documents_apart(tmp_path, form, make, apart):
    rows, collator = FORMS[form]
    expected, parameters, scanned = apart(make)
    found, theirs, rescanned = results(tmp_path, rows, collator, make)
    assert found == pytest.approx(expected, rel=2e-5)
    torch.testing.assert_close(rescanned.energy, scanned.energy, rtol=1e-5, atol=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(theirs[name], parameter, rtol=1e-4, atol=1e-6)
    assert len({round(scanned.energy[i].item(), 3) for i in range(6)}) == 6


@pytest.mark.parametrize("form", ["position_ids", "seq_lengths", "padded at the start"])
def test_accumulated_batches_divide_by_the_targets_of_the_documents(tmp_path, form, apart):
    rows, collator = FORMS[form]
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(rows)}
    expected, parameters, _ = apart(gpt2)
    found, theirs, _ = results(tmp_path, rows, collator, gpt2, **accumulated)
    assert found == pytest.approx(expected, rel=2e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(theirs[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["position_ids", "flattened"])
def test_every_way_to_the_loss_sees_documents(tmp_path, way, form):
    expected, parameters, _ = results(tmp_path / "apart", DOCUMENTS, None, llama, **WAYS[way])
    found, theirs, _ = results(tmp_path / "form", *FORMS[form], llama, **WAYS[way])
    assert found == pytest.approx(expected, rel=2e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(theirs[name], parameter, rtol=1e-4, atol=1e-6)


def test_tokens_that_nobody_labelled_apart_are_labelled_within_documents_only(tmp_path):
    """DataCollatorForLanguageModeling labels every token: a document's first one too, which the last one's end is not
    to predict.
    """
    words = tokenizer()
    words.pad_token = words.eos_token
    rows = [{"input_ids": row["input_ids"]} for row in DOCUMENTS[:2]]
    packed = [{"input_ids": end_to_end(row["input_ids"] for row in rows), "position_ids": positions(rows)}]
    whole = [row | {"labels": row["input_ids"]} for row in rows]
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    expected, _, _ = results(tmp_path / "apart", whole, None, llama, temperature="energy(ratio=0.5)")
    found, _, _ = results(tmp_path / "packed", packed, collator, llama, temperature="energy(ratio=0.5)")
    assert found == pytest.approx(expected, rel=2e-5)


# ---- the stored teacher --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["position_ids", "seq_lengths", "padded at the start"])
def test_a_stored_teacher_read_the_documents_apart_too(tmp_path, form):
    stored = {}
    for name, rows in (("apart", DOCUMENTS), ("form", FORMS[form][0])):
        rows = Dataset.from_list([row | {"index": i} for i, row in enumerate(rows)])
        build_text_cache(
            llama(2, 4.0), rows, tmp_path / name, k=VOCAB, temperatures=(2.0, 4.0, 6.0), dtype="float32", batch_size=2
        )
        teacher = CachedTextTeacher(tmp_path / name)
        trainer = DistillationTrainer(
            llama(1, 2.0),
            teacher,
            arguments(tmp_path / f"{name} run", **SLOTS, per_device_train_batch_size=len(rows), max_steps=1),
            train_dataset=rows,
            processing_class=tokenizer(),
        )
        trainer.train()
        numbers = first_step(trainer)
        low, high = trainer.distillation_loss.temperature.thresholds
        stored[name] = numbers | {"low": low, "high": high}
    assert stored["form"] == pytest.approx(stored["apart"], rel=2e-5)


def test_a_stored_teacher_is_not_taken_for_that_of_other_documents(tmp_path):
    rows = [row | {"index": i} for i, row in enumerate(FORMS["position_ids"][0])]
    build_text_cache(llama(2, 4.0), Dataset.from_list(rows), tmp_path)
    joined_up = Dataset.from_list([row | {"position_ids": list(range(len(row["input_ids"])))} for row in rows])
    with pytest.raises(ValueError, match="does not contain row 0"):
        CachedTextTeacher(tmp_path).check_rows(joined_up)


# ---- networks that let documents see each other ---------------------------------------------------------------------


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))


def build(folder, student, teacher, rows, collator=None, **keywords):
    return DistillationTrainer(
        student,
        teacher,
        arguments(folder),
        train_dataset=rows,
        processing_class=tokenizer(),
        data_collator=collator,
        **keywords,
    )


@pytest.mark.parametrize(
    ("network", "role", "form"),
    [
        (opt, "student", "position_ids"),
        (opt, "teacher", "flattened"),
        (opt, "second teacher", "position_ids"),
        (bloom, "student", "flattened"),
        (bloom, "teacher", "position_ids"),
        (mamba, "teacher", "position_ids"),
    ],
)
def test_a_network_that_looks_across_documents_is_refused(tmp_path, network, role, form):
    torch.manual_seed(0)
    student, teacher = {
        "student": (network(), gpt2(2, 1.0)),
        "teacher": (gpt2(1, 1.0), network()),
        "second teacher": (gpt2(1, 1.0), [gpt2(2, 1.0), network()]),
    }[role]
    rows, collator = FORMS[form]
    with pytest.raises(ValueError, match="a document attends to those before it: use one document per row"):
        build(tmp_path / "run", student, teacher, Dataset.from_list(rows), collator)
    assert not (tmp_path / "run").exists()
    build(tmp_path / "run", student, teacher, Dataset.from_list(DOCUMENTS))


def test_packed_rows_that_come_late_or_in_evaluation_alone_are_refused(tmp_path):
    torch.manual_seed(0)
    single = [row | {"position_ids": positions([row])} for row in DOCUMENTS]
    late = Dataset.from_list(single + FORMS["position_ids"][0])
    with pytest.raises(ValueError, match="the rows pack several documents"):
        build(tmp_path, opt(), gpt2(2, 1.0), late)
    build(tmp_path, opt(), gpt2(2, 1.0), Dataset.from_list(single))
    with pytest.raises(ValueError, match="the rows pack several documents"):
        build(tmp_path, opt(), gpt2(2, 1.0), Dataset.from_list(single), eval_dataset={"dev": late.select([7])})
    stream = late.to_iterable_dataset()
    trainer = build(tmp_path, opt(), gpt2(2, 1.0), stream)
    with pytest.raises(ValueError, match="the rows pack several documents"):
        trainer.train()


# ---- rows that say something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["position_ids", "seq_lengths", "flattened"])
@pytest.mark.parametrize("objective", ["kd + rkd(layer=-1)", "hidden_mse(layers=(1,))"])
def test_packed_rows_are_refused_where_a_term_compares_whole_rows(tmp_path, objective, form):
    rows, collator = FORMS[form]
    networks, terms = (gpt2(1, 1.0), gpt2(2, 1.0)), {"objective": objective, "temperature": 4.0}
    with pytest.raises(ValueError, match=r"compares the networks' layers over whole rows"):
        build(tmp_path / "run", *networks, Dataset.from_list(rows), collator, **terms)
    assert not (tmp_path / "run").exists()
    build(tmp_path / "off", *networks, Dataset.from_list(rows), collator, **terms, kd_weight=0.0)
    single = Dataset.from_list(DOCUMENTS)
    evaluated = Dataset.from_list(FORMS["position_ids"][0])  # on labels alone
    build(tmp_path / "run", *networks, single, eval_dataset=evaluated, **terms)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attention_mask": [1, 1]}, r"attention_mask of shape \[2\] for 3 tokens"),
        ({"attention_mask": [1, 2, 2]}, "must be 1 for each token, and 0 for padding"),
        ({"attention_mask": [0, 0, 0]}, "is 0 for all tokens"),
        ({"attention_mask": [[1, 0, 0], [1, 1, 0], [1, 1, 1]]}, r"shape \[3, 3\] for 3 tokens"),
        ({"position_ids": [0, 1]}, r"position_ids of shape \[2\] for a row of 3 tokens"),
        ({"seq_lengths": [1, 1]}, r"seq_lengths of shape \[2\] for a row of 3 tokens"),
    ],
)
def test_columns_of_another_shape_are_refused(columns, message):
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5]} | columns
    with pytest.raises(ValueError, match=message):
        TokenCollator(0)([row])


def test_a_token_masked_inside_of_a_packed_document_is_refused():
    row = {"input_ids": [3, 4, 5, 6, 7], "labels": [3, 4, 5, 6, 7], "position_ids": [0, 1, 2, 0, 1]}
    with pytest.raises(ValueError, match="masks tokens inside a document"):
        TokenCollator(0)([row | {"attention_mask": [1, 0, 1, 1, 1]}])


def test_a_token_masked_inside_of_a_row_stays_masked_and_keeps_its_label():
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "attention_mask": [1, 0, 1]}
    batch = TokenCollator(0)([row])
    assert batch["attention_mask"].tolist() == [[1, 0, 1]]
    assert batch["host_targets"].position.tolist() == [0, 1]


def test_a_gap_in_the_positions_is_no_new_document():
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "position_ids": [5, 9, 20]}
    batch = TokenCollator(0)([row])
    assert batch["position_ids"].tolist() == [[5, 9, 20]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1]]
    assert not batch["host_targets"].packed


def test_rounding_is_no_sight_of_another_document(tmp_path):
    """A mixture of experts computes all tokens of an expert at once, so that others change a logit's last digits."""

    def round_otherwise(network, args, keywords, output):
        output.logits = output.logits * (1 + 1e-7 * keywords["input_ids"].sum())
        return output

    student = llama(0, 4)
    student.register_forward_hook(round_otherwise, with_kwargs=True)
    row = {"input_ids": list(range(3, 13)), "position_ids": [0, 1, 2, 3, 4] * 2}
    build(tmp_path, student, llama(1, 4), [row] * 4)


def test_ordinary_rows_are_not_looked_at_twice(tmp_path, caplog):
    """No packing, no probe, no word."""
    with caplog.at_level(logging.WARNING, "hfkd"):
        network, calls = language_model(), []
        network.register_forward_pre_hook(lambda *a: calls.append(network.training))
        trainer = build(tmp_path, network, taught_model(), TokenRows())
    assert len(calls) == 3  # the first rows, the proof of its loss, and that it does not read ahead
    assert trainer.data_collator.__class__ is TokenCollator
