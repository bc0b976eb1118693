"""Comparisons of a transformer's states and scores: TinyBERT, DistilBERT, PKD, MiniLM."""

import math

import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.attention_scores import scores_difference
from hfkd.losses.features.hidden_cosine import cosine_distance, hidden_cosine
from hfkd.losses.features.hidden_mse import squared_difference
from hfkd.losses.features.minilm import relation_divergence
from hfkd.losses.features.pkd import pkd

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
SEEN = (MASK[:, None, None, :] & MASK[:, None, :, None]).contiguous()


def real(row):
    """The positions of a row that are no padding."""
    return [i for i, there in enumerate(MASK[row]) if there]


# ---- the papers, row by row ---------------------------------------------------------------------------------------


def test_hidden_mse_is_the_mean_over_a_rows_real_positions():
    s, t = random_pair((3, 4, 5), (3, 4, 5))
    naive = [sum((s[b, i] - t[b, i]).square().mean() for i in real(b)) / len(real(b)) for b in range(3)]
    same_value_and_gradient(squared_difference(s, t, MASK), torch.stack(naive), s)


def test_hidden_cosine_is_the_mean_over_a_rows_real_positions():
    s, t = random_pair((3, 4, 5), (3, 4, 5))
    naive = [
        sum(1 - s[b, i] @ t[b, i] / s[b, i].norm() / t[b, i].norm() for i in real(b)) / len(real(b)) for b in range(3)
    ]
    same_value_and_gradient(hidden_cosine(s, t, MASK), torch.stack(naive), s)


def test_pkd_compares_directions_of_the_first_token():
    s, t = random_pair((3, 2, 5), (3, 2, 5))
    naive = [
        sum((a / a.norm() - b / b.norm()).square().sum() for a, b in zip(x, y, strict=True)) / 10
        for x, y in zip(s, t, strict=True)
    ]
    same_value_and_gradient(pkd(s, t), torch.stack(naive), s)


def test_attention_scores_are_compared_where_both_tokens_are_real():
    s, t = random_pair((3, 2, 4, 4), (3, 2, 4, 4))
    naive = []
    for b in range(3):
        squares = [(s[b, a, i, j] - t[b, a, i, j]) ** 2 for a in range(2) for i in real(b) for j in real(b)]
        naive.append(sum(squares) / len(squares))
    same_value_and_gradient(scores_difference(s, t, SEEN, SEEN), torch.stack(naive), s)


def test_minilm_is_the_divergence_of_relations_head_by_head():
    heads = 2
    q, teacher_q = random_pair((3, 4, 6), (3, 4, 8), seed=0)
    k, teacher_k = random_pair((3, 4, 6), (3, 4, 8), seed=1)

    def relation(x, other, b, a, i):
        d = x.shape[-1] // heads
        cut = slice(a * d, (a + 1) * d)
        return torch.softmax(torch.stack([x[b, i, cut] @ other[b, j, cut] / math.sqrt(d) for j in real(b)]), 0)

    naive = []
    for b in range(3):
        total = 0.0
        for a in range(heads):
            for i in real(b):
                p, r = relation(teacher_q, teacher_k, b, a, i), relation(q, k, b, a, i)
                total = total + (p * (p / r).log()).sum()
        naive.append(total / (heads * len(real(b))))
    same_value_and_gradient(relation_divergence((q, k), (teacher_q, teacher_k), heads, SEEN), torch.stack(naive), q, k)


@pytest.mark.parametrize("formula", [squared_difference, hidden_cosine])
def test_what_stands_in_padding_does_not_matter_even_if_it_is_infinite(formula):
    s, t = random_pair((3, 4, 5), (3, 4, 5))
    before = formula(s, t, MASK)
    broken = t.masked_fill(~MASK.unsqueeze(-1), torch.inf)
    assert torch.equal(formula(s, broken, MASK), before)


# ---- published numbers --------------------------------------------------------------------------------------------


def test_tinybert():
    z = oracle("more/tinybert")
    scores = [leaf(z[f"student_scores{k}"]) for k in (1, 2)]
    mask = z["attention_mask"].bool()
    seen = mask[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
    layers = [
        scores_difference(s, z[f"teacher_scores{2 * k}"], seen, torch.ones_like(seen)) for k, s in enumerate(scores, 1)
    ]
    torch.testing.assert_close(torch.stack([x.mean() for x in layers]), z["attention_layers"])
    gradients = {f"scores{k}": (s, z[f"grad_student_scores{k}"]) for k, s in enumerate(scores, 1)}
    as_published(sum(layers), z["attention_loss"], **gradients)
    states = [leaf(z[f"student_hidden{k}"]) for k in range(3)]
    fit = torch.nn.Linear(8, 12).double()
    fit.load_state_dict({"weight": z["fit.weight"], "bias": z["fit.bias"]})
    layers = [squared_difference(fit(s), z[f"teacher_hidden{2 * k}"]) for k, s in enumerate(states)]
    torch.testing.assert_close(torch.stack([x.mean() for x in layers]), z["hidden_layers"])
    gradients = {f"hidden{k}": (s, z[f"grad_student_hidden{k}"]) for k, s in enumerate(states)}
    gradients |= {name: (getattr(fit, name), z[f"grad__fit.{name}"]) for name in ("weight", "bias")}
    as_published(sum(layers), z["hidden_loss"], **gradients)


def test_distilbert():
    z = oracle("more/distilbert")
    s, mask = leaf(z["student_hidden"]), z["attention_mask"].bool()
    rows = hidden_cosine(s, z["teacher_hidden"], mask)
    tokens = mask.sum(-1)  # the release takes the mean over the tokens of the batch
    torch.testing.assert_close((rows * tokens).sum() / tokens.sum(), z["attended.loss_cosine"])
    torch.testing.assert_close(
        cosine_distance(z["cosine_tiny.student"], z["cosine_tiny.teacher"]), z["cosine_tiny.per_token"]
    )


def test_patience():
    z = oracle("more/pkd")
    for case, normalize in {"normalised": True, "raw": False}.items():
        s = leaf(z["student_patience"])
        values = pkd(s, z["teacher_patience"], normalize)
        as_published(values, z[f"{case}.loss"], student=(s, z[f"{case}.grad_student_patience"]))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_minilm(version):
    z = oracle("more/minilm")
    names = ("query", "key", "value")
    student = [leaf(z[f"{version}.student_{name}"]) for name in names]
    teacher = [z[f"{version}.teacher_{name}"] for name in names]
    mask = z["attention_mask"].bool()
    seen = mask[:, None, None, :] & mask[:, None, :, None]
    values = sum(
        relation_divergence((student[m], student[n]), (teacher[m], teacher[n]), int(z[f"{version}.heads"]), seen)
        for m, n in (z[f"{version}.relations"] - 1).tolist()
    )
    gradients = {n: (s, z[f"{version}.grad_student_{n}"]) for n, s in zip(names, student, strict=True)}
    as_published(values, z[f"{version}.loss"], **gradients)
