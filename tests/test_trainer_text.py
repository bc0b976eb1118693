"""Language models in the trainer: the loss against plain PyTorch, chunks, adapters, cut vocabularies, bad input."""

import json
import logging
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from text_toys import VOCAB, TokenRows, language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.evaluation.callback import RougeArguments
from hfkd.utils.targets import IGNORED

PEFT_WARNING = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
DSKD = {"objective": "kd(scale='none')", "temperature": "2.0", "ce_weight": 0.5, "kd_weight": 0.5}


def make(tmp_path, student=None, taught=None, rows=None, **keywords):
    peft_config = keywords.pop("peft_config", None)
    return DistillationTrainer(
        student or language_model(),
        taught or taught_model(),
        arguments(tmp_path / "run", **(DSKD | keywords)),
        peft_config=peft_config,
        processing_class=tokenizer(),
        train_dataset=TokenRows() if rows is None else rows,
        eval_dataset=TokenRows(13, seed=3),
    )


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def targets(model, rows):
    """Logits [N, V], labels [N] and row [N] of the tokens to predict, row by row, without padding."""
    found = []
    for number, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for i in range(len(row["labels"]) - 1):
            if row["labels"][i + 1] != IGNORED:
                found.append((logits[i], row["labels"][i + 1], number))
    logits, labels, sample = zip(*found, strict=True)
    return torch.stack(logits), torch.tensor(labels), torch.tensor(sample)


# ---- the loss -----------------------------------------------------------------------------------------------------


def entropy(logits):
    log_p = (logits / 3).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def plain_loss(student, taught, rows):
    """0.5 CE + 0.5 w KL at T = 2, w from the mean entropies of a row's target tokens, over all of them."""
    (z_s, labels, sample), (z_t, _, _) = targets(student, rows), targets(taught, rows)
    p, log_q = (z_t / 2).softmax(-1).detach(), (z_s / 2).log_softmax(-1)
    kl = (p * (p.log() - log_q)).sum(-1)
    weights = torch.empty(len(labels))
    for row in sample.unique():
        own = sample == row
        h_t, h_s = entropy(z_t[own]).mean().detach(), entropy(z_s[own]).mean().detach()
        weights[own] = h_t * (1 + h_s / math.log(VOCAB)) / 2
    return 0.5 * F.cross_entropy(z_s, labels) + 0.5 * (weights * kl).mean()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_step_is_the_plain_pytorch_step(tmp_path, accumulation):
    """Shift, mask and padding included: the reference runs each row by itself, without any."""
    steps = {"per_device_train_batch_size": 32 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = make(tmp_path, max_steps=1, weighting="entropy", **steps)
    trainer.train()
    student = language_model()
    loss = plain_loss(student, taught_model().eval(), TokenRows())
    loss.backward()
    assert logged(trainer, "loss")[0] == pytest.approx(loss.item(), abs=1e-5)
    for mine, theirs in zip(student.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine - 0.1 * mine.grad, rtol=0, atol=1e-6)


def test_evaluate_kl_is_the_teachers_kl_to_the_student(tmp_path):
    scores = make(tmp_path, evaluate_kl=True).evaluate()
    (z_s, labels, _), (z_t, _, _) = (
        targets(m.eval(), TokenRows(13, seed=3)) for m in (language_model(), taught_model())
    )
    kl = F.kl_div(z_s.log_softmax(-1), z_t.log_softmax(-1), log_target=True, reduction="batchmean")
    assert scores["eval_kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert scores["eval_loss"] == pytest.approx(F.cross_entropy(z_s, labels).item(), rel=1e-5)
    assert "eval_kl" not in make(tmp_path).evaluate()


def test_energy_temperature_scans_sequences(tmp_path):
    trainer = make(tmp_path, temperature="energy(ratio=0.25)", weighting="entropy")
    trainer.train()
    taught, rows = taught_model().eval(), TokenRows()
    logits, _, sample = targets(taught, rows)
    energies = -4 * (logits / 4).logsumexp(-1)
    expected = torch.stack([energies[sample == row].mean() for row in range(len(rows))])
    torch.testing.assert_close(trainer.scan_result.energy, expected.detach(), rtol=1e-4, atol=1e-4)
    low, high = trainer.distillation_loss.temperature.thresholds
    assert expected.min() < low < high < expected.max()
    assert len({round(t, 3) for t in logged(trainer, "temperature")}) > 1


def token_energies(rows, vocab=VOCAB):
    """The teacher's energy of each target token at T_E = 4, over the common vocabulary."""
    logits, _, _ = targets(taught_model(vocab=vocab).eval(), rows)
    return -4 * (logits[:, :VOCAB] / 4).logsumexp(-1).detach()


def one_epoch(tmp_path, temperature, **keywords):
    """A trainer that has seen each row once, and learned nothing from it."""
    epoch = {"max_steps": -1, "num_train_epochs": 1, "learning_rate": 0.0, "logging_strategy": "epoch"}
    trainer = make(tmp_path, temperature=temperature, **epoch, **keywords)
    trainer.train()
    return trainer


@pytest.mark.parametrize("chunk_size", [0, 5])
@pytest.mark.parametrize("teacher_vocab", [VOCAB, VOCAB + 6])
def test_token_thresholds_leave_the_share_of_tokens_outside(tmp_path, teacher_vocab, chunk_size):
    taught = taught_model(vocab=teacher_vocab)
    temperature = "energy(ratio=0.2, level='item')"
    trainer = one_epoch(tmp_path, temperature, taught=taught, loss_chunk_size=chunk_size)
    energies = token_energies(TokenRows(), teacher_vocab)
    torch.testing.assert_close(trainer.scan_result.energy, energies, rtol=1e-5, atol=1e-5)
    outside = math.floor(0.2 * len(energies)) / len(energies)
    for side in ("low_energy_share", "high_energy_share"):
        assert logged(trainer, side) == pytest.approx([outside], abs=1e-5)


def test_token_gradation_gives_each_tenth_of_the_tokens_its_temperature(tmp_path):
    slot = one_epoch(tmp_path, "gradation(level='item')").distillation_loss.temperature
    energies = token_energies(TokenRows())
    steps = torch.bucketize(energies.double(), torch.tensor(slot.thresholds, dtype=torch.float64), right=True)
    count = len(energies)
    assert torch.bincount(steps).tolist() == [count * (k + 1) // 10 - count * k // 10 for k in range(10)]


def test_rows_without_a_target_are_not_among_the_energies(tmp_path):
    rows = TokenRows()
    silent = TokenRows()
    silent.rows += [row | {"labels": [IGNORED] * len(row["labels"])} for row in TokenRows(16, seed=9).rows]
    temperature = "energy(ratio=0.25)"
    slots = [
        one_epoch(tmp_path / str(len(r)), temperature, rows=r).distillation_loss.temperature for r in (rows, silent)
    ]
    assert slots[0].thresholds == pytest.approx(slots[1].thresholds, abs=1e-5)


def test_thresholds_of_sequences_in_a_checkpoint_are_not_taken_for_those_of_tokens(tmp_path, caplog):
    """Earlier versions fitted `level="item"` to sequences, and kept that in checkpoints."""
    keywords = {"temperature": "energy(ratio=0.2, level='item')", "save_strategy": "steps", "save_steps": 1}
    whole = make(tmp_path, **keywords)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    record = json.loads((checkpoint / "distillation.json").read_text())
    assert record["threshold_level"] == "item"
    for level, scans in (("item", False), (None, True)):
        altered = record | {"threshold_level": level, "thresholds": [-9.0, -8.0]}
        resumed = make(tmp_path, **keywords)
        with caplog.at_level(logging.WARNING, "hfkd"):
            resumed.fit_slots(_with_record(checkpoint, altered, tmp_path / str(level)))
        assert (resumed.scan_result is not None) == scans
        expected = whole.distillation_loss.temperature.thresholds if scans else (-9.0, -8.0)
        assert resumed.distillation_loss.temperature.thresholds == expected
        assert ("they are fitted again" in caplog.text) == scans


def _with_record(checkpoint, record, folder):
    """A copy of a checkpoint whose record is another."""
    shutil.copytree(checkpoint, folder)
    (folder / "distillation.json").write_text(json.dumps(record))
    return str(folder)


# ---- chunks, adapters, vocabularies -------------------------------------------------------------------------------


def lora():
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("teacher_vocab", [VOCAB, VOCAB + 6])
def test_chunks_train_the_same_parameters(tmp_path, adapters, teacher_vocab):
    trained = []
    for chunk_size in (0, 5):
        torch.manual_seed(0)
        config = lora() if adapters else None
        trainer = make(
            tmp_path / str(chunk_size),
            student=language_model(vocab=VOCAB + 2),
            taught=taught_model(vocab=teacher_vocab),
            peft_config=config,
            weighting="entropy",
            loss_chunk_size=chunk_size,
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert trainer.num_classes == min(teacher_vocab, VOCAB + 2)
        trainer.train()
        after = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert any(not torch.equal(before[name], p) for name, p in after.items())
        trained.append(after)
    for name, parameter in trained[0].items():
        torch.testing.assert_close(trained[1][name], parameter, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings(PEFT_WARNING)
def test_the_saved_adapter_loads_with_peft(tmp_path):
    trainer = make(tmp_path, peft_config=lora())
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    from peft import PeftModel

    assert not (tmp_path / "saved" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(language_model(), tmp_path / "saved").eval()
    ids = torch.tensor([TokenRows()[0]["input_ids"]])
    with torch.no_grad():
        ours, theirs = trainer.model.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert not torch.equal(theirs, language_model().eval()(input_ids=ids).logits)


def test_the_cut_to_the_common_vocabulary_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hfkd"):
        make(tmp_path, student=language_model(vocab=VOCAB + 2), taught=taught_model(vocab=VOCAB + 6))
    assert f"({VOCAB + 2}) and teacher ({VOCAB + 6}) are truncated to the {VOCAB + 2} that both have" in caplog.text


def test_an_evaluation_in_half_precision_leaves_the_weights(tmp_path):
    """What is saved after it, or trained on, are the weights that were trained, bit for bit."""
    rows = TokenRows(16)
    args = arguments(tmp_path, bf16_full_eval=True, max_steps=1)
    trainer = DistillationTrainer(language_model(), taught_model(), args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    whole = language_model()
    whole.load_state_dict(before)
    exact = DistillationTrainer(whole, None, arguments(tmp_path / "exact"), eval_dataset=rows, kd_weight=0, ce_weight=1)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact.evaluate()["eval_loss"], rel=0.05)
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_rows_are_grouped_by_length_when_asked(tmp_path):
    """With `length`, as `tokenize_dataset` gives it: a batch then has little padding."""
    rows = Dataset.from_list([row | {"length": len(row["input_ids"])} for row in TokenRows(256, low=4, high=24).rows])
    padding = {}
    for strategy in ("random", "group_by_length"):
        settings = {"train_sampling_strategy": strategy, "per_device_train_batch_size": 4}
        trainer = make(tmp_path / strategy, rows=rows, **settings)
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        assert sum(len(mask) for mask in masks) == 256
        padding[strategy] = sum((mask == 0).sum().item() for mask in masks)
        trainer.train()
        assert all(math.isfinite(x) for x in logged(trainer, "loss"))
    assert padding["group_by_length"] < padding["random"] / 3


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [0, 5])
def test_a_batch_with_every_label_masked_costs_nothing_and_stops_nothing(tmp_path, chunk_size):
    rows = TokenRows(24)
    for row in rows.rows:
        row["labels"] = [IGNORED] * len(row["labels"])
    trainer = make(tmp_path, rows=rows, weighting="entropy", loss_chunk_size=chunk_size)
    trainer.train()
    assert logged(trainer, "loss") == [0, 0, 0]
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    mixed = TokenRows(24)
    mixed.rows[:8] = rows.rows[:8]
    trainer = make(tmp_path / "mixed", rows=mixed, per_device_train_batch_size=1, max_steps=24, learning_rate=0.01)
    trainer.train()
    assert logged(trainer, "loss").count(0) == 8
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))


def test_a_vocabulary_that_loses_real_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"student has {VOCAB} logits and the teacher {VOCAB - 2}"):
        make(tmp_path, taught=taught_model(vocab=VOCAB - 2), rows=TokenRows(low=4, high=5))


@pytest.mark.parametrize("of", ["student", "taught"])
def test_rows_longer_than_a_networks_positions_are_refused(tmp_path, of):
    rows = Dataset.from_dict({"input_ids": [[3] * 5, [3] * 40], "labels": [[3] * 5, [3] * 40], "length": [5, 40]})
    longer = {"student": language_model(positions=64), "taught": language_model(positions=64)}
    make(tmp_path, rows=rows, **longer)
    with pytest.raises(ValueError, match="longest training row has 40 tokens, but GPT2LMHeadModel has 32 positions"):
        make(tmp_path, rows=rows, **(longer | {of: language_model()}))


def test_a_teacher_that_gives_nan_is_refused(tmp_path):
    broken = taught_model()
    with torch.no_grad():
        broken.transformer.ln_f.bias[0] = float("nan")
    with pytest.raises(ValueError, match="teacher's logits are NaN"):
        make(tmp_path, taught=broken)


def test_dev_answers_that_cannot_be_had_are_refused_before_training(tmp_path):
    trainer, rouge = make(tmp_path), RougeArguments(eval_rouge=True)
    with pytest.raises(ValueError, match="eval_rouge needs dev rows"):
        rouge.add_to(trainer, None)
    dev = Dataset.from_dict({"prompt": ["ask you"], "response": ["answer me"]})
    with pytest.raises(ValueError, match="need 272 positions, but the model has 32"):
        rouge.add_to(trainer, dev, max_prompt_length=16)


def test_chunks_are_refused_for_a_student_that_the_launcher_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="loss_chunk_size works for causal language models that are not sharded"):
        make(tmp_path, loss_chunk_size=5)


# ---- rouge on dev -------------------------------------------------------------------------------------------------


def test_dev_rouge_is_logged_at_each_evaluation_and_chooses_the_checkpoint(tmp_path):
    rouge = RougeArguments(eval_rouge=True, rouge_seeds=[1, 2], rouge_max_new_tokens=4)
    keywords = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_rougeL", "greater_is_better": True}
    trainer = make(tmp_path, **keywords, **best)
    rouge.add_to(
        trainer, Dataset.from_dict({"prompt": ["ask you"] * 3, "response": ["a b c d"] * 3}), max_prompt_length=8
    )
    trainer.train()
    scores = logged(trainer, "eval_rougeL")
    assert len(scores) == 3
    assert trainer.state.best_metric == max(scores)
    assert len(list((tmp_path / "run" / "dev" / "step-3").glob("dev-seed*.jsonl"))) == 2


# ---- a real model -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kd_brings_a_student_nearer_to_stories260k_than_labels_do(data_dir, tmp_path):
    """benchmarks/stories.py with two of its ways and two of its seeds."""
    import importlib.util
    import sys
    from pathlib import Path

    path = Path(__file__).parents[1] / "benchmarks" / "stories.py"
    specification = importlib.util.spec_from_file_location("stories", path)
    stories = importlib.util.module_from_spec(specification)
    sys.modules["stories"] = stories
    specification.loader.exec_module(stories)
    flags = {"teacher": data_dir / "stories260K", "stories": data_dir / "stories260K-samples.jsonl"}
    flags |= {"seeds": 2, "output_dir": tmp_path}
    results = stories.main([*(f"--{k}={v}" for k, v in flags.items()), "--ways", "labels only", "KD"])
    kl = {way: sum(run["eval_kl"] for run in runs) / len(runs) for way, runs in results.items()}
    assert kl["KD"] < kl["labels only"]


def test_chat_turns_are_written_with_the_tokenizers_template_in_each_format(tmp_path):
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ 'you' if m.role == 'user' else 'me' }} {{ m.content }} {% endfor %}"
    )
    asked, answer = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}
    trained = []
    for name, row in (
        ("messages", {"messages": [asked, answer]}),
        ("prompt", {"prompt": [asked], "completion": [answer]}),
    ):
        rows = Dataset.from_list([row] * 4)
        trainer = DistillationTrainer(
            language_model(), taught_model(), arguments(tmp_path / name), train_dataset=rows, processing_class=words
        )
        trained.append(trainer.train_dataset["input_ids"][:])
    assert trained[0] == trained[1]
    assert words.decode(trained[0][0][:6]) == "you a b me c d"
