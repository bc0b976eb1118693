"""hfkd hands the GPU its work and goes on: from a batch on the device to the loss nothing waits for an answer.

Making `resident` batches neither. How a batch made on the host gets to the device is Accelerate's.
"""

from copy import deepcopy

import pytest
import torch
from fake_gpu import GPU, FakeGPU, HostWaits
from objectives_by_level import ON_LOGITS
from task_toys import Pixels, masks
from text_toys import TokenRows, language_model, taught_model
from toys import arguments
from versions import since

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.collate import ImageCollator
from hfkd.data.digits import load_digits
from hfkd.data.resident import HostRows, ResidentImages
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.learned_temperature import Learned
from hfkd.losses.temperatures import Energy, Gradation
from hfkd.models import image_classifier
from hfkd.teachers import CachedTeacher, FrozenTeacher
from hfkd.training.averages import BatchAverage

TRAIN = load_digits()[0].select(range(40))
TEMPERATURES = {
    "constant": 4.0,
    "energy": Energy(thresholds=(-9.0, -5.0)),
    "gradation": Gradation((2.0, 4.0, 6.0), thresholds=(-9.0, -5.0)),
    "learned": Learned(),
}


@pytest.fixture
def gpu():
    from hfkd.data import transforms
    from hfkd.utils import devices

    with FakeGPU() as fake:
        yield fake
    devices._sent.cache_clear()  # they hold tensors of a device that is gone
    transforms._affine.cache_clear()


def images(**transform):
    return ResidentImages(TRAIN).with_transform(ImageTransform(augment=True, **transform))


def make(gpu, tmp_path, student=None, teacher=None, data=None, **slots):
    """A trainer with its networks, its loss and a batch of 8 on the GPU."""
    with gpu.unwatched():
        trainer = DistillationTrainer(
            student or image_classifier("cifar_resnet8", 10),
            teacher or image_classifier("cifar_resnet20", 10),
            arguments(tmp_path, average_tokens_across_devices=False),
            train_dataset=data or images(),
            **slots,
        )
        for module in (trainer.model, trainer.teacher, trainer.distillation_loss):
            gpu.move(module)
        batch = gpu.move(ImageCollator()(trainer.train_dataset.__getitems__(list(range(8)))))
    return trainer, batch


# ---- the trap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.ones(3).to(GPU),
        lambda x: torch.tensor([1.0], device=GPU),
        lambda x: torch.as_tensor(64, device=GPU),
    ],
)
def test_what_waits_is_found(gpu, wait):
    with pytest.raises(HostWaits):
        wait(gpu.move(torch.randn(4, 3)))


def test_what_does_not_wait_runs(gpu):
    x = gpu.move(torch.randn(4, 3))
    x[torch.arange(2, device=GPU)] += torch.full((), 3.0, device=GPU)
    assert (x @ x.T).device == GPU
    assert torch.ones(3).to(GPU, non_blocking=True).device == GPU
    assert torch.tensor([1, 2]).sum().item() == 3  # the host's own


@since("torch", "2.15", "copy the number")
def test_a_number_for_some_elements_does_not_wait(gpu):
    x = gpu.move(torch.randn(4, 3))
    x[x > 0] = 0
    assert x.device == GPU


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ON_LOGITS)
@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
def test_no_objective_waits(gpu, tmp_path, objective, weighting):
    slots = {"objective": objective, "weighting": weighting, "temperature": TEMPERATURES["energy"]}
    trainer, batch = make(gpu, tmp_path, **slots)
    count = trainer._get_num_items_in_batch([batch], GPU)
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count).device == GPU


@pytest.mark.parametrize("name", TEMPERATURES)
def test_no_temperature_waits(gpu, tmp_path, name):
    trainer, batch = make(gpu, tmp_path, temperature=deepcopy(TEMPERATURES[name]))
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=8).device == GPU


def test_slots_of_ones_own_do_not_wait(gpu, tmp_path):
    own = {"temperature": lambda items: 9 + items.teacher.entropy(3.0), "weighting": lambda items: items.labels / 10}
    trainer, batch = make(gpu, tmp_path, **own)
    assert trainer.distillation_loss.own_slots == ["temperature", "weighting"]
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=8).device == GPU


def test_two_views_do_not_wait(gpu, tmp_path):
    trainer, batch = make(gpu, tmp_path, data=images(views=2), objective="mld")
    assert batch["pixel_values"].shape[:2] == (8, 2)
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=8).device == GPU


def test_adding_up_what_will_be_logged_does_not_wait(gpu):
    average = BatchAverage()
    for _ in range(2):
        average.add({"loss": gpu.move(torch.ones(()))}, 8)
        average.keep()


def test_evaluating_a_batch_does_not_wait(gpu, tmp_path):
    trainer, batch = make(gpu, tmp_path)
    loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    assert (loss.device, outputs["logits"].device) == (GPU, GPU)


@pytest.mark.parametrize("objective", ON_LOGITS)
def test_a_loss_can_be_captured_whole(objective):
    """One graph without a break: nothing in it depends on a value, so a compiler or a CUDA graph can have it."""
    loss = DistillationLoss(objective, TEMPERATURES["energy"], "entropy")
    given = 3 * torch.randn(8, 10), 5 * torch.randn(8, 10), torch.arange(8)
    torch._dynamo.reset()
    captured = torch.compile(lambda *x: loss(image_items(*x), 8), backend="eager", fullgraph=True)
    (value, parts), (plain, its) = captured(*given), loss(image_items(*given), 8)
    assert torch.equal(value, plain)
    assert {k: v.item() for k, v in parts.items()} == {k: v.item() for k, v in its.items()}


@pytest.mark.parametrize("objective", ["dkd", "nkd", "standardized(objective='dkd')"])
def test_smoothed_labels_do_not_wait(gpu, objective):
    loss = DistillationLoss(objective, 4.0, "entropy")
    given = gpu.move({"v": torch.randn(8, 10), "z": torch.randn(8, 10), "labels": torch.full((8, 10), 0.1)})
    assert loss(image_items(given["v"], given["z"], given["labels"]), 8)[0].device == GPU


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_chunk_size": 0},
        {"loss_chunk_size": 2},
        {"loss_chunk_size": 2, "objective": "kd + hidden_mse"},
        {"objective": "dist"},
    ],
    ids=["heads on targets", "chunks", "states beside chunks", "whole logits"],
)
def test_a_step_on_tokens_does_not_wait(gpu, tmp_path, settings):
    rows = [TokenRows()[i] for i in range(4)]
    with gpu.unwatched():
        trainer = DistillationTrainer(
            language_model(),
            taught_model(),
            arguments(tmp_path, **settings, temperature="energy(thresholds=(-9.0, -5.0))", weighting="entropy"),
            train_dataset=TokenRows(),
            data_collator=TokenCollator(0),
        )
        for module in (trainer.model, trainer.teacher, trainer.distillation_loss):
            gpu.move(module)
        made = TokenCollator(0)(rows)
        batch = {name: x if name == "host_targets" else gpu.move(x) for name, x in made.items()}
    count = trainer._get_num_items_in_batch([batch], GPU)
    with torch.no_grad():  # a chunked loss computes its gradients at once
        assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count).device == GPU
    trainer.compute_loss(trainer.model.eval(), batch)
    del batch["host_targets"]
    with pytest.raises(HostWaits):  # without them the device has to be asked
        trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"objective": "cwd"}], ids=["strips", "whole maps"])
def test_a_step_on_masks_does_not_wait(gpu, tmp_path, settings):
    slots = {"temperature": "energy(thresholds=(-9.0, -5.0), level='item')"} if not settings else {}
    with gpu.unwatched():
        trainer = DistillationTrainer(
            Pixels(4),
            Pixels(8),
            arguments(tmp_path, **settings, **slots, weighting="entropy", task="semantic_segmentation"),
            train_dataset=masks(4),
        )
        for module in (trainer.model, trainer.teacher):
            gpu.move(module)
        made = trainer.data_collator(masks(4))
        batch = {name: x if name == "host_targets" else gpu.move(x) for name, x in made.items()}
    count = trainer._get_num_items_in_batch([batch], GPU)
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count).device == GPU


# ---- the loader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [{}, {"flip": False}], ids=repr)
def test_making_a_batch_does_not_wait(gpu, transform):
    data = images(**transform)
    with gpu.unwatched():
        data.move(GPU)
    batch = data.__getitems__([3, 0, 7])
    assert {x.device for x in batch.values() if isinstance(x, torch.Tensor)} == {GPU}


def test_the_host_knows_what_the_gpu_sees(gpu):
    data, there = images(), images()
    with gpu.unwatched():
        there.move(GPU)
    for epoch in range(2):
        for held in (data, there):
            held.format["format_kwargs"]["transform"].set_epoch(epoch)
        here, rows = data.__getitems__([3, 0, 7]), there.__getitems__([3, 0, 7])["host_rows"]
        assert torch.equal(rows.index, here["index"])
        assert torch.equal(rows.view, here["view"])
        assert "host_rows" not in here


# ---- the cached teacher ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [8, 5, 0])
def test_looking_up_the_teachers_logits_does_not_wait(gpu, tmp_path, known):
    data = images()
    batch = data.__getitems__(list(range(8)))
    with gpu.unwatched():
        teacher = FrozenTeacher(image_classifier("cifar_resnet8", 10))
        first = CachedTeacher(teacher, data, tmp_path)
        if known:
            first(**data.__getitems__(list(range(known))))
        cached = CachedTeacher(teacher, data, tmp_path, on_device=True)
        gpu.move(cached.teacher)
        cached.store.levels, cached.store.scale = gpu.move(cached.store.levels), gpu.move(cached.store.scale)
        there = gpu.move(batch)
    host = HostRows(batch["index"], batch["view"])
    cached.calls = 2  # the third call compares no images
    assert cached(**there, host_rows=host).shape == (8, 10)
    assert cached.hits == known
    with pytest.raises(HostWaits):  # without it the host has to ask
        cached(**there)
