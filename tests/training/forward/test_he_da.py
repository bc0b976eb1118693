"""HE-DA in the trainer: the released step against its formula written out, and both variants from flags."""

import json

import numpy as np
import pytest
import reference
import torch
from datasets import ClassLabel, Dataset
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.epochs import image_transform
from hfkd.data.he_da import HighEnergyTransform, add_high_energy, select_by_energy
from hfkd.data.mixing import ALPHAS, box
from hfkd.data.transforms import ImageTransform, pack_pixels
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.tasks.image_classification import ImageClassification
from hfkd.teachers import FrozenTeacher, scan
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.he_da import HighEnergyForward, added_images
from hfkd.training.forward.micro_batch import MicroBatch

N = 40


def data(n=N):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    rows = {"pixels": [pack_pixels(p) for p in pixels], "labels": [i % CLASSES for i in range(n)]}
    dataset = Dataset.from_dict(rows | {"index": list(range(n))}).cast_column("labels", ClassLabel(num_classes=CLASSES))
    return dataset.with_transform(ImageTransform((0.5,) * 3, (0.3,) * 3, augment=True, padding=1))


def trainer(folder, dataset=None, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "temperature", "weighting") if k in keywords}
    return DistillationTrainer(
        Net(), teacher(), arguments(folder, **keywords), train_dataset=data() if dataset is None else dataset, **slots
    )


# ---- the released step -----------------------------------------------------------------------------------------------


def batch(n=8):
    return {"pixel_values": torch.randn(n, 3, 8, 8), "labels": torch.arange(n) % CLASSES, "index": torch.arange(n)}


def step(threshold, mix, **slots):
    return HighEnergyForward(
        DenseForward(Call.of(Net()), ImageClassification(), DistillationLoss(**slots)), threshold, mix
    )


def naive_mixed(images, mix, seed):
    """The draws in the order of the released code: partner, lambda, box; pixel by pixel."""
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    share = float(torch.distributions.Beta(ALPHAS[mix], ALPHAS[mix]).sample())
    if mix == "mixup":
        return torch.stack([share * images[i] + (1 - share) * images[order[i]] for i in range(len(images))])
    top, bottom, left, right = box(share, int(torch.randint(8, ())), int(torch.randint(8, ())), 8, 8)
    mixed = images.clone()
    for i in range(len(images)):
        for y in range(top, bottom):
            for x in range(left, right):
                mixed[i, :, y, x] = images[order[i], :, y, x]
    return mixed


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
@pytest.mark.parametrize("num_items", [None, 8, 32])
def test_the_released_loss_is_ce_and_kd_of_the_batch_and_kd_of_the_mixed_set(mix, num_items):
    student, taught, inputs = Net(seed=3), teacher(), batch()
    z = taught(inputs["pixel_values"])
    energies = [reference.energy(row, 4) for row in z.tolist()]
    threshold = sum(sorted(energies)[4:6]) / 2
    chosen = [n for n in range(8) if n < 2 or energies[n] > threshold]
    assert 3 <= len(chosen) < 8
    released = step(threshold, mix)
    torch.manual_seed(11)
    loss, parts, count = released(student, FrozenTeacher(taught), MicroBatch(inputs, num_items))

    def kd_terms(images):
        with torch.no_grad():
            pairs = zip(taught(images).tolist(), student(images).tolist(), strict=True)
            return [reference.kd(z, v, None, 4.0) for z, v in pairs]

    ce = [
        -np.log(reference.softmax(v, 1.0)[y])
        for v, y in zip(student(inputs["pixel_values"]).tolist(), inputs["labels"].tolist(), strict=True)
    ]
    mixed = kd_terms(naive_mixed(inputs["pixel_values"][chosen], mix, 11))
    plain = 0.1 * np.mean(ce) + 0.9 * np.mean(kd_terms(inputs["pixel_values"]))
    expected = (plain + 0.9 * np.mean(mixed)) * 8 / (num_items or 8)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts["mixed_kd"].item() == pytest.approx(np.mean(mixed), rel=1e-5)
    assert parts["mixed_share"].item() == len(chosen) / 8
    assert parts["ce"].item() == pytest.approx(np.mean(ce), rel=1e-5)
    assert count.items == count.labels == 8


def test_accumulated_batches_weigh_their_mixed_means_by_their_images():
    """Two batches of 6 and 2 images, 8 in all: their losses add up to the mean over batches weighted 6 : 2."""
    student, taught = Net(seed=3), FrozenTeacher(teacher())
    released = step(float("inf"), "cutmix")
    total, weighted = 0.0, 0.0
    for n in (6, 2):
        inputs = batch(n)
        torch.manual_seed(5)
        total += released(student, taught, MicroBatch(inputs, 8))[0].item()
        torch.manual_seed(5)
        weighted += released(student, taught, MicroBatch(inputs))[0].item() * n / 8
    assert total == pytest.approx(weighted, rel=1e-6)


def test_the_mixed_set_has_the_losss_temperature_weighting_and_a_gradient():
    student, taught = Net(seed=3), FrozenTeacher(teacher())
    slots = {"temperature": 2.0, "weighting": "entropy", "ce_weight": 0.0, "kd_weight": 1.0}
    inputs = batch()
    loss, parts, _ = step(-1e9, "cutmix", **slots)(student, taught, MicroBatch(inputs))  # building a net seeds torch
    assert loss.item() == pytest.approx(parts["kd"].item() + parts["mixed_kd"].item(), rel=1e-6)
    other = step(-1e9, "cutmix", **slots | {"weighting": "uniform"})(student, taught, MicroBatch(inputs))[1]
    assert other["mixed_kd"] != parts["mixed_kd"]
    alone = step(1e9, "cutmix", **slots)(student, taught, MicroBatch(batch(1)))[0]  # one image, mixed with itself
    assert torch.isfinite(alone)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_the_mixed_set_has_a_kd_weight_that_changes_in_training_and_is_left_out_at_0():
    student, taught, inputs = Net(seed=3), FrozenTeacher(teacher()), batch()
    released = step(-1e9, "cutmix")
    released.inner.loss.kd_weight = 0.25
    loss, parts, _ = released(student, taught, MicroBatch(inputs))
    assert loss.item() == pytest.approx(0.1 * parts["ce"].item() + 0.25 * (parts["kd"] + parts["mixed_kd"]).item())
    released.inner.loss.kd_weight = 0.0
    loss, parts, _ = released(student, taught, MicroBatch(inputs))
    assert loss.item() == pytest.approx(0.1 * parts["ce"].item())
    assert "mixed_kd" not in parts


# ---- from flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slots",
    [
        {},
        {"temperature": "energy(ratio=0.2)", "weighting": "entropy"},
        {"objective": "dkd(beta=2.0)", "weighting": "entropy"},
    ],
)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_both_variants_train_beside_any_temperature_and_weighting(tmp_path, variant, slots):
    run = trainer(tmp_path, he_da=variant, he_da_ratio=0.5, max_steps=4, **slots)
    assert run.settings["he_da"] == variant
    run.train()
    steps = [row for row in run.state.log_history if "loss" in row]
    assert len(steps) == 4
    assert all(np.isfinite(row["loss"]) and row["kd"] > 0 for row in steps)
    if variant == "paper":
        assert len(run.train_dataset) == 60
        assert run.settings["he_da_added_images"] == 20
        chosen = select_by_energy(scan(teacher(), data(), views="clean", progress_bar=False).energy, 0.5)
        transform = image_transform(run.train_dataset)
        assert transform.selected["index"][:] == chosen.tolist()
    else:
        assert len(run.train_dataset) == N
        seen = np.sort(scan(teacher(), data(), progress_bar=False).energy)
        assert run.step.threshold == pytest.approx((seen[19] + seen[20]) / 2)
        assert all(0.25 <= row["mixed_share"] <= 1 and row["mixed_kd"] > 0 for row in steps)
    record = json.loads((tmp_path / "distillation.json").read_text())
    assert record["loss"]["he_da"] == variant
    if "temperature" in slots:  # thresholds over the training set, which added rows are not part of
        thresholds = run.distillation_loss.temperature.thresholds
        plain = trainer(tmp_path / "plain", **slots)
        plain.fit_slots()
        assert thresholds == plain.distillation_loss.temperature.thresholds


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_images_are_chosen_for_the_rows_and_the_teacher_of_each_training(tmp_path, variant):
    def chosen(run):
        run.train()
        return run.step.threshold if variant == "released" else image_transform(run.train_dataset).selected["index"][:]

    run = trainer(tmp_path / "run", he_da=variant, max_steps=1)
    found = [chosen(run)]
    run.train_dataset = data(60)
    found.append(chosen(run))
    assert found[-1] == chosen(trainer(tmp_path / "rows", data(60), he_da=variant, max_steps=1))
    for network in (run.teacher.model, other := Net(16, seed=5)):
        network.load_state_dict(Net(16, seed=5).state_dict())
    found.append(chosen(run))
    args = arguments(tmp_path / "teacher", he_da=variant, max_steps=1)
    assert found[-1] == chosen(DistillationTrainer(Net(), other, args, train_dataset=data(60)))
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize(("data_seed", "seed"), [(None, 7), (0, 0), (3, 3)])
def test_the_mixing_is_drawn_from_the_data_seed_where_there_is_one(tmp_path, data_seed, seed):
    run = trainer(tmp_path, he_da="paper", data_seed=data_seed, seed=7, max_steps=1)
    run.train()
    assert image_transform(run.train_dataset).seed == seed


def test_added_images_have_two_views_where_the_others_have(tmp_path):
    transform = ImageTransform((0.5,) * 3, (0.3,) * 3, augment=True, padding=1, views=2)
    run = trainer(tmp_path, data().with_transform(transform), he_da="paper", objective="mld", weighting="entropy")
    run.train()
    batch = run.train_dataset[N - 1 : N + 2]
    assert batch["pixel_values"].shape == (3, 2, 3, 8, 8)
    assert (batch["view"][1:] == -1).all()
    assert np.isfinite([row["loss"] for row in run.state.log_history if "loss" in row]).all()
    with pytest.raises(ValueError, match="needs one view of each image"):
        trainer(tmp_path / "2", data().with_transform(transform), he_da="released")
    with pytest.raises(ValueError, match="this dataset already contains added mixed images"):
        trainer(tmp_path / "3", add_high_energy(data(), torch.randn(N)), he_da="released")


class BreaksOnMixed(Net):
    """In training, NaN for the second image of every second forward: of the mixed images."""

    forwards = 0

    def forward(self, x):
        self.forwards += self.training
        broken = self.training and self.forwards % 2 == 0
        return super().forward(x).index_fill(0, torch.tensor([1] if broken else [], dtype=torch.long), float("nan"))


def test_outputs_that_break_on_mixed_images_are_named_with_their_row(tmp_path):
    settings = arguments(tmp_path, he_da="released", max_steps=1, train_sampling_strategy="sequential")
    run = DistillationTrainer(BreaksOnMixed(), teacher(), settings, train_dataset=data())
    with pytest.raises(FloatingPointError, match="the student's outputs are NaN or infinite for row 1: "):
        run.train()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, variant):
    keywords = {"he_da": variant, "save_strategy": "steps", "save_steps": 4, "max_steps": 10}
    whole = trainer(tmp_path / "whole", **keywords)
    whole.train()
    again = trainer(tmp_path / "whole", **keywords)  # 56 or 40 images: step 4 is in the first epoch, step 10 in another
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for one, two in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert again.settings == whole.settings


def test_training_twice_adds_the_images_once(tmp_path):
    run = trainer(tmp_path, he_da="paper", max_steps=1)
    run.train()
    run.train()
    assert len(run.train_dataset) == N + 16
    assert isinstance(image_transform(run.train_dataset), HighEnergyTransform)


def test_added_images_count_where_an_epoch_ends_with_a_single_row(tmp_path):
    """The batch norm's error came at the end of the first epoch, and rows were refused that leave no such batch."""

    def run(n, ratio):
        student = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, he_da="paper", he_da_ratio=ratio)
        return DistillationTrainer(student, teacher(), args, train_dataset=data(n))

    with pytest.raises(ValueError, match="49 rows in batches of 8 leave a last batch of one"):
        run(40, 0.24)
    made = run(41, 0.5)
    made.train()
    assert made.state.global_step == 8


def test_another_variant_does_not_take_up_this_folder(tmp_path):
    trainer(tmp_path, he_da="paper", max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="contains another run: its he_da is paper, that of this run is None"):
        trainer(tmp_path)


def test_without_he_da_nothing_is_added_or_recorded(tmp_path):
    run = trainer(tmp_path)
    assert not [name for name in run.settings if "he_da" in name]
    assert added_images(run.args, run.train_dataset) == {}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"he_da": "papr"}, "he_da='papr' must be one of"),
        ({"he_da_mix": "cutout"}, "he_da_mix='cutout' must be one of"),
        ({"he_da_side": "top"}, "he_da_side='top' must be one of"),
        ({"he_da_ratio": 0.0}, r"he_da_ratio=0.0 must be in \(0, 1\]"),
        ({"he_da": "released", "he_da_side": "low"}, "mixes images of high energy only"),
    ],
)
def test_a_bad_flag_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments("out", use_cpu=True, bf16=False, **keywords)


def test_what_has_no_energies_or_no_images_of_ours_is_refused(tmp_path):
    labels = arguments(tmp_path, he_da="paper", kd_weight=0.0, ce_weight=1.0)
    with pytest.raises(ValueError, match="kd_weight=0 does not use the teacher"):
        DistillationTrainer(Net(), None, labels, train_dataset=data())
    with pytest.raises(ValueError, match="views='clean' needs a dataset with an hfkd ImageTransform"):
        trainer(tmp_path, dataset=Rows(), he_da="paper").train()
    with pytest.raises(ValueError, match="leaves no image below the threshold"):
        trainer(tmp_path, he_da="released", he_da_ratio=1.0).train()
