"""predict() and compute_metrics get what Trainer gives: every output of the network."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from task_toys import KINDS, padded
from test_choice import vit
from test_proof import llama
from text_toys import mixture_of_experts
from torch import nn
from toys import CLASSES, Net, Rows, arguments
from transformers import DynamicCache, Trainer, TrainingArguments, default_data_collator
from transformers.modeling_outputs import ImageClassifierOutput

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator

ALONE = {"ce_weight": 1.0, "kd_weight": 0.0}
TOKENS = [{"input_ids": torch.arange(3, 11) + i % 4, "labels": torch.arange(3, 11) + i % 4} for i in range(6)]


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.second = Net(), Net(classes=2)

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=self.second(pixel_values))


class Unlabelled(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i]}


def trainer(folder, network, **keywords):
    more = {k: keywords.pop(k) for k in ("compute_metrics", "preprocess_logits_for_metrics") if k in keywords}
    collate = keywords.pop("data_collator", default_data_collator)
    settings = arguments(folder, **ALONE, **keywords)
    return DistillationTrainer(network, None, settings, data_collator=collate, **more)


def plain(folder, network):
    settings = TrainingArguments(
        str(folder),
        per_device_eval_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(network, settings, data_collator=default_data_collator)


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        return
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("build", "rows"),
    [
        (lambda: vit(output_hidden_states=True), Rows(13)),
        (vit, Rows(13)),
        (TwoHeads, Rows(13)),
        (lambda: llama(output_hidden_states=True, use_cache=False), TOKENS),
        (mixture_of_experts, TOKENS),
    ],
    ids=["hidden states", "logits alone", "second head", "language model", "experts"],
)
def test_predictions_are_trainers(tmp_path, build, rows):
    network = build()
    ours, theirs = trainer(tmp_path, network).predict(rows), plain(tmp_path, network).predict(rows)
    assert_same(ours.predictions, theirs.predictions)
    assert_same(ours.label_ids, theirs.label_ids)


def test_a_network_that_returns_a_tensor_gives_its_logits(tmp_path):
    network, rows = Net(), Rows(9)  # a last batch of one row
    with torch.no_grad():
        expected = network(rows.images)
    for data in (rows, Unlabelled(9)):
        np.testing.assert_allclose(trainer(tmp_path, network).predict(data).predictions, expected, atol=1e-6)
    returned = SimpleNamespace(logits=expected)

    class Object(Net):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=super().forward(pixel_values))

    made = trainer(tmp_path / "object", Object()).predict(rows).predictions
    np.testing.assert_allclose(made, returned.logits, atol=1e-6)


def test_rows_without_labels_give_the_same(tmp_path):
    network = vit(output_hidden_states=True)
    made = trainer(tmp_path, network)
    assert_same(made.predict(Unlabelled(13)).predictions, made.predict(Rows(13)).predictions)


class Caching(Net):
    """Returns a cache, which its config does not name among the keys that are ignored."""

    def forward(self, pixel_values):
        return {"logits": super().forward(pixel_values), "of_its_base": DynamicCache()}


def test_a_cache_is_no_prediction(tmp_path):
    made = trainer(tmp_path, Caching())
    assert math.isfinite(made.evaluate(Rows(8))["eval_loss"])
    for data in (Rows(8), Unlabelled(8)):
        assert made.predict(data).predictions.shape == (8, CLASSES)


class SaysWhatItHasNot(Net):
    """A dict as people write it: without labels no loss, and no hidden states, but a number."""

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "hidden_states": None, "auxiliary": 0.0}


def test_what_a_network_returns_as_none_is_no_prediction(tmp_path):
    made = trainer(tmp_path, SaysWhatItHasNot())
    found = made.evaluate(Rows(8))
    assert {"eval_loss", "eval_accuracy"} <= found.keys()
    for data in (Rows(8), Unlabelled(8)):
        assert made.predict(data).predictions.shape == (8, CLASSES)


def test_a_metric_that_predicts_other_rows_leaves_the_loss_as_it_is(tmp_path):
    made, rows, others = trainer(tmp_path, Net()), Rows(8), Rows(16, seed=5)

    def metrics(prediction):
        made.compute_metrics = None
        return {"gap": made.predict(others).metrics["test_loss"]}

    expected, of_others = (made.evaluate(data)["eval_loss"] for data in (rows, others))
    made.compute_metrics = metrics
    found = made.evaluate(rows)
    assert found["eval_loss"] == expected != of_others
    assert found["eval_gap"] == pytest.approx(of_others)


@pytest.mark.parametrize("bf16", [False, True])
def test_an_encoder_decoder_without_a_target_text_is_named(tmp_path, bf16):
    kind = KINDS["T5"]
    made = trainer(tmp_path, kind.network(dtype=torch.float32), data_collator=padded, bf16=bf16)
    rows = [{"input_ids": row["input_ids"]} for row in kind.rows()]
    with pytest.raises(ValueError, match="T5ForConditionalGeneration computes logits for a target text"):
        made.predict(rows)


def test_the_loss_in_a_tuple_is_no_prediction(tmp_path):
    kind = KINDS["T5"]
    network = kind.network(dtype=torch.float32)
    expected = trainer(tmp_path / "named", network, data_collator=padded).predict(kind.rows())
    network.config.return_dict = False
    found = trainer(tmp_path / "tuple", network, data_collator=padded).predict(kind.rows())
    assert_same(found.predictions, expected.predictions)


def test_ignored_keys_stay_behind(tmp_path):
    made = trainer(tmp_path, TwoHeads())
    assert made.predict(Rows(8), ignore_keys=["hidden_states"]).predictions.shape == (8, CLASSES)
    network = vit(output_hidden_states=True)
    network.config.keys_to_ignore_at_inference = ["hidden_states"]
    assert trainer(tmp_path / "config", network).predict(Rows(8)).predictions.shape == (8, CLASSES)


def test_compute_metrics_gets_them_after_they_are_preprocessed(tmp_path):
    seen = []

    def preprocess(outputs, labels):
        seen.append(type(outputs))
        return outputs[1].argmax(-1)

    def metrics(prediction):
        return {"shape": prediction.predictions.shape}

    keywords = {"compute_metrics": metrics, "preprocess_logits_for_metrics": preprocess}
    scores = trainer(tmp_path, TwoHeads(), **keywords).evaluate(Rows(13))
    assert scores["eval_shape"] == (13,)
    assert seen == [tuple, tuple]


def test_compute_metrics_that_are_set_later_get_whole_logits_too(tmp_path):
    """The trainer's own accuracy, which it stands in for, reads the best classes alone."""
    seen, made = (
        [],
        DistillationTrainer(Net(), None, arguments(tmp_path), eval_dataset=Rows(13), kd_weight=0, ce_weight=1),
    )
    assert "eval_accuracy" in made.evaluate()
    made.compute_metrics = lambda found: seen.append(found.predictions) or {"mine": 1.0}
    assert made.evaluate()["eval_mine"] == 1.0
    with torch.no_grad():
        np.testing.assert_allclose(seen[0], made.model(Rows(13).images), atol=1e-6)
    made.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
    made.evaluate()
    assert seen[1].shape == (13,)
    made.predict(Rows(13))
    assert seen[2].shape == (13,), "what the caller has set is kept in predict() too"


def test_without_metrics_the_outputs_are_not_kept(tmp_path):
    made, kept = trainer(tmp_path, TwoHeads()), []
    made.compute_metrics = None  # accuracy by default
    step = made.prediction_step
    made.prediction_step = lambda *args, **keywords: kept.append(step(*args, **keywords)) or kept[-1]
    made.evaluate(Rows(13))
    assert [(outputs, labels) for _, outputs, labels in kept] == [(None, None)] * 2


# ---- in training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "text"])
def test_compute_loss_returns_the_whole_outputs_in_training(tmp_path, kind):
    found = []

    class Watching(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            found.append((outputs["logits"], inputs["labels"], loss.detach()))
            return (loss, outputs) if return_outputs else loss

    keywords = {"train_dataset": Rows(16)} if kind == "images" else {"data_collator": TokenCollator(0)}
    if kind == "text":
        keywords["train_dataset"] = [{k: v.tolist() for k, v in row.items()} for row in TOKENS]
    student = Net() if kind == "images" else llama()
    Watching(student, None, arguments(tmp_path, **ALONE, max_steps=2), **keywords).train()
    assert len(found) == 2
    for logits, labels, loss in found:
        z, y = (logits, labels) if kind == "images" else (logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        assert nn.functional.cross_entropy(z, y).item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_loss_over_chunks_has_no_outputs_to_return(tmp_path):
    settings = arguments(tmp_path, **ALONE, loss_chunk_size=4)
    made = DistillationTrainer(llama(), None, settings, train_dataset=TOKENS, data_collator=default_data_collator)
    batch = default_data_collator(TOKENS[:2])
    with pytest.raises(ValueError, match="needs whole logits, which loss_chunk_size does not compute"):
        made.compute_loss(made.model.train(), batch, return_outputs=True)
