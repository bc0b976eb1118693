"""Each peer of a mutual-learning run is a classifier of its own on disk, with its own scores."""

import json

import pytest
import torch
from toys import arguments
from transformers import AutoModelForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy
from hfkd.experiments.peers import save_peers
from hfkd.models import Peers, image_classifier


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
