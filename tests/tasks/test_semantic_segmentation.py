"""Masks: each pixel an item, each image a sample; the papers' formulas pixel by pixel, in float64.

B images, C classes, H and W of the labels.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from feature_toys import leaf, oracle
from largest_tensor import LargestTensor
from reference import energy, energy_temperature, energy_thresholds, entropy, kl_of
from task_toys import CLASSES, IGNORED, Pixels, masks, segformer, upernet
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large
from toys import Net, arguments

from hfkd import DistillationTrainer
from hfkd.data.masks import MaskTransform
from hfkd.evaluation.metrics.mean_iou import pixel_predictions
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.models.calling import Call
from hfkd.tasks.semantic_segmentation import SemanticSegmentation, flat_labels, on_grid
from hfkd.teachers import FrozenTeacher, scan

RATIO = 0.25
SEGMENTATION = {"task": "semantic_segmentation", "evaluate_teacher": False, "learning_rate": 1.0, "max_steps": 1}


class Coarse(Pixels):
    """A teacher whose maps are a third as large, and which is sure of some pixels alone."""

    def __init__(self, width, classes=CLASSES):
        super().__init__(width)
        self.body.stride = (3, 3)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        return 4 * super().forward(x)


def network(kind, width=4, seed=0, **keywords):
    torch.manual_seed(seed)
    return kind(width, **keywords).double()


def rows(count=4, seed=0):
    return [{"pixel_values": row["pixel_values"].double(), "labels": row["labels"]} for row in masks(count, seed)]


def stacked(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def trainer(folder, student, teacher, data=None, **settings):
    data = rows() if data is None else data
    args = arguments(folder, **(SEGMENTATION | settings))
    return DistillationTrainer(student, teacher, args, train_dataset=data, eval_dataset=data, data_collator=stacked)


def naive_pixels(net, row, stride):
    """Of each pixel that has a label: its logits, and the label. The grid is the middle of each block."""
    labels, maps = row["labels"], net(row["pixel_values"][None])
    places = [[min(k + stride // 2, n - 1) for k in range(0, n, stride)] for n in labels.shape]
    grid = interpolate(maps, (len(places[0]), len(places[1])), mode="bilinear", align_corners=False)[0]
    return [
        (grid[:, i, j], labels[h, w])
        for i, h in enumerate(places[0])
        for j, w in enumerate(places[1])
        if labels[h, w] not in (255, IGNORED)
    ]


def naive_loss(student, teacher, data, stride, level):
    """0.3 CE + 0.7 w T² KL, the mean over all pixels; T and w of each pixel, or of its image."""
    said = [[z.detach() for z, _ in naive_pixels(teacher, row, stride)] for row in data]
    seen = [naive_pixels(student, row, stride) for row in data]
    energies = [[energy(z, 4.0) for z in image] for image in said if image]
    if level == "sample":
        energies = [[sum(image) / len(image)] * len(image) for image in energies]
    flat = [e for image in energies for e in (image if level == "item" else image[:1])]
    low, high = energy_thresholds(flat, RATIO)
    count, loss = sum(map(len, seen)), 0.0
    shown = [(z, v) for z, v in zip(said, seen, strict=True) if z]
    for (zs, vs), es in zip(shown, energies, strict=True):
        h_t, h_s = ([entropy(x, 3.0) for x in xs] for xs in (zs, [v.detach() for v, _ in vs]))
        if level == "sample":
            h_t, h_s = ([sum(h) / len(h)] * len(h) for h in (h_t, h_s))
        for z, (v, label), e, a, b in zip(zs, vs, es, h_t, h_s, strict=True):
            T, w = energy_temperature(e, low, high), a * (1 + b / math.log(CLASSES)) / 2
            kd = w * T**2 * kl_of(torch.softmax(z / T, 0), torch.softmax(v / T, 0))
            loss = loss + (0.3 * cross_entropy(v, label) + 0.7 * kd) / count
    return loss


@pytest.mark.parametrize("level", ["sample", "item"])
@pytest.mark.parametrize("stride", [1, 2])
def test_temperature_and_weight_of_each_pixel_or_image(tmp_path, level, stride):
    """Two networks whose maps differ in size, odd sizes, a mask that is all ignored and one of a single class."""
    student, teacher = network(Pixels), network(Coarse, 8, 1)
    slots = {"temperature": f"energy(ratio={RATIO}, level='{level}')", "weighting": f"entropy(level='{level}')"}
    made = trainer(
        tmp_path, student, teacher, ce_weight=0.3, kd_weight=0.7, segmentation_stride=stride, **slots,
        data=rows(6), per_device_train_batch_size=3, gradient_accumulation_steps=2,
    )  # fmt: skip
    expected = copy.deepcopy(student)
    loss = naive_loss(expected, teacher, rows(6), stride, level)
    loss.backward()
    result = made.train()
    assert result.training_loss == pytest.approx(loss.item(), rel=1e-6)
    for (name, before), after in zip(expected.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(before.detach() - after.detach(), before.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_kd_of_pixels_in_the_words_of_public_code():
    """The mean over pixels of T² KL, which is CIRKD's; IFVD and TorchDistiller have it over C, mmrazor times H W."""
    z = oracle("more/segmentation")
    student, teacher = leaf(z["student"]), z["teacher"]
    batch = {"labels": torch.zeros(len(student), *student.shape[2:], dtype=torch.long)}
    items = SemanticSegmentation().items(batch, student, teacher)
    losses = {T: DistillationLoss(temperature=T, ce_weight=0.0, kd_weight=1.0)(items)[0] for T in (1.0, 2.0)}
    pixels, classes = batch["labels"][0].numel(), student.shape[1]
    published = {"cirkd_T2": losses[2.0], "ifvd": losses[1.0] / classes, "mmrazor_kl_T2": losses[2.0] * pixels}
    for name, loss in published.items():
        torch.testing.assert_close(loss, z[f"pixel.{name}.loss"], rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        torch.testing.assert_close(gradient, z[f"pixel.{name}.grad_student"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", ["kd", "dkd", "jsd", "dist"])
def test_objectives_on_items_take_pixels(tmp_path, objective):
    made = trainer(tmp_path, network(Pixels), network(Coarse, 8, 1), objective=objective, ce_weight=0, kd_weight=1)
    assert made.train().training_loss > 0.01


def test_a_batch_whose_masks_are_all_ignored_trains_nothing(tmp_path):
    data = [row | {"labels": torch.full_like(row["labels"], 255)} for row in rows(2)]
    for number, student in enumerate((network(Pixels), network(upernet, 8))):
        before = copy.deepcopy(student.state_dict())
        made = trainer(tmp_path / str(number), student, None, data, ce_weight=1, kd_weight=0)
        assert made.train().training_loss == 0
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_masks_in_black_and_white_are_spoken_of(tmp_path, caplog):
    settings = arguments(tmp_path / "run", task="semantic_segmentation", kd_weight=0.0, ce_weight=1.0)
    white = [row | {"labels": 255 * (row["labels"] > 0)} for row in masks(8)]
    for rows, said in ((masks(8), False), (white, True)):
        DistillationTrainer(Pixels(4), None, settings, train_dataset=rows)
        assert ("only class 0 would be learned" in caplog.text) == said


def test_the_grid_is_the_middle_of_each_block():
    labels = torch.arange(7 * 5).view(1, 7, 5)
    assert on_grid(labels, 3).tolist() == [[[6, 9], [21, 24], [31, 34]]]
    assert on_grid(labels, 1) is labels
    labels[0, 0, 0] = 255
    assert flat_labels(labels, None)[0, :2].tolist() == [IGNORED, 1]


# ---- torchvision ---------------------------------------------------------------------------------------------------


def test_torchvisions_models_are_known_with_their_auxiliary_head(tmp_path):
    student = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
    ).double()
    for module in student.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.eval()
            module.train = lambda mode=True, module=module: module
    teacher = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES).double()
    g = torch.Generator().manual_seed(0)
    data = [
        {
            "pixel_values": torch.randn(3, 32, 32, generator=g).double(),
            "labels": torch.randint(0, CLASSES, (32, 32), generator=g),
        }
        for _ in range(2)
    ]
    data[0]["labels"][:9] = 255
    made = trainer(tmp_path, student, teacher, data, task="auto", ce_weight=0.5, kd_weight=0.5, learning_rate=0.0)
    assert made.task.name == "semantic_segmentation"
    batch = stacked(data)
    with torch.no_grad():
        out, teachers = student(batch["pixel_values"]), teacher.eval()(batch["pixel_values"])["out"]
        main, aux = (cross_entropy(out[key], batch["labels"], ignore_index=255) for key in ("out", "aux"))
        p, q = (torch.log_softmax(z / 4, 1) for z in (teachers, out["out"]))
        kd = 16 * (p.exp() * (p - q)).sum(1)[batch["labels"] != 255].mean()
    made.train()
    log = made.state.log_history[0]
    assert log["loss"] == pytest.approx(float(0.5 * (main + 0.5 * aux) + 0.5 * kd), rel=1e-5)
    assert log["auxiliary_loss"] == pytest.approx(0.5 * float(aux), rel=1e-5)
    assert made.evaluate()["eval_loss"] == pytest.approx(float(main), rel=1e-5)


# ---- proof, teachers, statistics -----------------------------------------------------------------------------------


def test_a_model_of_another_loss_is_refused(tmp_path):
    """One that takes another label for none."""
    student = segformer(8).double()
    student.config.semantic_loss_ignore_index = 0
    with pytest.raises(ValueError, match="the loss computed by SegformerFor.* has another loss than semantic_segment"):
        trainer(tmp_path, student, None, ce_weight=1, kd_weight=0, task="auto")


def test_copies_of_a_model_whose_auxiliary_head_enters_its_own_loss_are_refused(tmp_path):
    args = arguments(tmp_path, **SEGMENTATION)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="UperNetForSemanticSegmentation has an auxiliary head .* one process per GPU"):
        DistillationTrainer(network(upernet), network(Coarse), args, train_dataset=rows(), data_collator=stacked)


def test_the_auxiliary_head_does_not_hide_another_loss(tmp_path):
    student = upernet(8).double()
    student.config.loss_ignore_index = 0
    with pytest.raises(
        ValueError, match="the loss computed by UperNetFor.* has another loss than semantic_segmentatio"
    ):
        trainer(tmp_path, student, None, ce_weight=1, kd_weight=0, task="auto")
    assert student.config.auxiliary_loss_weight == 0.4


def test_classes_of_a_teacher_that_has_more_are_stated(tmp_path):
    """And its scan, loss and accuracy are of those."""
    student, teacher = network(Pixels), network(Coarse, 8, 1, classes=CLASSES + 2)
    with pytest.raises(ValueError, match="the teacher has 5 classes and the student 3"):
        trainer(tmp_path, student, teacher)
    with pytest.raises(ValueError, match=r"classes=\[0, 7, 1\] of a teacher with 5"):
        trainer(tmp_path, student, FrozenTeacher(teacher, classes=[0, 7, 1]))
    made = trainer(tmp_path, student, FrozenTeacher(teacher, classes=[4, 0, 2]), ce_weight=0.0, kd_weight=1.0)
    batch = made.data_collator(rows())
    torch.testing.assert_close(made.teacher(**batch), teacher(batch["pixel_values"])[:, [4, 0, 2]])
    assert made.train().training_loss > 0.01


def test_classes_of_other_names_are_refused_and_those_in_another_order_are_put_right(tmp_path, caplog):
    rows = {"image": [np.full((6, 9, 3), 10 * k).tolist() for k in range(4)], "index": list(range(4))}
    rows["labels"] = [np.eye(6, 9, dtype=int).tolist()] * 4
    data = Dataset.from_dict(rows).with_transform(MaskTransform(label_names=("sky", "road", "car")))

    def build(*names, classes=None):
        teacher = segformer(8)
        teacher.config.id2label = dict(enumerate(names))
        args, taught = arguments(tmp_path, **SEGMENTATION), FrozenTeacher(teacher, classes=classes)
        return DistillationTrainer(Pixels(4), taught, args, train_dataset=data, eval_dataset=data)

    with pytest.raises(
        ValueError, match="the teacher does not have the classes of the data: class 1 of the teacher is 'tree'"
    ):
        build("sky", "tree", "car")
    made = build("car", "sky", "road")
    batch = made.data_collator([data[0]])
    own = made.teacher.networks[0](pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(made.teacher(**batch), own[:, [1, 2, 0]])
    made = build("vehicle", "sky", "pavement", classes=[1, 2, 0])  # their order is stated
    own = made.teacher.networks[0](pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(made.teacher(**batch), own[:, [1, 2, 0]])
    assert "another name, as classes=[1, 2, 0] says: pavement for road, vehicle for car." in caplog.text
    with pytest.raises(ValueError, match="the teacher does not have the classes of the data"):
        build("car", "sky", "pavement", classes=[0, 1, 2])


@pytest.mark.parametrize("classes", [[], [0, 0], [-1], [True, 0], [0.5]])
def test_wrong_lists_of_classes(classes):
    with pytest.raises(ValueError, match="must be distinct class ids of the teacher"):
        FrozenTeacher(Pixels(4), classes=classes)


def test_a_scan_keeps_some_pixels_of_each_image(monkeypatch):
    teacher, task, data = network(Coarse, 8, 1), SemanticSegmentation(), rows(6)
    settings = {"collate": task.ready(stacked), "task": task, "batch_size": 2, "level": "item", "progress_bar": False}
    whole = scan(teacher, data, **settings)
    counts = [int((flat_labels(row["labels"][None], None) != IGNORED).sum()) for row in data]
    assert len(whole.energy) == sum(counts)
    monkeypatch.setattr(SemanticSegmentation, "scanned_items", 60)
    some = scan(teacher, data, **settings)
    assert len(some.energy) == sum(min(count, 10) for count in counts) < len(whole.energy)
    own = torch.stack([whole.energy, whole.entropy], 1).tolist()
    assert all(pair in own for pair in torch.stack([some.energy, some.entropy], 1).tolist())
    torch.testing.assert_close(some.rows.energy, whole.rows.energy, equal_nan=True)


def test_the_teachers_accuracy_is_that_of_its_pixels(tmp_path):
    teacher, data = network(Coarse, 8, 1), rows()
    made = trainer(tmp_path, network(Pixels), teacher, data, evaluate_teacher=True)
    made.train()
    pairs = [pair for row in data for pair in naive_pixels(teacher, row, 1)]
    expected = sum(int(z.argmax()) == int(label) for z, label in pairs) / len(pairs)
    assert made.state.log_history[0]["teacher_accuracy"] == pytest.approx(expected)


def test_an_evaluation_looks_at_one_image_after_the_other(tmp_path):
    """Its loss is that of all pixels, and the logits of all are never there."""
    student, data = network(Coarse, classes=40), rows(4)
    settings = {"per_device_eval_batch_size": 4, "ce_weight": 1, "kd_weight": 0}
    made = trainer(tmp_path, student, None, data, **settings)
    made.preprocess_logits_for_metrics = pixel_predictions
    with LargestTensor() as largest:
        found = made.evaluate()["eval_loss"]
    pairs = [pair for row in data for pair in naive_pixels(student, row, 1)]
    expected = sum(float(cross_entropy(z.detach(), label)) for z, label in pairs) / len(pairs)
    assert found == pytest.approx(expected)
    assert largest.numbers < 4 * 40 * 6 * 9 / 2


class Shades(nn.Module):
    """Two classes, whose logits are the shade of the pixel and 0."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.cat([self.gain * x[:, :1], 0 * x[:, :1]], 1)


def test_the_loss_of_a_large_image_has_the_share_of_each_pixel(tmp_path):
    """Added up in float32, losses of a thousandth are rounded away beside a sum of tens of thousands."""
    shade = torch.full((1, 3, 1500, 2000), 7.0)
    shade[:, :, ::6, ::6] = -3.0  # of the other class, for the network
    row = {"pixel_values": shade[0], "labels": torch.zeros(1500, 2000, dtype=torch.long)}
    settings = {"ce_weight": 1, "kd_weight": 0, "per_device_eval_batch_size": 1, "prediction_loss_only": True}
    found = trainer(tmp_path, Shades(), None, [row], **settings).evaluate()["eval_loss"]
    exact = torch.nn.functional.softplus(-shade[0, 0].double()).mean()
    assert found == pytest.approx(float(exact), rel=1e-5)


# ---- refusals ------------------------------------------------------------------------------------------------------


def labelled(change):
    return [row | {"labels": change(row["labels"])} for row in rows()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            labelled(lambda x: x[:, :-1]),
            r"masks have \(6, 8\) pixels, but images \(6, 9\): resize and crop both in the same way",
        ),
        (
            labelled(lambda x: x[..., None].repeat(1, 1, 3)),
            r"labels have shape \(2, 6, 9, 3\) and seem to be colours: .* palette",
        ),
        (labelled(lambda x: x[None]), r"labels are of type int64, shape \(2, 1, 6, 9\): masks must be integers"),
        (labelled(lambda x: x.float()), "labels are of type float32, shape .* masks must be integers"),
        (labelled(lambda x: x == 1), "labels are of type bool"),
        (labelled(lambda x: x.clamp(min=7)), "labels run from 7 to .*, but the student has 3 classes"),
    ],
)
def test_wrong_masks(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", network(Pixels), None, data, ce_weight=1, kd_weight=0)
    assert not (tmp_path / "run").exists()


def test_a_class_that_comes_later_is_named_with_its_row(tmp_path):
    data = rows(8)
    data[5]["labels"] = torch.full_like(data[5]["labels"], 3)
    made = trainer(tmp_path, network(Pixels), None, data, ce_weight=1, kd_weight=0, max_steps=4)
    with pytest.raises(ValueError, match="the label 3 of row 5 is out of range: the student has 3 classes"):
        made.train()


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        (Net, {}, r"logits have shape \(2, 5\), but semantic_segmentation needs"),
        (lambda: nn.Conv2d(3, 1, 1), {}, "has 1 classes, but semantic_segmentation needs 2 to 255"),
        (lambda: nn.Conv2d(3, 256, 1), {}, "has 256 classes, but semantic_segmentation needs 2 to 255"),
        (lambda: Peers([Pixels(4), Pixels(4)]), {"ce_weight": 0.5}, "Peers work for image classification only"),
        (lambda: Pixels(4), {"segmentation_stride": 0}, "segmentation_stride=0 must be a whole number above 0"),
        (
            lambda: Pixels(4),
            {"teacher_cache_dir": "kept"},
            "stores one row of logits per image, but segmentation has logits for each p",
        ),
        (lambda: Pixels(4), {"he_da": "released", "kd_weight": 0.5}, "he_da"),
    ],
)
def test_what_masks_do_not_go_with(tmp_path, student, settings, message):
    student = student().double()
    teacher = None if isinstance(student, Peers) else network(Coarse, 8, 1)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, student, teacher, **settings)


def test_the_stride_of_another_task_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="segmentation_stride=2 is only for semantic_segmentation, and the task is image_c"
    ):
        trainer(tmp_path, Net(), None, task="image_classification", segmentation_stride=2, ce_weight=1, kd_weight=0)


def test_teachers_of_several_sizes_are_refused_and_those_of_one_are_averaged(tmp_path):
    teachers = [network(Coarse, 8, 1), network(Coarse, 8, 2)]
    made = trainer(tmp_path / "one", network(Pixels), teachers, objective="average", ce_weight=0, kd_weight=1)
    assert made.train().training_loss > 0.01
    with pytest.raises(ValueError, match="the teachers' outputs have the shapes"):
        trainer(tmp_path / "two", network(Pixels), [teachers[0], network(Pixels, 8, 1)], objective="average")


def test_labels_go_to_models_whose_auxiliary_head_needs_them():
    task, batch = SemanticSegmentation(), {"labels": torch.tensor([[[0, IGNORED], [255, 2]]])}
    assert task.given_besides(Call.of(segformer(8)), batch) == {}
    given = task.given_besides(Call.of(upernet(8)), batch)
    assert given["labels"].tolist() == [[[0, 255], [255, 2]]]
    assert task.added_loss(Call.of(Pixels(4)), SimpleNamespace(), batch) is None
