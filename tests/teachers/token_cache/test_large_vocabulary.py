"""A vocabulary of 262,144: the loss over chunks is the dense one, and what is stored is what the teacher says."""

import pytest
import torch
from text_toys import language_model, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.teachers import CachedTextTeacher, FrozenTeacher, build_text_cache
from hfkd.utils.targets import Targets

VOCABULARY, FIRST_OF_32_BITS = 1 << 18, 1 << 16


def teacher():
    """Its likeliest tokens have ids that take more than two bytes."""
    network = taught_model(vocab=VOCABULARY)
    with torch.no_grad():
        network.transformer.wte.weight[: FIRST_OF_32_BITS // 2].div_(20)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "reverse_kl"])
def test_the_loss_over_chunks_is_the_dense_one(tmp_path, objective):
    after = []
    for chunk in (0, 5):
        args = arguments(tmp_path / str(chunk), loss_chunk_size=chunk, max_steps=2, per_device_train_batch_size=4)
        slots = {"objective": objective, "temperature": "energy(ratio=0.2)", "weighting": "entropy"}
        trainer = DistillationTrainer(
            language_model(vocab=VOCABULARY), teacher(), args, train_dataset=token_dataset(8), **slots
        )
        trainer.train()
        after.append(([row["loss"] for row in trainer.state.log_history if "loss" in row], trainer.model))
    (losses, dense), (others, chunked) = after
    assert losses == pytest.approx(others, rel=1e-5)
    for (name, one), other in zip(dense.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("float16", 2e-2)])
def test_what_is_stored_is_what_the_teacher_says(tmp_path, dtype, allowed):
    rows, k = token_dataset(6), 32
    build_text_cache(teacher(), rows, tmp_path, k=k, temperatures=2.0, dtype=dtype, progress_bar=False)
    stored = CachedTextTeacher(tmp_path)
    batch = TokenCollator(0)(list(rows))
    logits = Targets.of(batch).pick(FrozenTeacher(teacher())(**batch)).float()  # [N, V]
    kept = stored.look_up(list(rows))
    outputs, ids = stored.outputs(kept), kept["teacher_ids"]
    largest = logits.topk(k).values
    assert ids.max() >= FIRST_OF_32_BITS
    torch.testing.assert_close(logits.gather(1, ids), largest, rtol=0, atol=allowed)
    torch.testing.assert_close(kept["teacher_logits"], largest - largest[:, :1], rtol=1e-3, atol=allowed)
    torch.testing.assert_close(outputs.energy(4.0), -4 * (logits / 4).logsumexp(1), rtol=1e-5, atol=1e-4)
    others = (logits / 2).scatter(1, ids, float("-inf")).logsumexp(1) * 2 - largest[:, 0]
    torch.testing.assert_close(kept["teacher_tails"][:, 0], others, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_training_reads_the_store_and_says_what_16_classes_hide(tmp_path, caplog):
    build_text_cache(teacher(), token_dataset(8), tmp_path / "cache", k=16, progress_bar=False)
    trainer = DistillationTrainer(
        language_model(vocab=VOCABULARY), CachedTextTeacher(tmp_path / "cache"), arguments(tmp_path / "run"),
        train_dataset=token_dataset(8), processing_class=tokenizer(), objective="reverse_kl",
    )  # fmt: skip
    trainer.train()
    assert "has the 16 most probable of 262144 classes" in caplog.text
    assert all(row["loss"] == row["loss"] for row in trainer.state.log_history if "loss" in row)
