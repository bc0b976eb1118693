"""Training rows of label -100: they learn from the teacher, and the cross-entropy is the mean over the others.

B rows, C classes.
"""

import copy

import pytest
import torch
from datasets import Dataset
from reference import kl_of
from task_toys import KINDS
from test_ranks import run
from torch.nn.functional import cross_entropy
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationLoss, DistillationTrainer
from hfkd.data.few_labels import few_labels
from hfkd.losses.counts import Counts
from hfkd.losses.items import image_items
from hfkd.reports.energy import class_captions
from hfkd.reports.history import epoch_rows

T = 4.0
KNOWN = [0, 3, 4, 7]  # of eight rows; the first half has one more than the second where it is cut after row 5


def partly(n=8, known=KNOWN, **keywords):
    rows = Rows(n, **keywords)
    rows.labels = torch.tensor([int(y) if i in known else -100 for i, y in enumerate(rows.labels)])
    return rows


def trainer(folder, rows, **settings):
    settings = {"max_steps": 1, "evaluate_teacher": False} | settings
    return DistillationTrainer(Net(), teacher(), arguments(folder, **settings), train_dataset=rows)


def by_hand(student, rows, ce_weight=0.1, kd_weight=0.9):
    """The mean cross-entropy over the rows with a label, and the mean divergence over all, row by row."""
    z, taught = student(rows.images), teacher()(rows.images)
    known = [i for i, y in enumerate(rows.labels.tolist()) if y >= 0]
    ce = sum(cross_entropy(z[i : i + 1], rows.labels[i : i + 1]) for i in known) / len(known)
    p, q = (taught / T).log_softmax(-1), (z / T).log_softmax(-1)
    kd = sum(T**2 * (p[i].exp() * (p[i] - q[i])).sum() for i in range(len(rows))) / len(rows)
    return ce_weight * ce + kd_weight * kd, ce.detach(), kd.detach()


def stepped(rows, rate=0.1):
    student = Net()
    by_hand(student, rows)[0].backward()
    with torch.no_grad():
        for p in student.parameters():
            p -= rate * p.grad
    return student


def assert_same(run, expected, tolerance=1e-6):
    for mine, its in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}])
def test_a_step_is_the_formula_row_by_row_whole_and_in_parts(tmp_path, split):
    rows = partly()
    run = trainer(tmp_path, rows, **split)
    run.train()
    assert_same(run, stepped(rows))
    loss, ce, kd = (float(x.detach()) for x in by_hand(Net(), rows))
    logged = run.state.log_history[0]
    assert logged["ce"] == pytest.approx(ce, abs=1e-5)
    assert logged["kd"] == pytest.approx(kd, abs=1e-4)
    assert logged["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_micro_batch_without_any_label_adds_no_cross_entropy(tmp_path):
    rows = partly(known=[5])
    run = trainer(tmp_path, rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    run.train()
    assert_same(run, stepped(rows))
    assert run.state.log_history[0]["ce"] == pytest.approx(float(by_hand(Net(), rows)[1]), abs=1e-5)


def test_steps_without_any_label_have_no_cross_entropy_in_the_log(tmp_path):
    """It is not 0, which would halve an epoch's mean."""
    run = trainer(tmp_path, partly(known=[2, 5]), per_device_train_batch_size=1, num_train_epochs=1, max_steps=-1)
    run.train()
    found = [entry["ce"] for entry in run.state.log_history if "ce" in entry]
    assert len(found) == 2
    assert min(found) > 0
    (row,) = epoch_rows(run.state.log_history)
    assert row["step"] == 8
    assert row["ce"] == pytest.approx(sum(found) / 2)


def test_a_row_of_texts_may_lack_its_label(tmp_path):
    kind = KINDS["BERT, a label a row"]
    student, taught = kind.pair()
    keywords = kind.keywords()
    rows = [row | ({"labels": -100} if i % 3 else {}) for i, row in enumerate(keywords["train_dataset"])]
    before = copy.deepcopy(student)
    settings = {"per_device_train_batch_size": len(rows), "max_steps": 1, "evaluate_teacher": False}
    run = DistillationTrainer(student, taught, arguments(tmp_path, **settings), **keywords | {"train_dataset": rows})
    run.train()
    alone = [{k: torch.as_tensor(v)[None] for k, v in row.items() if k != "labels"} for row in rows]
    with torch.no_grad():
        z, t = (torch.cat([one(**row).logits for row in alone]) for one in (before, taught))
    labels = torch.tensor([int(row["labels"]) for row in rows])
    ce = cross_entropy(z[labels >= 0], labels[labels >= 0])
    kd = T**2 * sum(kl_of((t[i] / T).softmax(-1), (z[i] / T).softmax(-1)) for i in range(len(rows))) / len(rows)
    assert run.state.log_history[0]["ce"] == pytest.approx(float(ce), abs=1e-5)
    assert run.state.log_history[0]["loss"] == pytest.approx(0.1 * float(ce) + 0.9 * float(kd), rel=1e-4)


def test_the_loss_by_itself_looks_for_rows_without_a_label():
    rows = partly()
    student, taught = Net()(rows.images), teacher()(rows.images)
    loss, parts = DistillationLoss()(image_items(student, taught, rows.labels))
    expected, ce, _ = by_hand(Net(), rows)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["ce"], ce)
    given = DistillationLoss()(image_items(student, taught, rows.labels), Counts(len(KNOWN), 8))[0]
    torch.testing.assert_close(given, expected)
    number = DistillationLoss()(image_items(student, taught, rows.labels), 8)[0]
    torch.testing.assert_close(number, expected)


def test_each_view_of_an_image_has_its_label_or_none():
    rows = partly()
    student, taught = Net()(rows.images), teacher()(rows.images)
    twice = image_items(torch.cat([student] * 2), torch.cat([taught] * 2), rows.labels)
    assert (twice.labelled, twice.view(1).labelled) == (2 * len(KNOWN), len(KNOWN))
    loss = DistillationLoss()(twice, Counts(len(KNOWN), 8))[0]
    torch.testing.assert_close(loss, 2 * by_hand(Net(), rows)[0])


REFUSED = {
    "dkd": ({"objective": "dkd"}, r"-100, which means no label: DKD\(.*reads the label; choose kd, or remove"),
    "no teacher": (
        {"kd_weight": 0.0, "ce_weight": 1.0},
        "-100, which means no label: there is nothing to learn from it; remove the row",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("first", [True, False])
def test_what_reads_a_label_is_refused_on_rows_without(tmp_path, name, first):
    settings, message = REFUSED[name]
    rows = partly(32, [i for i in range(32) if i != (0 if first else 20)])
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, rows, max_steps=4, **settings).train()


def digits(count, seed=0):
    from hfkd.data import ImageTransform
    from hfkd.data.digits import load_digits

    train, test = load_digits()
    return few_labels(train, count, seed).with_transform(ImageTransform()), test.with_transform(ImageTransform())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "nkd"}, "-100, which means no label: NKD"),
        ({"objective": "crd(negatives=8)"}, r"need a label for every row, but some rows have none \(-100\): use crd\("),
        ({"he_da": "paper"}, "he_da='paper' mixes labels"),
    ],
)
def test_a_stored_column_of_labels_is_read_when_the_trainer_is_built(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(Net(4, 10), teacher(10), arguments(tmp_path, **settings), train_dataset=digits(50)[0])


def test_rows_of_which_none_has_a_label_are_refused_beside_a_cross_entropy(tmp_path):
    train, test = digits(10)
    none = (
        train.with_format(None)
        .map(lambda _: {"labels": -100})
        .with_transform(train.format["format_kwargs"]["transform"])
    )
    networks = Net(4, 10), teacher(10)
    with pytest.raises(
        ValueError, match=r"no training row has a label \(all are -100\), but ce_weight=0.1 needs some: set"
    ):
        DistillationTrainer(*networks, arguments(tmp_path), train_dataset=none)
    run = DistillationTrainer(*networks, arguments(tmp_path, ce_weight=0.0), train_dataset=none)
    run.train()
    with pytest.raises(
        ValueError, match="eval_dataset: a row has the label -100, .* there is nothing to compare a prediction with"
    ):
        DistillationTrainer(*networks, arguments(tmp_path), train_dataset=test, eval_dataset=train)


def test_predictions_are_scored_over_the_rows_that_have_a_label(tmp_path):
    rows, none = partly(), partly(known=[])
    settings = {"per_device_eval_batch_size": 3, "evaluate_kl": True}  # a batch without any label, and a short one
    run = trainer(tmp_path, rows, **settings)
    found = run.predict(partly(known=[0, 6, 7]))
    z = run.model(rows.images).detach()
    known, full = [0, 6, 7], Rows(8).labels
    assert found.metrics["test_loss"] == pytest.approx(float(cross_entropy(z[known], full[known])), abs=1e-6)
    assert found.metrics["test_accuracy"] == pytest.approx(float((z.argmax(-1) == full)[known].float().mean()))
    assert found.metrics["test_top5_accuracy"] == 1.0
    assert found.predictions.shape == (8, 5)
    assert found.metrics["test_kl"] == pytest.approx(run.predict(none).metrics["test_kl"], abs=1e-6)  # of all rows
    assert not {"test_loss", "test_accuracy"} & set(run.predict(none).metrics)


def test_rows_that_are_set_later_are_looked_at_too(tmp_path):
    rows = partly()
    run = trainer(tmp_path, Rows(8))
    run.train_dataset = rows
    run.train()
    assert_same(run, stepped(rows))


@pytest.mark.slow
def test_two_ranks_with_unequal_labels_are_one_process(tmp_path):
    job = {"max_steps": 4, "unlabelled": 3, "weighting": "entropy"}
    one, record = run(tmp_path / "one", 1, job=job, per_device_train_batch_size=8)
    two, its = run(tmp_path / "two", 2, job=job, per_device_train_batch_size=4)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
    mine, theirs = ([entry["ce"] for entry in log["log"] if "ce" in entry] for log in (record, its))
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_rows_without_a_label_are_none_of_the_few_labels():
    rows = Dataset.from_dict({"labels": [0, 1, 2, 3] * 50, "index": range(200)})
    few = few_labels(few_labels(rows, 40), 20)
    assert sorted(label for label in few["labels"] if label >= 0) == sorted([0, 1, 2, 3] * 5)
    with pytest.raises(ValueError, match="from 1 to the 20 rows of the dataset with a label"):
        few_labels(few, 21)


def test_few_labels_are_as_many_of_each_class_as_can_be():
    train, _ = digits(25, seed=3)
    labels = torch.tensor(train.with_format(None)["labels"][:])
    counts = torch.bincount(labels[labels >= 0], minlength=10)
    assert (int((labels >= 0).sum()), int(counts.min()), int(counts.max())) == (25, 2, 3)
    again = torch.tensor(digits(25, seed=3)[0].with_format(None)["labels"][:])
    other = torch.tensor(digits(25, seed=4)[0].with_format(None)["labels"][:])
    assert torch.equal(labels, again)
    assert not torch.equal(labels, other)
    assert train.features["labels"].names == [str(d) for d in range(10)]
    with pytest.raises(ValueError, match="labelled=1300 must be from 1 to the 1200 rows"):
        digits(1300)


def test_a_picture_without_a_label_has_a_question_mark():
    sure = [[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]
    assert class_captions([1, -100, 1], sure, ["cat", "dog"]) == ["dog", "? →\ndog", "dog →\ncat"]
