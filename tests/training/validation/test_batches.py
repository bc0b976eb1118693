"""Batches that leave nothing to train, or nothing to compare."""

import pytest
import torch
from objectives_by_level import ON_LOGITS
from task_toys import KINDS
from text_toys import TokenRows, language_model, taught_model
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import OBJECTIVES
from hfkd.utils.slots import resolve


def make(folder, batch, rows=32, **slots):
    args = arguments(folder / "run", per_device_train_batch_size=batch, max_steps=-1, num_train_epochs=1)
    return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(rows), **slots)


@pytest.mark.parametrize(
    ("slots", "least"),
    [
        ({"objective": "dist"}, 3),
        ({"objective": "standardized(objective='dist')"}, 3),
        ({"objective": "average(objective='dist(beta=2.0)')"}, 3),
        ({"weighting": "matched"}, 2),
        ({"weighting": "matched(weighting='matched')"}, 2),
    ],
)
def test_a_batch_in_which_nothing_can_be_compared_is_refused(tmp_path, slots, least):
    with pytest.raises(
        ValueError, match=f"needs at least {least}, but per_device_train_batch_size gives it {least - 1}"
    ):
        make(tmp_path, least - 1, **slots)
    assert not (tmp_path / "run").exists()
    make(tmp_path, least, **slots)


def of_two_classes(folder, stream=False, **slots):
    rows = Rows(8, classes=2)
    loader = torch.utils.data.DataLoader(rows, 8)

    class Streaming(DistillationTrainer):
        def get_train_dataloader(self):
            return loader

    build, data = (Streaming, {}) if stream else (DistillationTrainer, {"train_dataset": rows})
    args = arguments(folder / "run", per_device_train_batch_size=8, max_steps=1)
    return build(Net(classes=2), Net(classes=2, seed=1), args, **data, **slots)


@pytest.mark.parametrize(
    "slots",
    [
        {"objective": "standardized"},
        {"objective": "kd + average(objective=\"standardized(objective='dkd')\")"},
        {"objective": "dist"},
        {"weighting": "matched(weighting='entropy(standardized=True)')"},
    ],
)
def test_two_classes_centred_and_scaled_are_the_same_for_all_rows_and_are_refused(tmp_path, slots):
    for make_trainer in (
        lambda: of_two_classes(tmp_path, **slots),
        lambda: of_two_classes(tmp_path, stream=True, **slots).train(),
    ):
        with pytest.raises(ValueError, match="needs at least 3 classes, and an image has 2: two numbers"):
            make_trainer()
    DistillationTrainer(Net(), teacher(), arguments(tmp_path / "run"), train_dataset=Rows(8), **slots)


def test_several_labels_a_row_are_pairs_of_two_classes(tmp_path):
    kind = KINDS["BERT, several labels"]
    with pytest.raises(ValueError, match=r"Standardized\(.*needs at least 3 classes, and a \(row, label\) pair has 2"):
        DistillationTrainer(*kind.pair(), arguments(tmp_path), objective="standardized", **kind.keywords())


@pytest.mark.parametrize("slots", [{"objective": "dist(beta=0)"}, {"objective": "dkd"}, {"weighting": "entropy"}])
def test_what_two_classes_can_teach_is_trained(tmp_path, slots):
    of_two_classes(tmp_path, **slots).train()


@pytest.mark.parametrize(
    "slots",
    [{"objective": "dist(gamma=0.0)"}, {"objective": "mld"}, {"weighting": "matched(weighting='uniform')"}, {}],
)
def test_what_compares_nothing_may_have_single_rows(tmp_path, slots):
    make(tmp_path, 1, 4, **slots).train()


def test_a_last_batch_of_one_image_leaves_the_correlation_out(tmp_path):
    """9 images in batches of 8: the class term of the ninth would be the constant T² whatever the student does."""
    trainer = make(tmp_path, 8, 9, objective="dist")
    trainer.train()
    relations = [entry["relations"] for entry in trainer.state.log_history if "relations" in entry]
    assert relations[0] > 0
    assert relations[1] == 0


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("views", [1, 2])
def test_one_image_alone_is_zero_where_student_equals_teacher(name, views):
    objective = resolve(name, OBJECTIVES, "objective")
    z = 3 * torch.randn(views, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = z.clone().requires_grad_()
    loss = DistillationLoss(objective, 4.0, ce_weight=0.0, kd_weight=1.0)(image_items(v, z, torch.tensor([1])))[0]
    gradient = torch.autograd.grad(loss, v)[0]
    if objective.divergence:
        torch.testing.assert_close(loss, torch.zeros_like(loss))
        torch.testing.assert_close(gradient, torch.zeros_like(v))


def test_matched_weights_of_single_sequences_are_said_to_be_all_one(tmp_path, caplog):
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    for weighting, count in (("matched", 1), ("matched(weighting='entropy(level=\"item\")')", 0)):
        caplog.clear()
        DistillationTrainer(
            language_model(),
            taught_model(),
            arguments(tmp_path, **args),
            train_dataset=TokenRows(),
            data_collator=TokenCollator(0),
            weighting=weighting,
        )
        assert sum("It has an effect only for rows with several documents" in m for m in caplog.messages) == count


# ---- dataloader_drop_last --------------------------------------------------------------------------------------------


def dropping(folder, rows=32, scored=None, **keywords):
    args = arguments(folder / "run", dataloader_drop_last=True, **keywords)
    return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(rows), eval_dataset=scored)


def test_fewer_rows_than_a_batch_of_which_the_last_is_dropped(tmp_path):
    with pytest.raises(
        ValueError, match="the 7 rows of train_dataset are fewer than one batch of 8: nothing would be trained on"
    ):
        dropping(tmp_path, 7)
    assert not (tmp_path / "run").exists()
    trainer = dropping(tmp_path, 8, Rows(8), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


def test_what_is_scored_drops_no_row(tmp_path):
    scored = []
    trainer = dropping(tmp_path, 8, Rows(15), max_steps=1)
    trainer.compute_metrics = lambda found: scored.append(len(found.label_ids)) or {}
    trainer.evaluate()
    assert scored == [15]
    assert len(trainer.predict(Rows(15)).predictions) == 15
