"""Each peer of a mutual-learning run is a classifier of its own on disk, with its own scores."""

import json

import pytest
import torch
from toys import arguments
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy
from hfkd.experiments.peers import save_peers
from hfkd.models import Peers, image_classifier
from hfkd.utils.numbers import CIFAR_MEAN


def test_each_peer_is_saved_with_its_scores(tmp_path):
    train, test = (split.select(range(32)).with_transform(ImageTransform()) for split in load_digits())
    torch.manual_seed(1)
    peers = Peers([image_classifier("cifar_resnet20", 10), image_classifier("cifar_resnet8x4", 10)])
    data = {"train_dataset": train, "eval_dataset": test, "compute_metrics": item_accuracy}
    trainer = DistillationTrainer(peers, None, arguments(tmp_path, max_steps=1), objective="average", **data)
    trainer.train()
    scores = save_peers(trainer)
    images = torch.stack([row["pixel_values"] for row in test])
    for k, peer in enumerate(peers.peers):
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / f"peer_{k}")
        with torch.no_grad():
            torch.testing.assert_close(loaded(images).logits, peer.eval()(images).logits, rtol=0, atol=1e-4)
            right = (peer(images).logits.argmax(-1) == torch.tensor(test.with_format(None)["labels"][:])).float().mean()
        saved = json.loads((tmp_path / f"peer_{k}" / "scores.json").read_text())
        assert saved[f"eval_peer_{k}_accuracy"] == pytest.approx(right.item())
    assert scores[0] != scores[1]
    assert peers.scored == 0


@pytest.mark.parametrize("beside", ["cifar_resnet20", None])
def test_a_peer_of_transformers_is_saved_with_its_image_processor(tmp_path, beside):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vits = [ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=10, **sizes)) for _ in range(2)]
    peers = Peers(vits if beside is None else [image_classifier(beside, 10), vits[1]])
    train, test = (split.select(range(16)).with_transform(ImageTransform()) for split in load_digits())
    data = {"train_dataset": train, "eval_dataset": test}
    trainer = DistillationTrainer(peers, None, arguments(tmp_path, max_steps=1), objective="average", **data)
    trainer.train()
    save_peers(trainer)
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "peer_1").image_mean) == CIFAR_MEAN
