"""ULD and GOLD against public code's numbers, and against their formulas one item at a time."""

import pytest
import reference
import torch
from feature_toys import as_published, leaf, oracle

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import group_items, image_items
from hfkd.losses.logits import GOLD, ULD
from hfkd.losses.logits.uld import sorted_l1
from hfkd.losses.outputs import Outputs
from hfkd.utils.targets import IGNORED, HostTargets
from hfkd.utils.token_groups import PLACELESS, UNGROUPED, Groups, Pairing


def items_of(student, teacher, labels, ends, pairing, same=(None, None), learned=None):
    """Items of whole logits [B, L, V] whose responses end at the bytes `ends`: of each side [B, L]."""
    ends = [one.masked_fill(label == IGNORED, PLACELESS) for one, label in zip(ends, labels, strict=True)]
    learned = learned or [one != IGNORED for one in labels]
    lengths = [int(row[known].max()) - 1 for row, known in zip(ends[0], labels[0] != IGNORED, strict=True)]
    rows = [
        pairing.of((ends[0][b], ends[1][b]), (learned[0][b], learned[1][b]), length) for b, length in enumerate(lengths)
    ]
    numbers = [torch.tensor(side) for side in zip(*rows, strict=True)]
    targets = [HostTargets.of(one) for one in labels]
    groups = Groups.of(*zip(targets, numbers, strict=True))
    picked = [z.flatten(0, 1)[t.position] for z, t in zip((student, teacher), targets, strict=True)]
    known = [one.flatten()[t.position + 1] for one, t in zip(labels, targets, strict=True)]
    outputs = map(Outputs, picked)
    return group_items(*outputs, groups, tuple(known), same=same, late=pairing.late)


def of_rows(objective, items, temperature=1.0):
    """The mean over each row's groups [B]."""
    values = objective(items, torch.full((len(items),), temperature, dtype=torch.float64))
    return items.sample_means(values)


# ---- the published numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "skip_student_eos", "skip_both_T"])
def test_uld_as_released(case):
    z = oracle("more/uld")
    skip_s, skip_t, t_s, t_t, weight = z[f"{case}.settings"].tolist()
    student, labels = leaf(z["student_logits"]), (z["student_labels"], z["teacher_labels"])
    learned = []
    for side, skipped in zip(labels, (skip_s, skip_t), strict=True):
        known = side != IGNORED
        last = known & (known.flip(-1).cumsum(-1).flip(-1) == 1)
        learned.append(known & ~last if skipped else known)
    ends = [known.cumsum(-1) for known in learned]  # of no matter for pairs by position
    pairing = Pairing("position", end=True)
    items = items_of(student / t_s, z["teacher_logits"] / t_t, labels, ends, pairing, learned=learned)
    values = weight * of_rows(ULD(), items)
    raw = items_of(student, z["teacher_logits"], labels, ends, pairing, learned=learned)
    ce = DistillationLoss(ce_weight=1.0, kd_weight=0.0)(raw)[0]
    torch.testing.assert_close(ce, z[f"{case}.ce"], rtol=1e-9, atol=0)
    as_published(values, z[f"{case}.loss"], student=(student, z[f"{case}.grad_student_logits"]))


BETAS = ["hybrid", "hybrid_beta0", "hybrid_beta1", "hybrid_fixed_ce_T"]
GOLD_CASES = ["default", "not_extended", "bayesian", "bayesian_eos", *BETAS]


@pytest.mark.parametrize("case", GOLD_CASES)
def test_gold_as_trl_computes_it(case):
    z = oracle("more/gold")
    ce, weight, t_s, t_t, skip, extended, bayesian, hybrid, a, b, beta = z[f"{case}.settings"].tolist()
    student, labels = leaf(z["student_logits"]), (z["student_labels"], z["teacher_labels"])
    how = {"merge": "last" if bayesian else "first", "position": "before" if bayesian else "at", "eos": not skip}
    if hybrid:
        fixed = {} if a < 0 else {"matched": a, "unmatched": b}
        objective = GOLD(beta=beta, **how, **fixed)
    else:
        objective = ULD(pairs="bytes" if extended else "position", **how)
    ends = []
    for side, places in zip(labels, (z["student_bytes"], z["teacher_bytes"]), strict=True):
        known = side != IGNORED
        last = known & (known.flip(-1).cumsum(-1).flip(-1) == 1)
        ends.append(places[..., 1] + last.long())  # the end of sequence is one byte more
    same = z["vocabulary_pairs_teacher_student"]
    items = items_of(
        student / t_s, z["teacher_logits"] / t_t, labels, ends, objective.pairing, (same[:, 1], same[:, 0])
    )
    values = weight * of_rows(objective, items)
    if ce:
        scaled = items_of(student, z["teacher_logits"], labels, ends, objective.pairing)
        values = values + ce * DistillationLoss(ce_weight=1.0, kd_weight=0.0)(scaled)[0]
    as_published(values, z[f"{case}.loss"], student=(student, z[f"{case}.grad_student_logits"]))


# ---- the formulas, one item at a time ---------------------------------------------------------------------------

N, V_S, V_T = 5, 7, 4


def pair_of_texts(seed=0):
    """Two rows. The first: tokens of 2, 1, 3 bytes against 3, 1, 1, 1; the second: one byte each, and both ends."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, 6, v, generator=g, dtype=torch.float64) for v in (V_S, V_T))
    labels = (
        torch.tensor([[IGNORED, 1, 2, 3, IGNORED, IGNORED], [IGNORED, 4, 5, 6, 0, IGNORED]]),
        torch.tensor([[IGNORED, 1, 2, 3, 0, IGNORED], [IGNORED, IGNORED, 1, 2, 3, 0]]),
    )
    ends = (
        torch.tensor([[-1, 2, 3, 6, -1, -1], [-1, 1, 2, 3, 4, -1]]),
        torch.tensor([[-1, 3, 4, 5, 6, -1], [-1, -1, 1, 2, 3, 4]]),
    )
    return student, teacher, labels, ends


# row, tokens of the student by their places, and of the teacher
GROUPED = [(0, [1, 2], [1]), (0, [3], [2, 3, 4]), (1, [1], [2]), (1, [2], [3]), (1, [3], [4])]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "objective", [ULD(pairs="bytes"), GOLD(), GOLD(beta=0.0), GOLD(beta=0.3, matched=1.0, unmatched=0.5)]
)
def test_groups_against_the_formulas(objective, last):
    objective = type(objective)(**vars(objective) | {"merge": "last" if last else "first"})
    student, teacher, labels, ends = pair_of_texts()
    mine, its = torch.tensor([0, 2, 5]), torch.tensor([1, 0, 3])
    # The first row has no end of sequence: its text has 6 bytes, and a seventh nobody reaches.
    lengths, learned = [6, 3], [one != IGNORED for one in labels]
    rows = [objective.pairing.of((ends[0][b], ends[1][b]), (learned[0][b], learned[1][b]), lengths[b]) for b in (0, 1)]
    numbers = [torch.tensor(side) for side in zip(*rows, strict=True)]
    targets = [HostTargets.of(one) for one in labels]
    groups = Groups.of(*zip(targets, numbers, strict=True))
    picked = [Outputs(z.flatten(0, 1)[t.position]) for z, t in zip((student, teacher), targets, strict=True)]
    known = tuple(one.flatten()[t.position + 1] for one, t in zip(labels, targets, strict=True))
    items = group_items(*picked, groups, known, same=(mine, its))
    t = torch.linspace(0.7, 2, N, dtype=torch.float64)
    expected = []
    for n, (row, own, theirs) in enumerate(GROUPED):
        q = reference.merged(student[row], labels[0][row], own, t[n].item(), last)
        p = reference.merged(teacher[row], labels[1][row], theirs, t[n].item(), last)
        if isinstance(objective, ULD):
            expected.append(reference.uld(p, q))
        else:
            pairs = list(zip(its.tolist(), mine.tolist(), strict=True))
            expected.append(reference.gold(p, q, pairs, objective.beta, objective.matched, objective.unmatched))
    torch.testing.assert_close(objective(items, t), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_loss_is_a_mean_over_groups_and_then_over_rows_and_the_cross_entropy_over_the_students_tokens():
    student, teacher, labels, ends = pair_of_texts()
    student.requires_grad_()
    ends[0][0, 3] = ends[1][0, 4] = 7  # both reach an end
    items = items_of(student, teacher, labels, ends, Pairing(end=True))
    loss, parts = DistillationLoss(ULD(pairs="bytes"), 1.0, "uniform", 0.5, 2.0)(items)
    values = ULD(pairs="bytes")(items, torch.ones(len(items)))
    rows = torch.stack([values[:2].mean(), values[2:].mean()])
    known = labels[0][:, 1:] != IGNORED
    ce = torch.nn.functional.cross_entropy(student[:, :-1][known], labels[0][:, 1:][known])
    torch.testing.assert_close(loss, 0.5 * ce + 2 * rows.mean())
    torch.testing.assert_close(parts["ce"], ce.detach().float())


def test_weights_and_energies_of_a_group_are_means_over_its_tokens_and_entropies_have_their_own_bounds():
    student, teacher, labels, ends = pair_of_texts()
    ends[0][0, 3] = ends[1][0, 4] = 7
    items = items_of(student, teacher, labels, ends, Pairing(end=True))
    own = [reference.entropy(student[0, k], 3.0) for k in (0, 1)]
    theirs = reference.entropy(teacher[0, 0], 3.0)
    assert items.student.entropy(3.0)[0].item() == pytest.approx(sum(own) / 2)
    assert items.teacher.entropy(3.0)[0].item() == pytest.approx(theirs)
    energies = [reference.energy(teacher[0, k], 4.0) for k in (1, 2, 3)]
    assert items.teacher.energy(4.0)[1].item() == pytest.approx(sum(energies) / 3)
    weight = DistillationLoss("gold", 1.0, "entropy(level='item')").choose(items)["weight"][0]
    bound = torch.tensor(float(V_S)).log().item()
    assert weight.item() == pytest.approx(theirs * (1 + sum(own) / 2 / bound) / 2)


def test_few_classes_of_many_are_compared_without_sorting_all():
    g = torch.Generator().manual_seed(0)
    p, q = (leaf(torch.rand(3, c, generator=g, dtype=torch.float64)) for c in (5, 60))
    expected = torch.stack(
        [torch.tensor(reference.uld(a.tolist(), b.tolist()), dtype=torch.float64) for a, b in zip(p, q, strict=True)]
    )
    torch.testing.assert_close(sorted_l1(p, q), expected)
    torch.testing.assert_close(sorted_l1(q, p), expected)
    whole = torch.nn.functional.pad(p, (0, 55)).sort(descending=True).values
    by_sorting = (whole - q.sort(descending=True).values).abs().sum()
    for a, b in zip(*(torch.autograd.grad(v, (p, q)) for v in (sorted_l1(p, q).sum(), by_sorting)), strict=True):
        torch.testing.assert_close(a, b)


def test_with_one_vocabulary_an_item_is_a_token_and_gold_the_divergence_of_all_classes():
    g = torch.Generator().manual_seed(0)
    v, z = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
    items, t = image_items(v, z, torch.arange(6) % 5), torch.linspace(1, 3, 6)
    p, q = ([reference.softmax(row, s) for row, s in zip(x, t, strict=True)] for x in (z, v))
    uld = torch.tensor([reference.uld(a, b) for a, b in zip(p, q, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(ULD()(items, t), uld, rtol=1e-6, atol=0)
    jsd = DistillationLoss("jsd(beta=0.5, scale='none')").objective(items, t)
    torch.testing.assert_close(GOLD()(items, t), jsd, rtol=1e-6, atol=0)


def test_other_objectives_have_no_classes_to_compare():
    student, teacher, labels, ends = pair_of_texts()
    ends[0][0, 3] = ends[1][0, 4] = 7
    items = items_of(student, teacher, labels, ends, Pairing(end=True))
    with pytest.raises(ValueError, match="use the objective uld or gold"):
        DistillationLoss("kd", 1.0)(items)


def test_weights_of_both_parts_are_given_together():
    with pytest.raises(ValueError, match="give both, or neither"):
        GOLD(matched=1.0)


def test_no_groups_are_no_loss_and_no_gradient():
    student, teacher, labels, _ = pair_of_texts()
    student.requires_grad_()
    nothing = [torch.full((2, 6), UNGROUPED)] * 2
    targets = [HostTargets.of(one) for one in labels]
    groups = Groups.of(*zip(targets, nothing, strict=True))
    picked = [Outputs(z.flatten(0, 1)[t.position]) for z, t in zip((student, teacher), targets, strict=True)]
    known = tuple(one.flatten()[t.position + 1] for one, t in zip(labels, targets, strict=True))
    for objective in ("uld(pairs='bytes')", "gold"):
        items = group_items(*picked, groups, known, same=(torch.arange(2), torch.arange(2)))
        loss, parts = DistillationLoss(objective, 1.0, "entropy", 0.0, 1.0)(items)
        assert loss.item() == 0
        assert all(torch.isfinite(one) for one in parts.values())
        assert not torch.autograd.grad(loss, student, retain_graph=True)[0].any()
