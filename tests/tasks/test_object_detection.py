"""Boxes: each proposal an item, each image a sample; torchvision's own computations one after the other, in float64.

B images, P proposals, C classes.
"""

import copy
import math
import shutil

import pytest
import torch
from detection_toys import CLASSES, EVERY, boxed, detector
from recipe_toys import write_boxes
from torch.nn.functional import cross_entropy
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.box_arguments import BoxDataArguments
from hfkd.data.boxes import BoxCollator
from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.models.detection import detector as by_name
from hfkd.models.feature_capture import FeatureCapture
from hfkd.tasks.object_detection import ObjectDetection
from hfkd.teachers import FrozenTeacher
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.micro_batch import MicroBatch

DETECTION = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "temperature": "1.0"}
IMAGES = {
    "boxes in some": (2, 0, 1),
    "one image": (3,),
    "one image without boxes": (0,),
    "no boxes at all": (0, 0),
}
WEIGHTINGS = ["uniform", "entropy(temperature=4, level='item')", "entropy(temperature=4)"]


def trainer(folder, student=None, teacher=None, rows=None, scored=None, metric=None, **settings):
    args = arguments(folder, **(DETECTION | {"learning_rate": 0.01, "ce_weight": 1.0, "kd_weight": 1.0} | settings))
    teacher = (teacher or detector(8, seed=1, sharp=20.0)) if args.kd_weight or args.evaluate_kl else None
    rows = rows or boxed()
    keywords = {"compute_metrics": metric} if metric else {}
    return DistillationTrainer(
        student or detector(), teacher, args, train_dataset=rows, eval_dataset=scored, **keywords
    )


def batch_of(rows, dtype=torch.float32):
    batch = BoxCollator()(rows)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def by_hand(net, rows, dtype):
    """torchvision's training forward in its own steps: losses, and of each image proposals, labels and logits."""
    targets = [{"boxes": row["boxes"].to(dtype), "labels": row["labels"]} for row in rows]
    images, targets = net.transform([row["pixel_values"].to(dtype) for row in rows], targets)
    features = {"0": net.backbone(images.tensors)}
    proposals, losses = net.rpn(images, features, targets)
    heads = net.roi_heads
    proposals, _, labels, aims = heads.select_training_samples(proposals, targets)
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    all_labels, all_aims = torch.cat(labels), torch.cat(aims)
    found = all_labels > 0
    deltas = deltas.view(len(deltas), -1, 4)[found, all_labels[found]]
    box = torch.nn.functional.smooth_l1_loss(deltas, all_aims[found], beta=1 / 9, reduction="sum") / len(all_labels)
    own = cross_entropy(logits, all_labels) + box + losses["loss_objectness"] + losses["loss_rpn_box_reg"]
    return own, proposals, logits.split([len(one) for one in proposals]), images.image_sizes


def taught(net, rows, proposals, dtype):
    images, _ = net.transform([row["pixel_values"].to(dtype) for row in rows])
    features = {"0": net.backbone(images.tensors)}
    pooled = net.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
    return net.roi_heads.box_predictor(net.roi_heads.box_head(pooled))[0].split([len(one) for one in proposals])


def entropy_at(z, temperature):
    p = (z / temperature).softmax(-1)
    return -(p * p.log()).sum()


def naive(own, students, teachers, weighting):
    """own + the mean over images of the means over proposals of w KL(p_T || p_S)."""
    total = torch.zeros((), dtype=own.dtype)
    for mine, its in zip(students, teachers, strict=True):
        weights, divergences = [], []
        for z, t in zip(mine, its, strict=True):
            p, q = t.softmax(-1), z.softmax(-1)
            divergences.append((p * (p.log() - q.log())).sum())
            with torch.no_grad():
                bound = math.log(CLASSES)
                weights.append(entropy_at(t, 4.0) * (1 + entropy_at(z, 4.0) / bound) / 2)
        if weighting == "uniform":
            weights = [torch.ones(())] * len(weights)
        elif "item" not in weighting:
            weights = [torch.stack(weights).mean()] * len(weights)
        total = total + sum(w * d for w, d in zip(weights, divergences, strict=True)) / len(mine)
    return own + total / len(students)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("counts", IMAGES.values(), ids=IMAGES)
def test_loss_and_gradient_are_a_naive_loop_over_proposals(counts, weighting):
    rows, dtype = boxed(counts), torch.float64
    student, teacher = detector().double().train(), detector(8, seed=1, sharp=20.0).double().eval()
    other = copy.deepcopy(student)
    loss = DistillationLoss("kd", 1.0, weighting, ce_weight=1.0, kd_weight=1.0)
    step = DenseForward(Call.of(student), ObjectDetection(), loss)
    torch.manual_seed(3)
    ours, parts, items = step(student, FrozenTeacher(teacher), MicroBatch(batch_of(rows, dtype)))
    torch.manual_seed(3)
    own, proposals, logits, _ = by_hand(other, rows, dtype)
    with torch.no_grad():
        its = taught(teacher, rows, proposals, dtype)
    wanted = naive(own, logits, its, weighting)
    assert items.items == sum(map(len, proposals))
    assert parts["kd"] > 1e-3
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    ours.backward()
    wanted.backward()
    for (name, mine), theirs in zip(student.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("counts", IMAGES.values(), ids=IMAGES)
def test_what_the_hooks_see_remakes_the_classification_loss_to_the_last_digit(counts):
    net = detector().train()
    seen = Call.of(net).output(net, batch_of(boxed(counts)))
    assert cross_entropy(seen["logits"], seen["region_labels"]) == seen["losses"]["loss_classifier"]
    assert sum(map(len, seen["proposals"])) == len(seen["logits"])
    assert "select_training_samples" not in vars(net.roi_heads)
    assert not net.roi_heads.box_predictor._forward_hooks
    assert not net.roi_heads.box_roi_pool._forward_pre_hooks


def test_labels_alone_give_torchvisions_loss_and_gradient_to_the_last_digit():
    rows, student = boxed(), detector().train()
    other = copy.deepcopy(student)
    step = DenseForward(Call.of(student), ObjectDetection(), DistillationLoss(ce_weight=1.0, kd_weight=0.0))
    torch.manual_seed(5)
    loss, parts, _ = step(student, None, MicroBatch(batch_of(rows), Counts(4, 4, 4)))
    loss.backward()
    torch.manual_seed(5)
    own = other([row["pixel_values"] for row in rows], [{k: row[k] for k in ("boxes", "labels")} for row in rows])
    wanted = sum(own.values())
    wanted.backward()
    assert loss == wanted == parts["detector_loss"]
    assert torch.isclose(parts["ce"], own["loss_classifier"])
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(student.parameters(), other.parameters(), strict=True))


def test_accumulated_batches_count_by_their_images(tmp_path):
    """Three images, then one: the step's gradient is 3/4 of the one's and 1/4 of the other's."""
    rows = boxed((2, 0, 1, 3))
    student = detector(**EVERY)
    start = copy.deepcopy(student)
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 1, "kd_weight": 0.0}
    made = trainer(tmp_path, student, rows=rows, learning_rate=1.0, **settings)
    made.get_train_dataloader = lambda: made.accelerator.prepare(
        torch.utils.data.DataLoader(rows, 3, collate_fn=made.data_collator)
    )
    made.train()
    start.train()
    for part, share in ((rows[:3], 0.75), (rows[3:], 0.25)):
        losses = start([r["pixel_values"] for r in part], [{k: r[k] for k in ("boxes", "labels")} for r in part])
        (share * sum(losses.values())).backward()
    for before, after in zip(start.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(after, before - before.grad, rtol=1e-4, atol=1e-6)


class Counted:
    """A metric that says how many images it was shown, and that gets worse with each evaluation but the first."""

    def __init__(self):
        self.seen = []

    def __call__(self, prediction, compute_result=True):
        found, there = prediction.predictions, prediction.label_ids
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == len(there["boxes"])
        self.seen.append((len(there["labels"]), [(labels > 0).sum().item() for labels in there["labels"]]))
        return {"ap": 10.0 - len(self.seen)}


def test_evaluation_counts_images_and_ap_chooses_the_checkpoint(tmp_path):
    metric = Counted()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "ap", "save_strategy": "steps", "save_steps": 1}
    made = trainer(
        tmp_path, scored=boxed((1, 2, 0, 3, 1), seed=4), metric=metric, evaluate_kl=True, eval_strategy="steps",
        eval_steps=1, max_steps=2, **best,
    )  # fmt: skip
    made.train()
    assert metric.seen[0] == (5, [1, 2, 0, 3, 1])
    assert made.state.best_model_checkpoint.endswith("checkpoint-1")
    scores = made.evaluate()
    assert "eval_loss" not in scores
    assert scores["eval_kl"] > 0
    assert scores["eval_ap"] == 7.0


def test_the_pyramids_maps_are_stages_and_reviewkd_compares_them(tmp_path):
    settings = {"levels": (1, 2), "fpn_channels": 8, "head_size": 8, "min_size": 48, "max_size": 72, "anchor_size": 8}
    torch.manual_seed(0)
    student, teacher = (by_name("test_efficientnet", CLASSES, **settings) for _ in range(2))
    batch = batch_of(boxed((1, 2)))
    capture = FeatureCapture(student, ("1:",), "student")
    _, found = capture.run(lambda: Call.of(student).output(student, batch))
    capture.remove()
    images, _ = student.transform([row["pixel_values"] for row in boxed((1, 2))])
    maps = list(student.backbone(images.tensors).values())
    assert len(maps) == len(found) == 3
    for level, wanted in enumerate(maps, 1):
        torch.testing.assert_close(found[str(level)], wanted)
    review = "reviewkd(layers='1:', teacher_layers='1:', warmup_epochs=0, max_middle=4)"
    made = trainer(tmp_path, student, teacher, objective=review, max_steps=2)
    made.train()
    logged = [entry["reviewkd"] for entry in made.state.log_history if "reviewkd" in entry]
    assert len(logged) == 2
    assert logged[1] != logged[0] > 0
    assert set(student.state_dict()) == set(teacher.state_dict())


def test_a_detector_whose_heads_classify_something_else_is_refused(tmp_path):
    student = detector()

    class Doubled(type(student.roi_heads)):
        def forward(self, *given):
            boxes, losses = super().forward(*given)
            return boxes, {name: 2 * loss for name, loss in losses.items()}

    student.roi_heads.__class__ = Doubled
    with pytest.raises(ValueError, match="the classification loss computed by FasterRCNN on two rows is"):
        trainer(tmp_path, student)


def test_a_label_smoother_of_ones_own_is_refused(tmp_path):
    made = trainer(tmp_path)
    made.label_smoother = lambda outputs, labels: 0.0
    with pytest.raises(ValueError, match="would be added to the model's own loss"):
        made.train()


def test_a_teacher_that_resizes_otherwise_in_a_step_is_named():
    student, teacher = detector().train(), detector(seed=1)
    batch = batch_of(boxed((1, 1)))
    output = Call.of(student).output(student, batch)
    teacher.transform.min_size = (40,)
    inputs = ObjectDetection().after_student(batch, output)
    with pytest.raises(ValueError, match="the student resizes an image to .* and the teacher to"):
        FrozenTeacher(teacher)(**inputs)


def test_a_teacher_that_names_its_classes_is_put_into_the_datas_order_or_refused(tmp_path):
    train, _, names = BoxDataArguments(str(write_boxes(tmp_path / "boxes"))).load()
    net = detector(8, seed=1)
    other = [names[0], *reversed(names[1:])]
    made = trainer(tmp_path / "run", teacher=FrozenTeacher(net, label_names=other), rows=train)
    assert made.teacher.order.tolist() == [0, 3, 2, 1]
    made.train()
    with pytest.raises(ValueError, match="the teacher does not have the classes of the data"):
        trainer(tmp_path / "run", teacher=FrozenTeacher(net, label_names=[*names[:3], "bird"]), rows=train)


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path):
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim_args": "momentum=0.9"}
    whole = trainer(tmp_path, **saving)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer(tmp_path, **saving)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(next(whole.model.parameters()), next(detector().parameters()))
