"""What the page of an image run is given."""

import pytest
import torch
from torch import nn
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.experiments.classifier_run import page_data
from hfkd.experiments.run import run_with_page
from hfkd.losses.functional import energy, entropy


@pytest.fixture
def training(tmp_path):
    data = load_digits()[0].select(range(32)).with_transform(ImageTransform(padding=0))
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)) for _ in range(2))

    def made(**slots):
        settings = {"max_steps": 1, "scan_cache_dir": str(tmp_path / "scans")}
        given = {"train_dataset": data}
        return DistillationTrainer(student, teacher, arguments(tmp_path / "run", **settings | slots), **given)

    return made


@pytest.mark.parametrize("he_da", ["none", "paper"])
def test_energies_are_those_that_the_thresholds_are_compared_with(training, he_da):
    """HE-DA scans at a temperature of its own, and thresholds that are given or resumed come without any scan."""
    trainer = training(temperature="energy(energy_temperature=1.0, thresholds=(-3.0, -2.0))", he_da=he_da)
    images = torch.stack([row["pixel_values"] for row in trainer.train_dataset])
    trainer.train()
    shown = page_data(trainer)
    assert shown["thresholds"] == (-3.0, -2.0)
    torch.testing.assert_close(shown["energies"], energy(trainer.teacher(pixel_values=images).cpu(), 1.0))


def test_no_batch_is_larger_than_evaluations(training):
    """512 images at once would be too many for a large teacher's memory, at the end of a long run."""
    trainer = training(temperature="energy", per_device_eval_batch_size=8)
    trainer.train()
    sizes = []
    trainer.teacher.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    shown = page_data(trainer)
    assert max(sizes) == 8
    assert shown["lowest_probabilities"].shape == shown["highest_probabilities"].shape == (16, 10)
    lowest = [trainer.train_dataset[i] for i in shown["energies"].argsort()[:16].tolist()]
    expected = trainer.teacher(**trainer.data_collator(lowest)).softmax(-1)
    torch.testing.assert_close(shown["lowest_probabilities"], expected)


@pytest.mark.parametrize("float32", [True, False])
def test_the_page_has_the_teacher_in_the_precision_in_which_it_is_evaluated(tmp_path, float32):
    """As its accuracy in the log is, and the student's. In bfloat16 these logits are rounded to steps of 0.5."""
    rows = load_digits()[0].select(range(64)).with_transform(ImageTransform(padding=0))
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)) for _ in range(2))
    teacher[1].bias.data += 100
    settings = {"max_steps": 1, "bf16": True, "float32_evaluation": float32}
    trainer = DistillationTrainer(
        student, teacher, arguments(tmp_path, **settings), train_dataset=rows, eval_dataset=rows
    )
    trainer.train()
    shown = page_data(trainer)
    logged = next(e["teacher_accuracy"] for e in trainer.state.log_history if "teacher_accuracy" in e)
    assert shown["teacher_correct"].mean() == pytest.approx(logged)
    if float32:
        images = torch.stack([row["pixel_values"] for row in rows])
        torch.testing.assert_close(shown["entropy"], entropy(teacher(images).detach()))


def test_an_error_in_drawing_does_not_lose_the_student(training, tmp_path):
    def broken(history, **data):
        raise KeyError("eval_accuracy")

    with pytest.raises(KeyError, match="eval_accuracy"):
        run_with_page(training(), {}, broken)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize("settings", [{"prediction_loss_only": True}, {"eval_do_concat_batches": False}])
def test_the_page_has_predictions_of_its_own(tmp_path, settings):
    """What evaluations keep of theirs ended a run after its training, without a page."""
    rows = load_digits()[0].select(range(20)).with_transform(ImageTransform(padding=0))
    networks = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)) for _ in range(2))
    args = arguments(tmp_path, max_steps=1, **settings)
    trainer = DistillationTrainer(*networks, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    correct = page_data(trainer)["student_correct"]
    best = trainer.model(torch.stack([row["pixel_values"] for row in rows])).argmax(-1)
    assert correct.tolist() == [int(one) == row["labels"] for one, row in zip(best, rows, strict=True)]
    assert getattr(trainer.args, next(iter(settings))) == next(iter(settings.values()))
