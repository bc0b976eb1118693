"""A saved student says how its images were prepared, so that a picture becomes what it was trained on."""

import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from task_toys import KINDS
from text_tokenizer import word_tokenizer
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms import v2
from toys import Net, arguments, teacher
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MobileViTImageProcessor,
    TimmWrapperImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform, LargeImageTransform, add_high_energy
from hfkd.data.images import decode
from hfkd.data.text_collate import TokenCollator
from hfkd.evaluation.generation import generate
from hfkd.models import image_classifier, image_processor, input_spec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SHAPES = ((40, 56), (72, 48), (48, 48), (33, 47))
SIZE = 32


def vit(image_size=SIZE, labels=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=image_size, patch_size=4, num_labels=labels))


def timm_model():
    torch.manual_seed(0)
    return image_classifier("cifar_resnet8", 3)


STUDENTS = {"timm": timm_model, "transformers": vit}


def pictures(shapes=SHAPES, count=24):
    """Smooth, as photographs are, with detail up to the edges."""
    g = np.random.default_rng(0)
    coarse = [Image.fromarray(g.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    return [p.resize(shapes[i % len(shapes)][::-1], Image.Resampling.BICUBIC) for i, p in enumerate(coarse)]


def stored(shapes=SHAPES):
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=3)})
    found = pictures(shapes)
    return Dataset.from_dict({"image": found, "label": [i % 3 for i in range(len(found))]}, features=features)


def small(shapes=SHAPES, size=(SIZE, SIZE)):
    return decode(stored(shapes), size=size).with_transform(ImageTransform(MEAN, STD))


def large(shapes=SHAPES):
    rows = stored(shapes).rename_column("label", "labels").cast_column("image", ImageFeature(decode=False))
    rows = rows.add_column("index", np.arange(len(rows)))
    return rows.with_transform(LargeImageTransform(SIZE, MEAN, STD))


def mixed():
    """The training set that HE-DA makes."""
    return add_high_energy(small(), torch.arange(24.0), 0.5)


def trained(folder, student, train, evaluation=None, **keywords):
    trainer = DistillationTrainer(
        student,
        None,
        arguments(folder, max_steps=6, learning_rate=0.02),
        ce_weight=1,
        kd_weight=0,
        train_dataset=train,
        eval_dataset=evaluation,
        **keywords,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def compared(folder, trainer, rows, found):
    """The largest difference of any probability between the pipeline on pictures and the trainer on rows."""
    scores = torch.from_numpy(trainer.predict(rows).predictions).softmax(-1)
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    said = [{one["label"]: one["score"] for one in answer} for answer in classify(found, top_k=3)]
    names = list(classify.model.config.id2label.values())
    made = [classify.image_processor([picture], return_tensors="pt")["pixel_values"][0] for picture in found]
    seen = torch.cat([trainer.data_collator([row])["pixel_values"] for row in rows])
    assert (torch.stack(made) - seen).abs().mean() < 0.12 * seen.std()  # a pixel of 32 is 0.1, another crop 0.2
    return (torch.tensor([[answer[name] for name in names] for answer in said]) - scores).abs().max().item()


# ---- hfkd's transforms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("data", [small, large])
def test_the_pipeline_says_what_the_trainer_evaluated(tmp_path, student, data):
    """Pictures of the size of training, which nothing has to be cut from, and of other sizes."""
    rows = data()
    trainer = trained(tmp_path, STUDENTS[student](), rows, rows)
    # Stored images are cut out before they are resized, in a pipeline after it: half a pixel may lie between.
    assert compared(tmp_path, trainer, rows, pictures()) < (0.02 if data is large else 0.06)
    square = data(((SIZE, SIZE),))
    assert compared(tmp_path, trainer, square, pictures(((SIZE, SIZE),))) < 0.02


@pytest.mark.parametrize("student", STUDENTS)
def test_the_processor_makes_the_very_pixels(tmp_path, student):
    rows = small(((SIZE, SIZE),))
    trained(tmp_path, STUDENTS[student](), rows)
    made = AutoImageProcessor.from_pretrained(tmp_path)(pictures(((SIZE, SIZE),)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, rows[:]["pixel_values"])


@pytest.mark.parametrize("size", [SIZE, 37, 224, 299])
def test_the_shortest_edge_is_the_one_that_was_evaluated(tmp_path, size):
    transform = LargeImageTransform(size, MEAN, STD)
    rows = large().with_transform(transform)
    trained(tmp_path, timm_model(), rows.select(range(2)).with_transform(LargeImageTransform(size, MEAN, STD)))
    made = AutoImageProcessor.from_pretrained(tmp_path)(pictures()[:4], return_tensors="pt")["pixel_values"]
    expected = torch.stack([rows[i]["pixel_values"] for i in range(4)])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_part_of_a_dataset_is_prepared_as_all_of_it(tmp_path, student):
    rows = large()
    parts = torch.utils.data.random_split(rows, [16, 8], torch.Generator().manual_seed(0))
    trainer = trained(tmp_path, STUDENTS[student](), *parts)
    assert compared(tmp_path, trainer, rows, pictures()) < 0.02


def test_a_given_processor_is_compared_with_the_evaluation_set(tmp_path):
    """Which may have larger images than the training set (Touvron et al. 2019)."""
    given, larger = image_processor(MEAN, STD, (48, 48), 55, "bilinear"), large()
    larger = larger.with_transform(LargeImageTransform(48, MEAN, STD))
    trainer = trained(tmp_path, timm_model(), large(), larger, processing_class=given)
    assert compared(tmp_path, trainer, larger, pictures()) < 0.02


def test_he_das_training_set(tmp_path):
    rows = small()
    trainer = trained(tmp_path, timm_model(), mixed(), rows)
    assert compared(tmp_path, trainer, rows, pictures()) < 0.06


@pytest.mark.parametrize("student", STUDENTS)
def test_a_processor_that_was_given_stays_if_it_does_the_same(tmp_path, student):
    given = image_processor(MEAN, STD, (SIZE, SIZE), round(SIZE / 0.875), "bilinear")
    trainer = trained(tmp_path, STUDENTS[student](), large(), processing_class=given)
    assert trainer.processing_class is given


@pytest.mark.parametrize(
    "given",
    [
        lambda: image_processor((0.5,) * 3, STD, (SIZE, SIZE), 37, "bilinear"),
        lambda: image_processor(MEAN, STD, (SIZE, SIZE)),
        lambda: image_processor(MEAN, STD, (224, 224), 256, "bilinear"),
        lambda: ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD),
    ],
    ids=["statistics", "crop", "size", "squashed"],
)
@pytest.mark.parametrize("student", STUDENTS)
def test_a_processor_that_does_something_else_is_refused(tmp_path, student, given):
    with pytest.raises(ValueError, match=r"prepares images differently .* leave processing_class out"):
        trained(tmp_path / "run", STUDENTS[student](), large(), processing_class=given())
    assert not (tmp_path / "run").exists()


# ---- an image processor ----------------------------------------------------------------------------------------------


def unprepared(shapes=SHAPES):
    return [{"pixel_values": p, "labels": i % 3} for i, p in enumerate(pictures(shapes))]


PROCESSORS = {
    "crop": lambda: image_processor(MEAN, STD, (SIZE, SIZE), 36, "bilinear"),
    "squash": lambda: ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD),
    "squash and crop": lambda: DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
    ),
    "crop share": lambda: ConvNextImageProcessor(size={"shortest_edge": SIZE}, image_mean=MEAN, image_std=STD),
    "another scale": lambda: ViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
    "pixels from 0 to 1": lambda: ViTImageProcessor(size={"height": SIZE, "width": SIZE}, do_normalize=False),
}


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_student_carries_the_processor_that_it_was_trained_with(tmp_path, student, name):
    """timm's config has statistics of its own, and AutoImageProcessor looks nowhere else."""
    rows = unprepared()
    trainer = trained(tmp_path, STUDENTS[student](), rows, rows, processing_class=PROCESSORS[name]())
    assert compared(tmp_path, trainer, rows, pictures()) < 0.02


def test_what_a_timm_config_cannot_say_is_refused(tmp_path):
    def flipped():
        return MobileViTImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})

    with pytest.raises(
        ValueError,
        match="MobileViTImageProcessor prepares images in a way that cannot be stored in a timm model's config",
    ):
        trained(tmp_path / "run", timm_model(), unprepared(), processing_class=flipped())
    assert not (tmp_path / "run").exists()
    trained(tmp_path, vit(), unprepared(), processing_class=flipped())


def plain(mean=MEAN, std=STD):
    """Rows that the caller's own code made."""
    arrays = np.stack([np.array(p) for p in pictures(((SIZE, SIZE),))])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return [{"pixel_values": p, "labels": i % 3} for i, p in enumerate(normalised)]


def test_a_processor_that_contradicts_the_pixels_is_warned_of(tmp_path):
    given = image_processor((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (SIZE, SIZE))
    half = plain((0.5,) * 3, (0.5,) * 3)
    with pytest.warns(UserWarning, match=r"mean \(0\.485, .* but the training images have mean \(0\.5, 0\.5, 0\.5\)"):
        trained(tmp_path, vit(), half, processing_class=given)
    trained(tmp_path / "same", vit(), plain((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), processing_class=given)


def test_a_student_of_transformers_carries_a_processor_of_timm(tmp_path):
    """Which itself saves nothing."""
    given = TimmWrapperImageProcessor({"mean": MEAN, "std": STD, "input_size": (3, SIZE, SIZE), "crop_pct": 0.8})
    rows = unprepared()
    trainer = trained(tmp_path, vit(), rows, rows, processing_class=given)
    assert compared(tmp_path, trainer, rows, pictures()) < 0.02


# ---- torchvision's transforms ----------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """As ImageFolder is."""

    def __init__(self, *steps, shapes=SHAPES):
        self.transform, self.pictures = v1.Compose(steps), pictures(shapes)

    def __getitem__(self, i):
        return self.transform(self.pictures[i]), i % 3

    def __len__(self):
        return len(self.pictures)


LAST = v1.ToTensor(), v1.Normalize(MEAN, STD)
BYTES = v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
TRANSFORMS = {
    "crop": (v1.Resize(40), v1.CenterCrop(SIZE), *LAST),
    "bicubic": (v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIZE), *BYTES),
    "squash": (v1.Resize((SIZE, SIZE)), *LAST),
    "squash and crop": (v2.RGB(), v2.Resize((40, 40)), v2.CenterCrop(SIZE), *BYTES),
    "timm": (create_transform((3, SIZE, SIZE), mean=MEAN, std=STD, crop_pct=0.8),),
}


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("steps", TRANSFORMS)
def test_a_student_carries_what_the_transforms_of_its_evaluation_say(tmp_path, student, steps):
    drawn = Pictures(v1.RandomResizedCrop(SIZE), v1.RandomHorizontalFlip(), *LAST)
    rows = Pictures(*TRANSFORMS[steps])
    trainer = trained(tmp_path, STUDENTS[student](), drawn, rows)
    assert compared(tmp_path, trainer, rows, pictures()) < 0.02


class Stored(torch.utils.data.Dataset):
    """As in the documentation: pictures as bytes, and the transforms in the class."""

    transform = v2.Compose(BYTES[1:])

    def __getitem__(self, i):
        picture = pictures(((SIZE, SIZE),))[i]
        return {"pixel_values": self.transform(v2.functional.pil_to_tensor(picture)), "labels": i % 3}

    def __len__(self):
        return 24


AS_THEY_ARE = {
    "pictures": lambda: Pictures(*LAST, shapes=((SIZE, SIZE),)),
    "bytes": Stored,
    "of the collator": lambda: unprepared(((SIZE, SIZE),)),
}


@pytest.mark.parametrize("rows", AS_THEY_ARE)
def test_images_that_are_not_resized_are_not_cropped_either(tmp_path, rows):
    student, rows = timm_model(), AS_THEY_ARE[rows]()
    student.config.pretrained_cfg["crop_pct"] = 0.9  # as of most architectures
    trainer = trained(tmp_path, student, rows, torch.utils.data.Subset(rows, range(24)))
    assert compared(tmp_path, trainer, rows, pictures(((SIZE, SIZE),))) < 1e-4


UNKNOWN = {
    "flipped": lambda: Pictures(v1.Resize(40), v1.CenterCrop(SIZE), v1.RandomHorizontalFlip(1.0), *LAST),
    "moved": lambda: Pictures(v1.Resize(40), v1.CenterCrop(SIZE), v1.Lambda(lambda p: p.rotate(90)), *LAST),
    "tensors": lambda: plain((0.5,) * 3, (0.5,) * 3),
}


class Grey(Pictures):
    def __getitem__(self, i):
        return self.transform(self.pictures[i].convert("L")), i % 3


def test_grey_images_get_no_processor_of_colours(tmp_path):
    torch.manual_seed(0)
    rows = Grey(v1.ToTensor(), v1.Normalize((0.5,), (0.5,)), shapes=((SIZE, SIZE),))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**sizes, image_size=SIZE, patch_size=4, num_labels=3, num_channels=1)
    trained(tmp_path, ViTForImageClassification(config), rows, rows)
    assert not (tmp_path / "preprocessor_config.json").exists()


class Normalised:
    """A collator that normalises what the transforms have left from 0 to 1."""

    def __call__(self, rows):
        images, labels = (torch.stack([torch.as_tensor(row[k]) for row in rows]) for k in (0, 1))
        return {"pixel_values": v1.functional.normalize(images, MEAN, STD), "labels": labels}


def test_what_a_collator_adds_to_the_transforms_is_not_left_out(tmp_path):
    rows = Pictures(v1.Resize((SIZE, SIZE)), v1.ToTensor())
    trained(tmp_path, vit(), rows, rows, data_collator=Normalised())
    assert not (tmp_path / "preprocessor_config.json").exists()


@pytest.mark.parametrize("rows", UNKNOWN)
def test_a_crop_that_nobody_says_is_said_to_be_unknown(tmp_path, caplog, rows):
    student, data = timm_model(), UNKNOWN[rows]()
    student.config.pretrained_cfg["crop_pct"] = 0.9
    trained(tmp_path / "timm", student, data, data)
    assert "How the images are resized and cropped is unknown" in caplog.text
    trained(tmp_path / "vit", vit(), data, data)
    assert not (tmp_path / "vit" / "preprocessor_config.json").exists()


def test_a_processor_that_crops_otherwise_than_the_transforms_is_warned_of(tmp_path):
    rows = Pictures(*TRANSFORMS["crop"])
    given = ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD)
    with pytest.warns(UserWarning, match="ViTImageProcessor resizes or crops images differently from the transforms"):
        trained(tmp_path, vit(), rows, rows, processing_class=given)
    squashed = Pictures(*TRANSFORMS["squash"])
    trained(tmp_path / "same", vit(), squashed, squashed, processing_class=given)


# ---- neither ---------------------------------------------------------------------------------------------------------


def test_statistics_that_the_pixels_prove_are_recorded(tmp_path):
    trained(tmp_path, timm_model(), plain((0.5,) * 3, (0.5,) * 3))
    saved = input_spec(image_classifier(tmp_path, 3))
    assert (saved.mean, saved.std) == ((0.5,) * 3, (0.5,) * 3)
    assert AutoImageProcessor.from_pretrained(tmp_path).data_config["input_size"] == (3, SIZE, SIZE)


def test_statistics_that_nobody_knows_are_said_to_be_unknown(tmp_path, caplog):
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(8)]
    with caplog.at_level(logging.WARNING, "hfkd.training.validation.recorded_inputs"):
        trained(tmp_path / "bare", Net(classes=3), rows)
        assert not caplog.records
        trained(tmp_path / "timm", timm_model(), rows)
    assert "The normalisation of the training images is unknown" in caplog.text


def test_a_teachers_explicit_input_counts_for_the_student(tmp_path):
    from hfkd.models import InputSpec
    from hfkd.teachers import FrozenTeacher

    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(8)]
    told = FrozenTeacher(teacher(3), received=InputSpec(MEAN, STD, None))
    trainer = DistillationTrainer(timm_model(), told, arguments(tmp_path, max_steps=1), train_dataset=rows)
    trainer.train()
    assert input_spec(trainer.model).mean == MEAN


def test_a_processor_of_clip_by_default_crops_all_of_the_shorter_side():
    given = image_processor(MEAN, STD, (8, 12))
    assert isinstance(given, CLIPImageProcessor)
    assert dict(given.size) == {"shortest_edge": 8}


def test_a_timm_model_of_its_own_gets_a_processor_and_a_compiled_one_its_config(tmp_path):
    data = small((SHAPES[2],))
    trained(tmp_path / "bare", timm_model().timm_model, data)
    trained(tmp_path / "compiled", torch.compile(timm_model(), backend="eager"), data)
    picture = pictures((SHAPES[2],), 1)
    for name in ("bare", "compiled"):
        pixels = AutoImageProcessor.from_pretrained(tmp_path / name)(picture, return_tensors="pt")["pixel_values"]
        assert (pixels - data[:1]["pixel_values"]).abs().mean() < 0.1
    assert image_classifier(tmp_path / "compiled", 3).config.pretrained_cfg["mean"] == list(MEAN)


# ---- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "own", "probabilities"),
    [
        ("BERT, several labels", None, torch.sigmoid),
        ("BERT, a label a row", "multi_label_classification", lambda logits: logits.softmax(-1)),
    ],
)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_pipeline_makes_of_the_logits_what_the_task_does(tmp_path, name, own, probabilities):
    kind = KINDS[name]
    student = kind.network(dtype=torch.float32)
    student.config.problem_type = own  # a model writes it only when it computes a loss itself
    args = arguments(tmp_path, task=kind.task, max_steps=1, ce_weight=1.0, kd_weight=0.0)
    DistillationTrainer(student, None, args, **kind.keywords(dtype=torch.float32)).train()
    student.eval().save_pretrained(tmp_path)
    words = kind.tokenizer()
    words.save_pretrained(tmp_path)
    found = pipeline("text-classification", str(tmp_path), device="cpu")("a b c", top_k=None)
    with torch.no_grad():
        expected = probabilities(student(**words("a b c", return_tensors="pt")).logits)[0]
    by_number = {student.config.label2id[one["label"]]: one["score"] for one in found}
    assert torch.allclose(torch.tensor([by_number[i] for i in range(len(expected))]), expected, atol=1e-5)


@pytest.mark.parametrize("said", ["processing_class", "data_collator"])
def test_a_pipeline_ends_texts_where_the_evaluation_did(tmp_path, said):
    """A Llama's end of sequence is token 2 by default, here a word, and the tokenizer's is another."""
    words, rows = word_tokenizer(), [{"input_ids": [3, 4, 1], "labels": [3, 4, 1]}] * 2
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    student = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes))
    student.lm_head = torch.nn.Linear(8, len(words))
    with torch.no_grad():  # writes token 2, whatever came before
        student.lm_head.weight.zero_()
        student.lm_head.bias.copy_(torch.arange(len(words)) == 2)
    given = {said: words if said == "processing_class" else TokenCollator(words)}
    args = arguments(tmp_path, max_steps=1, learning_rate=1e-9, ce_weight=1.0, kd_weight=0.0)
    trainer = DistillationTrainer(student, None, args, train_dataset=rows, **given)
    trainer.train()
    assert generate(student, words, ["a b"], max_new_tokens=3, no_repeat_ngram_size=0, temperature=0) == ["<s> <s> <s>"]
    trainer.save_model()
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id in (words.eos_token_id, [words.eos_token_id])
    prompt = words("a b", return_tensors="pt")["input_ids"]
    assert student.generate(prompt, max_new_tokens=3, do_sample=False)[0, 2:].tolist() == [2, 2, 2]
