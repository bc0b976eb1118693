"""Models that read pictures and write text: Qwen2-VL, and LLaVA on rows of which some have no picture."""

import pytest
import torch
from datasets import Dataset
from task_toys import IMAGE, KINDS, PAD, VOCAB, decoder, generator, padded, tokenizer
from torch.nn.functional import cross_entropy
from toys import arguments
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from hfkd import DistillationTrainer
from hfkd.teachers.token_cache.build import build_text_cache
from hfkd.utils.targets import IGNORED

LABELS_ONLY = {"ce_weight": 1.0, "kd_weight": 0.0, "per_device_train_batch_size": 8, "max_steps": 1}


def qwen2_vl():
    """Its patches are read by a convolution in three dimensions, its positions have three, too."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 10000.0}
    patches = {"patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 1}
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 1, "mlp_ratio": 1} | patches
    others = {"image_token_id": IMAGE, "video_token_id": 0, "vision_start_token_id": 3, "vision_end_token_id": PAD}
    config = Qwen2VLConfig(text_config=decoder(8) | {"rope_parameters": rope}, vision_config=vision, **others)
    return Qwen2VLForConditionalGeneration(config).double()


def picture_rows():
    """Rows of two pictures, one, or none, of four tokens each."""
    g = generator()
    rows = []
    for number in range(8):
        count, ids = (2, 1, 0, 1)[number % 4], torch.randint(4, VOCAB, (4 + number % 3,), generator=g).tolist()
        seen = [3, *[IMAGE] * 4] * count
        row = {"input_ids": seen + ids, "labels": [IGNORED] * (len(seen) + 1) + ids[1:]}
        rows.append(row | {"pixel_values": torch.randn(16 * count, 12, generator=g, dtype=torch.float64)})
    return rows


def of_qwen(rows):
    batch = padded([{k: v for k, v in row.items() if k != "pixel_values"} for row in rows])
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    pixels = torch.cat([row["pixel_values"] for row in rows])
    if len(pixels):
        batch |= {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]] * (len(pixels) // 16))}
    return batch


def naive_loss(network, rows, collate):
    """The mean over all target tokens of rows that are alone in their batch."""
    losses = []
    for row in rows:
        batch = collate([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = network.eval()(**batch).logits[0, :-1]
        losses += [cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED], reduction="none")]
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("settings", [{}, {"loss_chunk_size": 4}], ids=["whole logits", "chunks"])
def test_convolutions_over_three_dimensions_are_trained(tmp_path, settings):
    network, rows = qwen2_vl(), picture_rows()
    expected = naive_loss(network, rows, of_qwen)
    keywords = {"train_dataset": rows, "eval_dataset": rows, "data_collator": of_qwen}
    made = DistillationTrainer(network, None, arguments(tmp_path, **LABELS_ONLY, **settings), **keywords)
    assert made.channels_last
    assert made.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    before = made.model.model.visual.patch_embed.proj.weight.clone()
    assert made.train().training_loss == pytest.approx(expected, rel=1e-6)
    assert not torch.equal(made.model.model.visual.patch_embed.proj.weight, before)


def some_pictures(rows):
    batch = padded([{k: v for k, v in row.items() if k != "pixel_values"} for row in rows])
    pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
    return batch | ({"pixel_values": torch.stack(pixels)} if pixels else {})


def test_rows_with_pictures_may_follow_rows_of_text(tmp_path):
    """They were evaluated without their pictures, as the first rows have none."""
    kind = KINDS["LLaVA"]
    seen = kind.keywords()["train_dataset"]
    texts = [{"input_ids": row["input_ids"][4:], "labels": row["labels"][4:]} for row in seen]
    student, teacher = kind.pair()
    expected = naive_loss(student, seen, padded)
    keywords = {"train_dataset": texts + seen, "eval_dataset": seen, "data_collator": some_pictures}
    made = DistillationTrainer(student, teacher, arguments(tmp_path, evaluate_kl=True), **keywords)
    scores = made.evaluate()
    assert scores["eval_loss"] == pytest.approx(expected, rel=1e-6)
    others = DistillationTrainer(student, teacher, made.args, **keywords | {"train_dataset": seen})
    assert scores["eval_kl"] == pytest.approx(others.evaluate()["eval_kl"], rel=1e-9)


def test_pictures_are_not_dropped_without_a_collator_for_them(tmp_path):
    kind = KINDS["LLaVA"]
    seen = [row | {"pixel_values": row["pixel_values"].float()} for row in kind.rows()]
    texts = [{"input_ids": row["input_ids"][4:], "labels": row["labels"][4:], "images": []} for row in seen]
    student, args = kind.network(dtype=torch.float32), arguments(tmp_path, **LABELS_ONLY)
    raw = Dataset.from_dict({"prompt": ["a b"] * 4, "completion": [" c"] * 4, "images": [[1]] * 4})
    for rows, name in ((seen, "pixel_values"), (raw, "images")):
        with pytest.raises(ValueError, match=f"the rows have {name}, which a LlavaForConditionalGeneration reads, but"):
            DistillationTrainer(student, None, args, train_dataset=rows, processing_class=tokenizer())
    made = DistillationTrainer(student, None, args, train_dataset=texts + seen, processing_class=tokenizer())
    with pytest.raises(ValueError, match="the rows have pixel_values"):
        made.train()
    reader = KINDS["Llama"].network(dtype=torch.float32)  # which reads texts alone
    args = arguments(tmp_path / "texts", **LABELS_ONLY)
    DistillationTrainer(reader, None, args, train_dataset=raw, processing_class=tokenizer()).train()


def test_a_cache_of_tokens_is_not_built_of_rows_with_pictures(tmp_path):
    kind = KINDS["LLaVA"]
    rows = [row | {"pixel_values": row["pixel_values"].tolist(), "index": i} for i, row in enumerate(kind.rows(4))]
    with pytest.raises(ValueError, match="the rows have pixel_values, .* train with the live teacher"):
        build_text_cache(kind.network(dtype=torch.float32), Dataset.from_list(rows), tmp_path, k=4, progress_bar=False)


def test_metrics_of_batches_with_pictures_and_without(tmp_path):
    """A network returns the states of its pictures too, of which some batches have none."""
    kind, seen = KINDS["LLaVA"], []
    rows = kind.keywords()["train_dataset"]
    texts = [{"input_ids": row["input_ids"][4:], "labels": row["labels"][4:]} for row in rows]

    def metric(found):
        seen.append(found.predictions)
        return {}

    args = arguments(tmp_path, **LABELS_ONLY, per_device_eval_batch_size=4)
    keywords = {"eval_dataset": texts + rows, "data_collator": some_pictures, "compute_metrics": metric}
    made = DistillationTrainer(kind.network(), None, args, train_dataset=rows, **keywords)
    made.evaluate()
    assert seen[0].shape[0] == 16
    assert seen[0].shape[-1] == VOCAB
