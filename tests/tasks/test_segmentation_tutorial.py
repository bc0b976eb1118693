"""transformers' tutorial of semantic segmentation, with DistillationTrainer in place of Trainer, and a teacher."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torchvision.transforms import ColorJitter
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from hfkd import DistillationArguments, DistillationTrainer

multiclass_jaccard_index = pytest.importorskip("torchmetrics.functional.classification").multiclass_jaccard_index

NAMES = ["wall", "sky", "car"]  # of the masks' 1, 2 and 3: 0 stands for none, as in ADE20K


def picture(k):
    """Three upright stripes, grey as their class says, below a line without one."""
    mask = np.repeat(np.roll([1, 2, 3], k), 8)[None].repeat(20, 0).astype(np.uint8)
    mask[0] = 0
    pixels = np.stack([60 * mask] * 3, -1) + np.random.default_rng(k).integers(0, 40, (20, 24, 3))
    return {"image": Image.fromarray(pixels.astype(np.uint8)), "annotation": Image.fromarray(mask)}


def model(folder, sizes):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: k for k, name in enumerate(NAMES)}}
    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=sizes, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16)
    config.update(names)
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return AutoModelForSemanticSegmentation.from_pretrained(folder, **names)


@pytest.mark.slow
def test_the_tutorials_script_with_a_teacher(tmp_path):
    features = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    parts = Dataset.from_list([picture(k) for k in range(24)], features=features).train_test_split(test_size=8, seed=0)
    processor = SegformerImageProcessor(size={"height": 32, "width": 32}, do_reduce_labels=True)
    jitter = ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1)
    parts["train"].set_transform(lambda rows: processor([jitter(x) for x in rows["image"]], rows["annotation"]))
    parts["test"].set_transform(lambda rows: processor(list(rows["image"]), list(rows["annotation"])))

    def compute_metrics(evaluated):
        maps, labels = (torch.as_tensor(x) for x in evaluated)
        classes = torch.nn.functional.interpolate(maps, size=labels.shape[-2:], mode="bilinear").argmax(1)
        found = multiclass_jaccard_index(classes, labels.long(), num_classes=3, ignore_index=255)
        return {"mean_iou": float(found)}

    args = DistillationArguments(
        output_dir=str(tmp_path / "out"), learning_rate=3e-3, num_train_epochs=8, per_device_train_batch_size=4,
        per_device_eval_batch_size=4, save_total_limit=3, eval_strategy="epoch", save_strategy="epoch", logging_steps=1,
        eval_accumulation_steps=5, remove_unused_columns=False, ce_weight=1.0, kd_weight=1.0, bf16=False,
        temperature="energy(level='item')", weighting="entropy(level='item')", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=model(tmp_path / "small", [8] * 4),
        teacher=model(tmp_path / "large", [16] * 4),
        args=args,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        compute_metrics=compute_metrics,
        processing_class=processor,
    )
    assert trainer.task.name == "semantic_segmentation"
    trainer.train()
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert scores[-1] > max(scores[0], 0.5)
    trainer.save_model()
    shown = pipeline("image-segmentation", model=str(tmp_path / "out"), image_processor=processor)(picture(0)["image"])
    assert {one["label"] for one in shown} <= set(NAMES)
    predicted = trainer.predict(parts["test"]).predictions
    labels = torch.stack([torch.as_tensor(row["labels"]) for row in parts["test"]])
    assert compute_metrics((predicted, labels))["mean_iou"] == pytest.approx(scores[-1])
