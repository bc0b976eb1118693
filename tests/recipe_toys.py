"""Small data and networks for the recipes, their flags, and a way to run one in the test's own process."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from digit_files import flags, save_network, write_digits
from PIL import Image
from safetensors.torch import save_file
from text_tokenizer import word_tokenizer
from text_toys import language_model, tokenizer
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hfkd.models.detection import detector

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = ["a", "b", "c", "d", "you", "me", "one", "two", "three"]
TEXT = {"max_length": 24, "max_prompt_length": 12, "max_steps": 2, "per_device_train_batch_size": 8}
TEXT |= {"gradient_accumulation_steps": 1, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
MASKED = ["left", "right", "border"]  # the classes of the toy masks
BOX_CLASSES = 4  # with the background, and a gap
DETECTOR = {"levels": [1, 2], "fpn_channels": 8, "head_size": 16, "min_size": 48, "max_size": 72, "anchor_size": 8}
SMALL_BERT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
ANSWERS = {"sets": "vicuna", "seeds": 1, "max_new_tokens": 4, "max_prompt_length": 12}


def write_toys(folder):
    """Digits and a network of them; short rows of text, a set to answer, and two language models."""
    write_digits(folder / "digits")
    save_network(folder / "teacher")
    for name, split, count in (("text", "train", 16), ("text", "dev", 4), ("sets", "vicuna", 5)):
        (folder / name).mkdir(exist_ok=True)
        rows = [
            {"prompt": f"ask {WORDS[i % 9]} {WORDS[i % 7]}", "response": f"answer {WORDS[i % 5]}"} for i in range(count)
        ]
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, width in (("large", 24), ("small", 16)):
        language_model(width).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    write_classified(folder)
    (folder / "masks").mkdir()
    write_masks(folder / "masks")
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(MASKED))
    save_file(network.state_dict(), folder / "masks.safetensors")
    write_boxes(folder / "boxes")
    torch.manual_seed(0)
    network = detector("test_efficientnet", BOX_CLASSES, **DETECTOR)
    save_file(network.state_dict(), folder / "boxes.safetensors")
    save_file(network.backbone.body.state_dict(), folder / "backbone.safetensors")
    return folder


def write_classified(folder, rows=48):
    """Sentences whose label is one of their words, and a classifier and a masked language model of 16 tokens."""
    (folder / "classified").mkdir()
    words = word_tokenizer(pad_token="<pad>", mask_token="<mask>")
    for split, count in (("train", rows), ("dev", 16)):
        said = [(f"{WORDS[i % 9]} {('ask', 'answer')[i % 2]} {WORDS[i % 7]}", i % 2) for i in range(count)]
        lines = [json.dumps({"text": text, "label": ("positive", "negative")[k]}) + "\n" for text, k in said]
        (folder / "classified" / f"{split}.jsonl").write_text("".join(lines))
    config = BertConfig(**SMALL_BERT, vocab_size=len(words), id2label={0: "negative", 1: "positive"})
    for name, kind in (("classifier", BertForSequenceClassification), ("masked", BertForMaskedLM)):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


def write_masks(folder):
    """Images whose two halves are light and dark, and masks that say which is which."""
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        images, masks = [], []
        for _ in range(count):
            mask = np.where(np.arange(32)[None] < generator.integers(10, 22), 0, 1).repeat(24, 0).astype(np.uint8)
            mask[:3] = 2
            image = (mask[..., None] * 90 + generator.integers(0, 40, (24, 32, 3))).astype(np.uint8)
            mask[-2:] = 255
            images.append(image)
            masks.append(mask)
        Dataset.from_dict({"image": images, "label": masks}, features=features).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(MASKED))))
    return folder


def write_boxes(folder, train=8, test=4):
    """A folder in COCO's format: light boxes on the left and dark ones on the right; the last image has none."""
    generator = np.random.default_rng(0)
    for split, count in (("train2017", train), ("val2017", test)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for k in range(count):
            height, width = 40 + 4 * (k % 2), 60
            pixels = generator.integers(90, 130, (height, width, 3)).astype(np.uint8)
            images.append({"id": k, "file_name": f"{k}.png", "height": height, "width": width})
            for category, x in ((1, 4), (3, 34)) if k < count - 1 else ():
                x, y, side = x + int(generator.integers(0, 8)), int(generator.integers(2, 18)), 14
                pixels[y : y + side, x : x + side] = 250 if category == 1 else 5
                box = {"id": len(annotations) + 1, "image_id": k, "category_id": category, "bbox": [x, y, side, side]}
                annotations.append(box | {"area": side * side, "iscrowd": 0})
            Image.fromarray(pixels).save(folder / split / f"{k}.png")
        names = [{"id": 1, "name": "light"}, {"id": 3, "name": "dark"}]
        content = {"images": images, "annotations": annotations, "categories": names}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def given(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def image_flags(folder, out, **more):
    """A run of cifar100_energy_kd.py of 6 steps, two epochs."""
    pair = {"teacher_name": folder / "teacher", "student_name": "cifar_resnet8x4", "output_dir": out}
    return flags(folder / "digits", **pair | more)


def text_flags(folder, out, **more):
    """A run of gpt2_dolly_eakd.py of 2 steps."""
    names = {"teacher_name_or_path": folder / "large", "student_name_or_path": folder / "small"}
    texts = {"dataset_name": folder / "text", "output_dir": out, "use_cpu": True, "bf16": False}
    return given(**TEXT | texts | names | more)


def answer_flags(folder, out, **more):
    """A run of evaluate_instruct.py with one set of answers."""
    names = {"student_name_or_path": folder / "small", "sets_from": folder / "sets", "output_dir": out}
    return given(**ANSWERS | names | more)


def response_flags(folder, out, **more):
    """Two responses to each prompt by generate_responses.py, also those that do not end."""
    names = {"model_name_or_path": folder / "large", "dataset_name": folder / "text", "output_dir": out}
    few = {"num_samples": 2, "max_new_tokens": 6, "max_prompt_length": 12, "batch_size": 8, "keep_unfinished": True}
    return given(**names | few | {"disable_tqdm": True} | more)


def classified_flags(folder, out, **more):
    """A run of text_classification.py of 6 steps, two epochs, with fresh weights for the student."""
    return _read_flags(folder, out, "classifier", {"num_train_epochs": 2} | more)


def masked_flags(folder, out, **more):
    """A run of masked_lm.py of 6 steps, 5 of them in the first epoch, of rows of 8 tokens."""
    few = {"max_length": 8, "per_device_train_batch_size": 4, "max_steps": 6}
    return _read_flags(folder, out, "masked", few | more)


def _read_flags(folder, out, teacher, more):
    changes = ",".join(f"{name}={value}" for name, value in (SMALL_BERT | {"hidden_size": 8}).items())
    names = {"teacher_name_or_path": folder / teacher, "student_name_or_path": "bert", "from_config": True}
    names |= {"student_config": changes, "dataset_name": folder / "classified", "dataset_config": "", "output_dir": out}
    rest = {"max_length": 16, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "scan_cache_dir": ""}
    logs = {"logging_strategy": "steps", "logging_steps": 1}
    return given(**names | rest | quiet | logs | more)


def small_masks(toys, words):
    """One step on the toys' masks, with the smallest network as the student, and as the teacher where there is one."""
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "scan_cache_dir": ""}
    small = given(dataset_name=toys / "masks", student_name="lraspp_mobilenet_v3_large", max_steps=1, **quiet)
    named = {"teacher_name": "lraspp_mobilenet_v3_large", "teacher_checkpoint": toys / "masks.safetensors"}
    return [*small, "--image_size", "24", "32", *(given(**named) if "--teacher_name" in words else [])]


def small_boxes(toys, words):
    """One step on the toys' boxes, with a network of timm's for its tests, which is its teacher where there is one."""
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "dataloader_num_workers": 0}
    steps = {
        "max_steps": 1,
        "eval_steps": 1,
        "save_steps": 1,
        "lr_decay_epochs": 1,
        "warmup_steps": 0,
        "lr_decay_factor": 0.5,
    }
    sizes = {name: DETECTOR[name] for name in ("min_size", "max_size", "anchor_size")}
    small = given(dataset_name=toys / "boxes", student_name="test_efficientnet", **quiet, **steps, **sizes)
    widths = {
        f"{role}_{name}": DETECTOR[name] for role in ("student", "teacher") for name in ("fpn_channels", "head_size")
    }
    levels = [word for role in ("student", "teacher") for word in (f"--{role}_levels", *map(str, DETECTOR["levels"]))]
    taught = {"teacher_name": "test_efficientnet", "teacher_checkpoint": toys / "boxes.safetensors"}
    named = "--student_backbone_checkpoint" in words
    kept = {"student_backbone_checkpoint": toys / "backbone.safetensors"} if named else {}
    return [*small, *given(**widths, **kept), *levels, *(given(**taught) if "--kd_weight" not in words else [])]


def run(monkeypatch, recipe, *flags):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")


def results(out):
    return json.loads((out / "results.json").read_text())
