"""The contract of objectives on inner features: a number a sample, with a gradient to student and connectors."""

import pytest
import torch
from feature_toys import LABELS, NAMES, built, items_of
from objectives_by_level import ON_FEATURES
from torch import nn

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.features import CATKD, CRD, LSH, NST, PKD, RKD, VID, HiddenCosine, HiddenMSE, MiniLM, ReviewKD
from hfkd.losses.features.crd import contrast, exponentials
from hfkd.losses.features.hidden_cosine import hidden_cosine
from hfkd.losses.features.hidden_mse import squared_difference
from hfkd.losses.logits import OBJECTIVES
from hfkd.models.pruning import chosen
from hfkd.utils.slots import resolve

B = 6
T = torch.full((B,), 4.0)


def test_every_objective_on_features_is_tested_here():
    own = {"fcfd", "sakd"}  # they run their networks, and have tests of their own
    assert set(NAMES) | own == set(ON_FEATURES)


@pytest.mark.parametrize("name", NAMES)
def test_one_number_a_sample_with_gradients(name):
    objective, items = built(name, dtype=torch.float64)
    values = objective(items, T)
    assert values.shape == (B,)
    assert values.isfinite().all()
    values.sum().backward()
    for key, feature in items.student.features.items():
        if any(key == mine for mine, _ in objective.pairs):
            parts = feature[:3] if isinstance(feature, tuple) else [feature]
            assert any(part.grad is not None and part.grad.count_nonzero() for part in parts), key
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_features_in_bfloat16_and_autocast_give_finite_numbers_near_those_of_float32(name):
    exact, items = built(name, dtype=torch.float32)
    torch.manual_seed(0)
    rough, halves = built(name, dtype=torch.float32, half=True)
    rough.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        values = rough(halves, T)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact(items, T), rtol=0.1, atol=0.1 * exact(items, T).abs().max().item())
    values.sum().backward()
    assert all(p.grad.isfinite().all() for p in rough.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lsh"])  # its numbers know how many images are right
def test_a_permutation_of_the_batch_permutes_the_numbers(name):
    objective, items = built(name, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(objective(items_of(items, order), T), objective(items, T)[order])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
def test_the_loss_is_the_mean_of_weighted_samples(name, weighting):
    objective, items = built(name, dtype=torch.float64)
    loss = DistillationLoss(objective, 4.0, weighting, ce_weight=0.0, kd_weight=2.0)
    weight = loss.choose(items)["weight"]
    torch.testing.assert_close(loss(items)[0], 2 * (weight * objective(items, T)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_the_slots_string_is_the_objective(name):
    objective = resolve(name, OBJECTIVES, "objective")
    assert repr(resolve(repr(objective).replace(type(objective).__name__, name, 1), OBJECTIVES, "objective")) == repr(
        objective
    )
    assert objective.level == "sample"
    assert not objective.softens
    with pytest.raises(ValueError, match="call build"):
        objective(built(name, dtype=torch.float64)[1], T)


# ---- what single methods say ---------------------------------------------------------------------------------------


def test_reviewkd_grows_over_its_first_epochs():
    objective, items = built("reviewkd", dtype=torch.float64)
    plain, _ = built(ReviewKD(warmup_epochs=0), dtype=torch.float64)
    plain.load_state_dict(objective.state_dict())
    for progress, share in ((0.0, 1 / 20), (3.5, 4 / 20), (30.0, 1.0)):
        at = items_of(items, torch.arange(B), progress=progress)
        torch.testing.assert_close(objective(at, T), share * plain(at, T))
    assert objective.requirements().epochs == 20


def test_crd_draws_its_negatives_and_remembers_after_the_step():
    objective, items = built(CRD(negatives=9, dimension=4), dtype=torch.float64)
    bank = objective.bank
    before = bank.student.clone()
    values = objective(items, T)
    rows = torch.cat([items.index[:, None], objective.sampler(items.seed, items.step, items.index, 9)], 1)
    labels = LABELS
    assert (labels[rows[:, 1:]] != labels[items.index][:, None]).all()
    expected = 0.0
    for embed, key, memory, name in (
        (objective.embed_student, items.student, bank.teacher, "student"),
        (objective.embed_teacher, items.teacher, bank.student, "teacher"),
    ):
        scores = exponentials(embed(key.features["pooled"]), memory, rows, 0.07)
        expected = expected + contrast(scores / bank.normalizer(name, scores), 9 / len(labels))
    torch.testing.assert_close(values, expected)
    assert torch.equal(bank.student, before)
    objective(items_of(items, torch.arange(B), step=1), T)
    changed = (bank.student != before).any(1).nonzero().flatten()
    assert changed.tolist() == sorted(items.index.tolist())


def test_crd_remembers_nothing_of_what_it_evaluates():
    objective, items = built(CRD(negatives=9, dimension=4), dtype=torch.float64)
    objective.eval()
    objective(items, T)
    objective.train()
    with torch.no_grad():
        objective(items, T)
    assert len(objective.bank.pending_rows) == 0


def test_lsh_counts_the_images_that_the_teacher_has_right():
    objective, items = built("lsh", dtype=torch.float64)
    every, _ = built(LSH(correct_only=False), dtype=torch.float64)
    right = items.teacher.logits.argmax(-1) == items.labels
    assert 0 < right.sum() < B
    expected = every(items, T)[right].mean()
    torch.testing.assert_close(objective(items, T).mean(), expected)
    assert objective(items, T)[~right].count_nonzero() == 0
    wrong = items_of(items, torch.arange(B), labels=(items.teacher.logits.argmax(-1) + 1) % 5)
    assert objective(wrong, T).tolist() == [0.0] * B


@pytest.mark.parametrize(
    ("objective", "changed", "message"),
    [
        (CRD(), {"num_rows": None}, "is a stream of unknown length"),
        (CRD(), {"labels": None}, r"crd\(sampling='other_images'\)"),
        (CATKD(layer="1"), {}, "its classifier reads"),
        (LSH(teacher_layer="1"), {}, "with_projector"),
        (VID(layers="pooled"), {}, r"has the shape \(8,\)"),
        (NST(layers="pooled"), {}, "are compared: name a layer of a convolutional"),
        (HiddenCosine(layers="other"), {}, "without a projection"),
        (PKD(layers=("1", "other"), teacher_layers=("1", "other")), {}, "of a single width"),
        (MiniLM(heads=5), {}, "5 relation heads"),
    ],
)
def test_what_cannot_be_built_is_refused(objective, changed, message):
    with pytest.raises(ValueError, match=message):
        built(objective, dtype=torch.float64, **changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RKD(distance=0, angle=0), "both 0"),
        (lambda: RKD(angle=-1.0), "RKD: angle=-1.0"),
        (lambda: VID(variance=1e-6), "variance"),
        (lambda: MiniLM(compared=("qx",)), "MiniLM: compared=.*pairs of q, k and v"),
        (lambda: CRD(sampling="none"), "CRD: sampling='none'"),
        (lambda: HiddenMSE(layers=(1, 2), teacher_layers="uniform"), r"layers=\(1, 2\) names some of them"),
        (lambda: HiddenMSE(layers={1: 2}, teacher_layers="uniform"), "is set too"),
        (lambda: HiddenCosine(layers={1: 2.5}), "HiddenCosine: layers={1: 2.5} must be"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_that_would_not_fit_are_refused():
    objective, items = built("hidden_mse", dtype=torch.float64)
    with pytest.raises(ValueError, match="switch packing off"):
        objective(items_of(items, torch.arange(B), num_samples=B + 1, own_sample=False), T)
    objective, items = built("crd", dtype=torch.float64)
    with pytest.raises(ValueError, match="the batch has no index"):
        objective(items_of(items, torch.arange(B), index=None), T)


def test_the_layers_of_a_deeper_teacher_are_every_second():
    objective, _ = built("hidden_mse", dtype=torch.float64)
    assert objective.pairs == (("0", "0"), ("1", "2"), ("2", "4"), ("3", "6"), ("4", "8"), ("5", "10"))
    objective, _ = built("attention_scores", dtype=torch.float64)
    assert objective.pairs == tuple((f"attention:{k}", f"attention:{2 * k}") for k in range(1, 6))


def test_layers_by_a_map():
    objective, items = built("hidden_cosine(layers={0: 0, 3: 7}, projection=True)")
    assert objective.pairs == (("0", "0"), ("3", "7"))
    project = objective.project
    expected = sum(
        hidden_cosine(project(items.student.features[mine]), items.teacher.features[its], items.mask)
        for mine, its in objective.pairs
    )
    torch.testing.assert_close(objective(items, T), expected)
    assert [p.shape for p in objective.parameters()] == [(4, 4), (4,)]


def test_states_of_one_width_are_compared_without_a_projection():
    objective, items = built("hidden_mse(layers={2: 9}, projection=False)")
    assert not list(objective.parameters())
    mine, its = items.student.features["2"], items.teacher.features["9"]
    torch.testing.assert_close(objective(items, T), squared_difference(mine, its, items.mask))


@pytest.mark.parametrize(
    ("blocks", "pairs"),
    [((3, 5), (1, 3, 5)), ((2, 5), (1, 5)), ((4, 6), (1, 3, 4, 6)), ((1, 5), (1,)), ((3, 3), (1, 2, 3))],
)
@pytest.mark.parametrize("start", [0, 1])
def test_layers_spread_evenly_are_those_that_pruning_keeps(blocks, pairs, start):
    networks = []
    for count in blocks:
        keys = tuple(map(str, range(start, count + 1)))
        networks.append(NetworkContext(dict.fromkeys(keys, (5, 4)), {}, nn.Identity(), {f"{start}:": keys}))
    objective = HiddenMSE(layers=f"{start}:", teacher_layers="uniform")
    objective.build(BuildContext(*networks, 5, None, None, lambda visit: None, seed=0))
    embeddings = (("0", "0"),) if start == 0 else ()
    assert objective.pairs == embeddings + tuple((str(i), str(k)) for i, k in enumerate(pairs, 1))
    assert [k - 1 for k in pairs] == chosen(blocks[0], "uniform", blocks[1], "layers")


def test_classes_that_the_teacher_has_in_another_order_are_compared_by_what_they_mean():
    plain, items = built("catkd", dtype=torch.float64)
    order = [2, 0, 1, 4, 3]
    other, _ = built("catkd", dtype=torch.float64, class_order=tuple(order))
    with torch.no_grad():
        weight = other.classifiers[1].weight
        weight[order] = weight.clone()
    torch.testing.assert_close(other(items, T), plain(items, T))


def test_networks_are_no_part_of_an_objective():
    objective, _ = built("catkd", dtype=torch.float64)
    assert list(objective.parameters()) == []
    assert not any(isinstance(module, nn.Linear) for module in objective.modules())
