from dataclasses import replace

import pytest
import torch

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import (
    image_items,
    token_hidden,
    token_items,
)
from hfkd.losses.temperatures import Energy
from hfkd.losses.weightings import Entropy, Matched
from hfkd.utils.targets import IGNORED, HostTargets, Targets, count_token_items


def test_an_image_is_an_item_and_a_sample():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long), progress=2.5)
    assert len(items) == 5
    assert items.sample.tolist() == [0, 1, 2, 3, 4]
    assert items.progress == 2.5


def test_mean_over_sample_is_the_value_itself_for_images_bit_for_bit():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    values = torch.randn(5)
    assert torch.equal(items.mean_over_sample(values), values)


def test_that_an_image_is_a_sample_of_its_own_spares_work_and_changes_no_bit():
    items = image_items(torch.randn(6, 9), torch.randn(6, 9), torch.zeros(3, dtype=torch.long))
    for slot in (Energy(thresholds=(-9.0, -8.8)), Entropy(), Matched()):
        for seen in (items, items.view(1)):
            assert torch.equal(slot(seen), slot(replace(seen, own_sample=False)))
    with pytest.raises(ValueError, match="own_sample=True with 6 items in 2 samples"):
        replace(items, num_samples=2)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_means_of_long_samples_in_half_precision(half):
    """A slot of one's own may return the dtype of the networks."""
    labels = torch.cat([torch.full((1, 2), IGNORED), torch.ones(1, 70000, dtype=torch.long)], 1)
    items = token_items(*(torch.zeros(1, labels.shape[1], 2) for _ in range(2)), labels)
    values = torch.linspace(0, 2, len(items)).to(half)
    assert items.sample_means(values).tolist() == pytest.approx([1.0], rel=1e-2)


def test_mean_over_sample_averages_items_that_share_a_sample():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    items = replace(items, sample=torch.tensor([0, 2, 0, 2, 2]), num_samples=3, own_sample=False)
    assert items.mean_over_sample(torch.tensor([1.0, 3.0, 3.0, 6.0, 9.0])).tolist() == [2, 6, 2, 6, 6]


def test_different_class_counts_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"student gives 3 classes and the teacher 4"):
        image_items(torch.randn(2, 3), torch.randn(2, 4), torch.zeros(2, dtype=torch.long))


# ---- tokens -----------------------------------------------------------------------------------------------------

B, L, V = 3, 5, 7
LABELS = torch.tensor([[4, IGNORED, 2, 3, IGNORED], [IGNORED] * 5, [1, 2, 3, 4, 5]])
# Row 0: positions 1 and 2 predict 2 and 3. Row 1: none. Row 2: positions 0 to 3 predict 2 to 5; its first label, none.
WANTED = [(0, 1, 2), (0, 2, 3), (2, 0, 2), (2, 1, 3), (2, 2, 4), (2, 3, 5)]


def test_position_i_predicts_the_label_at_i_plus_1_and_ignored_labels_are_no_items():
    student, teacher = torch.randn(B, L, V), torch.randn(B, L, V)
    items = token_items(student, teacher, LABELS, progress=1.5)
    assert len(items) == len(WANTED) == count_token_items(LABELS).item()
    assert items.labels.tolist() == [label for _, _, label in WANTED]
    assert items.sample.tolist() == [row for row, _, _ in WANTED]
    assert (items.num_samples, items.progress) == (B, 1.5)
    for n, (row, position, _) in enumerate(WANTED):
        assert torch.equal(items.student.logits[n], student[row, position])
        assert torch.equal(items.teacher.logits[n], teacher[row, position])


def test_labels_in_their_own_place():
    student, teacher = torch.randn(B, L, V), torch.randn(B, L, V)
    items = token_items(student, teacher, LABELS, shift=0)
    wanted = [(b, i, LABELS[b, i].item()) for b in range(B) for i in range(L) if LABELS[b, i] != IGNORED]
    assert len(items) == len(wanted) == count_token_items(LABELS, shift=0).item()
    for n, (row, position, label) in enumerate(wanted):
        assert torch.equal(items.student.logits[n], student[row, position])
        assert torch.equal(items.teacher.logits[n], teacher[row, position])
        assert (items.sample[n].item(), items.labels[n].item()) == (row, label)


def test_targets_of_another_shift_are_found_anew():
    shifted, in_place = HostTargets.of(LABELS), HostTargets.in_place(LABELS)
    assert count_token_items(LABELS, shifted, shift=0) == len(in_place.position) != len(shifted.position)
    assert Targets(LABELS, shifted, shift=0).labels.tolist() == [4, 2, 3, 1, 2, 3, 4, 5]
    assert Targets(LABELS, in_place).labels.tolist() == [2, 3, 2, 3, 4, 5]


def test_the_cross_entropy_of_tokens_is_that_of_a_shifted_hugging_face_model():
    logits = torch.randn(B, L, V)
    loss, _ = DistillationLoss(ce_weight=1.0, kd_weight=0)(token_items(logits, logits, LABELS))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)


def test_hidden_states_are_picked_like_logits():
    hidden, taught = torch.randn(B, L, 4), torch.randn(B, L, 6)
    items = token_hidden(hidden, taught, LABELS, progress=2.0)
    same = token_items(hidden, hidden, LABELS)
    assert torch.equal(items.student, same.student.logits)
    assert items.teacher.shape == (len(same), 6)
    assert torch.equal(items.labels, same.labels)
    assert torch.equal(items.sample, same.sample)
    assert (len(items), items.num_samples, items.progress) == (len(same), B, 2.0)


@pytest.mark.parametrize("temperature", [2.0, Energy(thresholds=(-3.0, -2.0))])
@pytest.mark.parametrize("weighting", ["uniform", "entropy", Matched()])
@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0), 5])
def test_a_batch_without_targets_gives_loss_0_and_gradient_0(temperature, weighting, num_items):
    logits = torch.randn(B, L, V, requires_grad=True)
    items = token_items(logits, torch.randn(B, L, V), torch.full((B, L), IGNORED))
    assert len(items) == 0
    loss, parts = DistillationLoss("kd", temperature, weighting)(items, num_items)
    loss.backward()
    assert loss.item() == 0
    assert all(part.item() == 0 for part in parts.values())
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.randn(B, V), torch.zeros(B, dtype=torch.long), r"labels of shape \(3,\): tokens need"),
        (torch.randn(B, 1, V), LABELS, r"shape \(3, 1, 7\) does not fit labels of shape \(3, 5\).*logits_to_keep=0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        token_items(logits, logits, labels)


def test_a_view_is_an_item_and_a_sample_of_its_own_and_the_losses_of_views_add_up():
    student, taught, labels = torch.randn(2 * B, V), torch.randn(2 * B, V), torch.tensor([4, 0, 2])
    both = image_items(student, taught, labels)
    assert (len(both), both.views, both.num_samples) == (2 * B, 2, 2 * B)
    assert both.labels.tolist() == [4, 0, 2, 4, 0, 2]
    assert both.sample.tolist() == list(range(2 * B))
    loss = DistillationLoss("kd", 4.0, "entropy")
    total = 0
    for v in range(2):
        rows = slice(v * B, (v + 1) * B)
        alone, view = image_items(student[rows], taught[rows], labels), both.view(v)
        assert torch.equal(view.student.logits, alone.student.logits)
        assert torch.equal(view.labels, labels)
        assert (view.views, view.num_samples, view.sample.tolist()) == (1, B, [0, 1, 2])
        total += loss(alone, B)[0]
    torch.testing.assert_close(loss(both, len(labels))[0], total)
    assert alone.view(0) is alone


def test_mixed_labels_are_repeated_for_each_view():
    labels = torch.rand(B, V)
    assert torch.equal(image_items(torch.randn(2 * B, V), torch.randn(2 * B, V), labels).view(1).labels, labels)


@pytest.mark.parametrize("rows", [B + 1, B - 1])
def test_rows_that_are_no_whole_number_of_views_are_refused(rows):
    with pytest.raises(ValueError, match=f"{rows} rows of logits do not fit {B} labels"):
        image_items(torch.randn(rows, V), torch.randn(rows, V), torch.zeros(B, dtype=torch.long))


def test_several_teachers_are_their_mean_and_each():
    taught = torch.randn(4, B, L, V)
    for items in (
        token_items(torch.randn(B, L, V), taught, LABELS),
        image_items(torch.randn(B, V), taught[:, :, 0], torch.zeros(B, dtype=torch.long)),
    ):
        assert len(items.teachers) == 4
        mean = torch.stack([one.logits for one in items.teachers]).mean(0)
        torch.testing.assert_close(items.teacher.logits, mean)
