"""On Apple's GPUs, which have no float64: everything that runs during training and evaluation does without it."""

import pytest
import torch
from apple_gpu import REFUSED, AppleGPU, without_float64
from task_toys import Pixels, masks
from text_toys import TokenRows, language_model, taught_model
from torch.utils._python_dispatch import TorchDispatchMode
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.rescaling import all_sizes
from hfkd.models import image_classifier
from hfkd.teachers.image_cache.quantize import encode
from hfkd.utils.devices import send, widest_float


def test_the_trap_holds():
    gpu, layer = AppleGPU(), torch.nn.Linear(2, 2)
    with gpu.training():
        made = layer(torch.ones(1, 2))
        assert made.cpu().double().dtype == torch.float64
        with pytest.raises(TypeError, match=REFUSED):
            made.double()


IMAGES = {
    "energy and entropy": {"temperature": "energy", "weighting": "entropy", "evaluate_kl": True},
    "a stored teacher": {"teacher_cache_dir": "cache", "teacher_cache_on_device": True},
    "SAKD's gates": {"objective": "sakd"},
    "OFD's margins": {"objective": "kd + ofd"},
    "contrast": {"objective": "kd + crd(negatives=16)"},
    "a learned temperature": {"temperature": "learned"},
}


@pytest.mark.parametrize("settings", IMAGES.values(), ids=IMAGES)
def test_images(tmp_path, settings):
    settings = settings | {name: str(tmp_path / "cache") for name in settings if name == "teacher_cache_dir"}
    train, test = (split.select(range(24)).with_transform(ImageTransform()) for split in load_digits())
    trainer = DistillationTrainer(
        image_classifier("cifar_resnet8", 10),
        image_classifier("cifar_wrn_16_2", 10),
        arguments(tmp_path / "run", max_steps=2, **settings),
        train_dataset=train,
        eval_dataset=test,
    )
    with AppleGPU().training():
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("chunks", [0, 2])
def test_texts(tmp_path, chunks):
    trainer = DistillationTrainer(
        language_model(),
        taught_model(),
        arguments(tmp_path, loss_chunk_size=chunks, temperature="energy", weighting="entropy", max_steps=2),
        train_dataset=TokenRows(),
        eval_dataset=TokenRows(),
        data_collator=TokenCollator(0),
    )
    with AppleGPU().training():
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


def test_masks(tmp_path):
    settings = {"task": "semantic_segmentation", "weighting": "entropy", "max_steps": 2}
    data = {"train_dataset": masks(8), "eval_dataset": masks(8)}
    trainer = DistillationTrainer(Pixels(4), Pixels(8), arguments(tmp_path, **settings), **data)
    with AppleGPU().training():
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


# ---- what has two ways -----------------------------------------------------------------------------------------------


def test_where_there_is_no_float64_float32_does():
    assert widest_float(torch.device("mps")) == torch.float32
    logits = 4 * torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    whole = encode(logits)
    assert all_sizes(logits).dtype == torch.float64
    with without_float64():
        assert all_sizes(logits).dtype == torch.float32
        levels, scale = encode(logits)
    assert torch.equal(levels, whole[0])
    torch.testing.assert_close(scale, whole[1], rtol=1e-5, atol=1e-5)


def test_a_copy_to_another_device_than_cuda_waits():
    """On MPS the memory of a source that is freed may be overwritten before the copy (PyTorch's issue 189690)."""
    seen = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default:
                seen.append(bool((kwargs or {}).get("non_blocking")))
            return function(*args, **(kwargs or {}))

    with Copies():
        assert send(torch.ones(2), torch.device("meta")).is_meta
    assert seen == [False]
