"""The teacher sees the pixels it was trained on, whoever normalised them; where nobody knows, that is said."""

import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torchvision.transforms import v2
from toys import Net, arguments
from transformers import CLIPImageProcessor, MobileViTImageProcessor, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.images import decode
from hfkd.experiments.classifier_run import page_data
from hfkd.models import InputSpec, image_classifier
from hfkd.teachers import FrozenTeacher
from hfkd.training.validation.normalisation import ImageInputs

CIFAR = InputSpec((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), None)
IMAGENET = InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None)
ODD = InputSpec((0.3, 0.4, 0.5), (0.31, 0.21, 0.41), None)  # nobody's
TO_TENSOR = InputSpec((0.0,) * 3, (1.0,) * 3, None)
BYTES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
BYTES[3, :, 2:5] = 0
PICTURES = [Image.fromarray(picture) for picture in BYTES]
STORED = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=5)})


def pixels(spec=CIFAR):
    plain = torch.from_numpy(BYTES).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return (plain - mean) / std


def rows(spec):
    return [{"pixel_values": image, "labels": i % 5} for i, image in enumerate(pixels(spec))]


def network(spec, name="cifar_resnet8"):
    """A timm model that says it wants `spec`."""
    torch.manual_seed(3)
    model = image_classifier(name, 5)
    model.config.pretrained_cfg = {**model.config.pretrained_cfg, "mean": list(spec.mean), "std": list(spec.std)}
    return model


def make(folder, train, student=IMAGENET, teacher=None, **keywords):
    teacher = network(CIFAR) if teacher is None else teacher
    student = network(student) if isinstance(student, InputSpec) else student
    return DistillationTrainer(student, teacher, arguments(folder, max_steps=1), train_dataset=train, **keywords)


def sees(trainer, train, count=16):
    """The teacher's logits for the first rows, as in training."""
    return trainer.teacher(**trainer.data_collator([train[i] for i in range(count)]))


@torch.no_grad()
def expected(teacher=None, spec=CIFAR):
    return (teacher or network(CIFAR))(pixel_values=pixels(spec)).logits


def stored():
    return Dataset.from_dict({"image": PICTURES, "label": [i % 5 for i in range(16)]}, features=STORED)


def by_function(pipeline):
    def transform(batch):
        return {"pixel_values": [pipeline(p) for p in batch["image"]], "labels": batch["label"]}

    return stored().with_transform(transform)


class Held(torch.utils.data.Dataset):
    """As in the README: the transform is an attribute."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {"pixel_values": self.transform(PICTURES[i]), "labels": i % 5}


def normalize(spec, *before):
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *before, v2.Normalize(spec.mean, spec.std)])


@pytest.mark.parametrize(
    "train",
    [
        lambda: rows(TO_TENSOR),
        lambda: rows(CIFAR),
        lambda: rows(IMAGENET),
        lambda: [{"pixel_values": p, "labels": i % 5} for i, p in enumerate(PICTURES)],
        lambda: [
            {"pixel_values": p, "labels": i % 5} for i, p in enumerate(torch.from_numpy(BYTES).permute(0, 3, 1, 2))
        ],
        lambda: by_function(normalize(ODD)),
        lambda: Held(normalize(ODD)),
        lambda: torch.utils.data.Subset(Held(normalize(ODD)), range(16)),
        lambda: decode(stored()).with_transform(ImageTransform(ODD.mean, ODD.std)),
    ],
    ids=["ToTensor", "the teacher's", "the student's", "PIL", "uint8", "a function", "an attribute", "Subset", "ours"],
)
def test_the_teacher_gets_its_own_pixels(tmp_path, train):
    """The student's config says ImageNet's statistics, which is right in one of these only."""
    train = train()
    trainer = make(tmp_path, train)
    torch.testing.assert_close(sees(trainer, train), expected(), rtol=1e-4, atol=1e-4)


def test_pixels_that_are_no_bytes_are_as_the_one_normalize_says(tmp_path):
    """Resized as floats. The statistics are nobody's else."""
    train = by_function(normalize(ODD, v2.Resize(12, antialias=True)))
    trainer = make(tmp_path, train)
    plain = v2.Resize(12, antialias=True)(pixels(TO_TENSOR))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    with torch.no_grad():
        right = network(CIFAR)(pixel_values=(plain - mean) / std).logits
    torch.testing.assert_close(sees(trainer, train), right, rtol=1e-4, atol=1e-4)


def test_an_image_processor_that_makes_the_tensors_is_believed(tmp_path):
    processor = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=ODD.mean, image_std=ODD.std, rescale_factor=1 / 127.5
    )  # pixels in [0, 2]
    train = [{"pixel_values": p, "labels": i % 5} for i, p in enumerate(PICTURES)]
    trainer = make(tmp_path, train, student=Net(), processing_class=processor)
    torch.testing.assert_close(sees(trainer, train), expected(), rtol=1e-4, atol=1e-4)


REVERSES = MobileViTImageProcessor(do_resize=False, do_center_crop=False)


def test_a_processor_that_reverses_the_channels_is_undone_for_a_teacher_of_rgb(tmp_path):
    train = [{"pixel_values": p, "labels": i % 5} for i, p in enumerate(PICTURES)]
    trainer = make(tmp_path, train, student=Net(), processing_class=REVERSES)
    assert trainer.teacher.received.bgr
    torch.testing.assert_close(sees(trainer, train), expected(), rtol=1e-4, atol=1e-4)


def test_a_teacher_of_bgr_gets_bgr(tmp_path, saved_vit):
    crop = {"height": 16, "width": 16}
    MobileViTImageProcessor(size={"shortest_edge": 16}, crop_size=crop).save_pretrained(saved_vit)
    teacher = image_classifier(saved_vit, 4)
    train = [{**row, "labels": row["labels"] % 4} for row in rows(CIFAR)]
    trainer = make(tmp_path, train, student=image_classifier("cifar_resnet8", 4), teacher=teacher)
    larger = torch.nn.functional.interpolate(pixels(TO_TENSOR).flip(1), size=(16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        right = ViTForImageClassification.from_pretrained(saved_vit)(pixel_values=larger).logits
    torch.testing.assert_close(sees(trainer, train), right, rtol=1e-4, atol=1e-4)


def test_images_of_a_student_of_bgr_are_rgb_unless_somebody_says_otherwise(tmp_path, saved_vit):
    REVERSES.save_pretrained(saved_vit)
    student, teacher = image_classifier(saved_vit, 4), image_classifier("cifar_resnet8", 4)
    larger = pixels(TO_TENSOR).repeat_interleave(2, 2).repeat_interleave(2, 3)
    train = [{"pixel_values": image, "labels": i % 4} for i, image in enumerate(larger)]
    with pytest.warns(UserWarning, match=r"reverses the channels to BGR.* are taken as RGB.*processing_class="):
        assert not make(tmp_path, train, student=student, teacher=teacher).teacher.received.bgr
    assert make(tmp_path, train, student=student, teacher=teacher, processing_class=REVERSES).teacher.received.bgr


def test_several_teachers_each_get_their_own(tmp_path):
    teachers = [network(CIFAR), network(IMAGENET), network(ODD)]
    train = rows(TO_TENSOR)
    trainer = make(tmp_path, train, teacher=teachers)
    batch = trainer.data_collator([train[i] for i in range(16)])
    each = [expected(teacher, spec) for teacher, spec in zip(teachers, (CIFAR, IMAGENET, ODD), strict=True)]
    torch.testing.assert_close(trainer.teacher(each=True, **batch), torch.stack(each), rtol=1e-4, atol=1e-4)


class Noise(torch.utils.data.Dataset):
    """No bytes, and nobody says how they were normalised."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"pixel_values": torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i)), "labels": i % 5}


def test_where_only_the_student_says_it_there_is_a_warning_with_both(tmp_path):
    said = r"mean \(0\.5071, .*the student's config has mean \(0\.485, .*processing_class=, or teacher=FrozenTeacher\("
    with pytest.warns(UserWarning, match=said):
        trainer = make(tmp_path, Noise())
    assert trainer.teacher.received.mean == IMAGENET.mean
    with pytest.warns(UserWarning, match="the normalisation of the training images is unknown"):
        make(tmp_path, Noise(), student=Net())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (CIFAR, lambda: network(CIFAR)),
        (InputSpec((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), None), lambda: network(CIFAR)),
        (IMAGENET, lambda: Net()),
        (IMAGENET, lambda: FrozenTeacher(network(CIFAR), received=ODD)),
    ],
    ids=["alike", "rounded differently", "a teacher that does not say", "the caller says"],
)
def test_no_warning_where_nothing_is_wrong(tmp_path, student, teacher):
    make(tmp_path, Noise(), student=student, teacher=teacher())  # warnings are errors


def test_what_the_caller_says_wins(tmp_path):
    train = rows(TO_TENSOR)
    trainer = make(tmp_path, train, teacher=FrozenTeacher(network(CIFAR), received=ODD))
    right = expected(spec=CIFAR)
    assert not torch.allclose(sees(trainer, train), right, atol=1e-2)
    assert trainer.teacher.received == ODD


def test_a_live_teacher_that_was_told_nothing_is_told(tmp_path):
    train = rows(TO_TENSOR)
    trainer = make(tmp_path, train, teacher=FrozenTeacher(network(CIFAR)))
    torch.testing.assert_close(sees(trainer, train), expected(), rtol=1e-4, atol=1e-4)


def test_evaluation_images_of_other_statistics(tmp_path):
    """The teacher is told of each set; the student cannot be, and that is said."""
    with pytest.warns(
        UserWarning, match="The images of other have mean .* evaluated on inputs unlike its training inputs"
    ):
        trainer = DistillationTrainer(
            network(CIFAR),
            network(CIFAR),
            arguments(tmp_path, evaluate_kl=True),
            train_dataset=rows(CIFAR),
            eval_dataset={"same": rows(CIFAR), "other": rows(TO_TENSOR)},
        )
    metrics = trainer.evaluate()
    with torch.no_grad():
        teacher, student = expected().log_softmax(-1), network(CIFAR)(pixel_values=pixels(TO_TENSOR)).logits
    kl = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1).mean()
    assert metrics["eval_same_kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["eval_other_kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert trainer.teacher.received == CIFAR
    trainer.eval_dataset = trainer.eval_dataset["other"]
    right = expected().argmax(-1) == torch.arange(16) % 5
    assert page_data(trainer)["teacher_correct"].tolist() == right.tolist()


def test_looking_draws_no_random_numbers():
    class Random(Held):
        def __getitem__(self, i):
            random.random(), np.random.rand(), torch.rand(())
            return super().__getitem__(i)

    def states():
        return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    trainer_inputs = ImageInputs(
        lambda rows: {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}, None, [None]
    )
    assert trainer_inputs.of(Random(normalize(ODD))).spec == ODD
    assert states() == before
