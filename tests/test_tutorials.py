"""Scripts as tutorials have them, with the class swapped and a teacher added: they train, score, save and load."""

from itertools import chain

import datasets
import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup, create_transform
from torchvision.transforms import Compose, Normalize, RandomResizedCrop, ToTensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DefaultDataCollator,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hfkd import DistillationArguments, DistillationTrainer

pytestmark = pytest.mark.slow
COMMON = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 6, "logging_steps": 3}
COMMON |= {"per_device_train_batch_size": 16, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 6}
SCORED = COMMON | {"eval_strategy": "steps", "eval_steps": 6}


def shown(trainer, capsys):
    """Train and save; what a user sees."""
    trainer.train()
    scores = trainer.evaluate() if trainer.eval_dataset is not None else {}
    trainer.save_model()
    trainer.create_model_card()
    with capsys.disabled():
        rows = [*trainer.state.log_history, scores]
        print(*({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows), sep="\n")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    return scores


def images(folder, rows):
    found = datasets.load_dataset(str(folder / "tiny-imagenet"), split=f"train[:{rows}]")
    return found.train_test_split(test_size=0.2, seed=0)


def test_image_classification(data_dir, tmp_path, capsys):
    food = images(data_dir, 200)
    labels = food["train"].features["label"].names
    image_processor = ViTImageProcessor(size={"height": 64, "width": 64})
    normalize = Normalize(mean=image_processor.image_mean, std=image_processor.image_std)
    transforms = Compose([RandomResizedCrop((64, 64)), ToTensor(), normalize])

    def preprocess(examples):
        examples["pixel_values"] = [transforms(image.convert("RGB")) for image in examples["image"]]
        del examples["image"]
        return examples

    def compute_metrics(found):
        return {"accuracy": float((np.argmax(found.predictions, axis=1) == found.label_ids).mean())}

    def network(width):
        sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        return ViTForImageClassification(ViTConfig(**sizes, image_size=64, patch_size=16, **names))

    food = food.with_transform(preprocess)
    training_args = TrainingArguments(
        str(tmp_path),
        remove_unused_columns=False,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        **SCORED,
    )
    trainer = DistillationTrainer(
        model=network(16),
        teacher=network(32),
        args=training_args,
        data_collator=DefaultDataCollator(),
        train_dataset=food["train"],
        eval_dataset=food["test"],
        processing_class=image_processor,
        compute_metrics=compute_metrics,
    )
    assert "eval_accuracy" in shown(trainer, capsys)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label[3] == labels[3]


def test_causal_language_modelling(data_dir, tmp_path, capsys):
    stories = datasets.load_dataset("json", data_files=str(data_dir / "stories260K-samples.jsonl"), split="train[:60]")
    stories = stories.train_test_split(test_size=0.2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "stories260K")
    tokenizer.pad_token = tokenizer.eos_token
    tokenized = stories.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
    block_size = 64

    def group_texts(examples):
        joined = {name: list(chain.from_iterable(examples[name])) for name in examples}
        total = len(joined["input_ids"]) // block_size * block_size
        result = {
            name: [values[i : i + block_size] for i in range(0, total, block_size)] for name, values in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    blocks = tokenized.map(group_texts, batched=True)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    trainer = DistillationTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=512, **small)),
        teacher=AutoModelForCausalLM.from_pretrained(data_dir / "stories260K"),
        args=TrainingArguments(str(tmp_path), **SCORED),
        train_dataset=blocks["train"].select(range(96)),
        eval_dataset=blocks["test"].select(range(8)),
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    assert shown(trainer, capsys)["eval_loss"] < np.log(512)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_timm_script_with_mixup(data_dir, tmp_path, capsys):
    tiny = images(data_dir, 160)

    def transformed(transform):
        return lambda rows: {
            "pixel_values": [transform(image.convert("RGB")) for image in rows["image"]],
            "labels": rows["label"],
        }

    train = tiny["train"].with_transform(transformed(create_transform(64, is_training=True)))
    test = tiny["test"].with_transform(transformed(create_transform(64)))
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=200)

    def plain(rows):
        images, labels = [row["pixel_values"] for row in rows], [row["labels"] for row in rows]
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    def mixed(rows):
        batch = plain(rows)
        return dict(zip(batch, mixup(*batch.values()), strict=True))

    class MixingTrainer(DistillationTrainer):
        def get_train_dataloader(self):
            self.data_collator, scoring = mixed, self.data_collator
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = scoring

    trainer = MixingTrainer(
        timm.create_model("resnet10t", num_classes=200),
        timm.create_model("resnet18", num_classes=200),
        DistillationArguments(str(tmp_path), dataloader_drop_last=True, bf16=False, **SCORED),
        train_dataset=train,
        eval_dataset=test,
        data_collator=plain,
    )
    assert "eval_loss" in shown(trainer, capsys)


def test_a_trl_script_of_supervised_fine_tuning(data_dir, tmp_path, capsys):
    dataset = datasets.load_dataset(
        "json", data_files=str(data_dir / "dolly" / "databricks-dolly-15k.jsonl"), split="train[:96]"
    ).map(
        lambda row: {"prompt": row["instruction"], "completion": " " + row["response"]},
        remove_columns=["instruction", "context", "response"],
    )
    trainer = DistillationTrainer(
        model=str(data_dir / "stories260K"),
        teacher=str(data_dir / "stories260K"),
        args=TrainingArguments(str(tmp_path), **COMMON),
        train_dataset=dataset,
    )
    shown(trainer, capsys)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
