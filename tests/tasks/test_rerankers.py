"""Rerankers: cross-encoders with one logit, whose KD is between two Bernoulli distributions."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import arguments
from transformers import BertConfig, BertForSequenceClassification

from hfkd import DistillationTrainer

T, CE_WEIGHT, KD_WEIGHT = 2.0, 0.25, 0.75


def reranker(hidden):
    torch.manual_seed(hidden)
    sizes = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    one_label = {"num_labels": 1, "problem_type": "multi_label_classification"}
    return BertForSequenceClassification(
        BertConfig(vocab_size=30, initializer_range=1.0, **one_label, **sizes, **no_dropout)
    )


def pairs(labels):
    """Query 1 2 3 and a passage that differs from row to row."""
    rows = [{"input_ids": [1, 2, 3, 4 + i, 5 + i], "token_type_ids": [0, 0, 0, 1, 1]} for i in range(8)]
    return [row | {"labels": [float(label)]} for row, label in zip(rows, labels, strict=True)]


def bernoulli_kl(teacher, student, T):
    """T^2 KL(p || q) of yes and no, by the definition."""
    p, q = torch.sigmoid(teacher / T), torch.sigmoid(student / T)
    return T**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


@pytest.mark.parametrize("weighting", ["uniform", "entropy(temperature=1)"])
def test_its_loss_is_the_binary_one(tmp_path, weighting):
    rows = pairs([0, 1, 1, 0, 1, 0, 0, 1])
    student, teacher = reranker(16), reranker(32)
    trainer = DistillationTrainer(
        student,
        teacher,
        arguments(tmp_path, max_steps=1, logging_steps=1, ce_weight=CE_WEIGHT, kd_weight=KD_WEIGHT, bf16=False),
        train_dataset=rows,
        temperature=T,
        weighting=weighting,
    )
    batch = trainer.data_collator(rows)
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
    with torch.no_grad():
        z_s, z_t = student(**inputs).logits.squeeze(1), teacher(**inputs).logits.squeeze(1)
    labels = torch.tensor([row["labels"][0] for row in rows])
    w = torch.ones(8)
    if weighting != "uniform":
        H_t, H_s = (torch.distributions.Bernoulli(logits=z).entropy() for z in (z_t, z_s))
        w = H_t * (1 + H_s / math.log(2)) / 2
        assert w.max() > 2 * w.min()
    wanted = CE_WEIGHT * F.binary_cross_entropy_with_logits(z_s, labels)
    wanted += KD_WEIGHT * (w * bernoulli_kl(z_t, z_s, T)).mean()
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(wanted.item(), rel=1e-4)


def test_one_that_says_regression_is_told_how(tmp_path):
    student = reranker(16)
    student.config.problem_type = None
    with pytest.raises(ValueError, match=r"a reranker whose one logit means yes .* rows with the labels \[0.0\] and"):
        DistillationTrainer(student, reranker(32), arguments(tmp_path / "run"), train_dataset=pairs([0, 1] * 4))
