"""What trainers make, and keep in memory, without need."""

import gc
import sys
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from task_toys import masks, segformer
from text_toys import VOCAB, TokenRows, language_model, taught_model, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Net, Rows, arguments, teacher

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from operations import Bytes

from hfkd import DistillationTrainer


def of_images(folder):
    settings = {"objective": "kd + fitnet(layer='conv')", "train_dataset": Rows()}
    return DistillationTrainer(Net(), teacher(), arguments(folder, max_steps=1), **settings)


def of_texts(folder):
    settings = {"objective": "kd + attention_scores", "train_dataset": TokenRows(), "processing_class": tokenizer()}
    return DistillationTrainer(language_model(), taught_model(), arguments(folder, max_steps=1), **settings)


@pytest.mark.parametrize("build", [of_images, of_texts])
def test_a_trainer_whose_objective_reads_layers_is_freed(tmp_path, build):
    trainer = build(tmp_path)
    trainer.train()
    kept = [weakref.ref(one) for one in (trainer, trainer.model, trainer.teacher.networks[0], trainer.optimizer)]
    del trainer
    gc.collect()
    assert [one() for one in kept] == [None] * len(kept)


class Made(TorchDispatchMode):
    """How often each operation was called, by its name and the number of values it made."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.calls[function.overloadpacket.__name__, result.numel()] += 1
        return result


def evaluated(trainer):
    with Made() as made:
        trainer.evaluate()
    return made.calls


def test_evaluation_without_a_teacher_takes_the_logits_of_tokens_once(tmp_path):
    rows = TokenRows(4)
    targets = sum(label != -100 for row in rows for label in row["labels"])
    trainer = DistillationTrainer(
        language_model(), taught_model(), arguments(tmp_path), eval_dataset=rows, processing_class=tokenizer()
    )
    assert evaluated(trainer)["index_select", targets * VOCAB] == 1


def test_evaluation_without_a_teacher_resizes_each_map_once(tmp_path):
    rows = masks(4)
    classes, (height, width) = segformer(8).config.num_labels, rows[0]["labels"].shape
    trainer = DistillationTrainer(segformer(8), segformer(16), arguments(tmp_path), eval_dataset=rows)
    assert evaluated(trainer)["upsample_bilinear2d", classes * height * width] == len(rows)


LONG, LARGE = 128, 2**18  # tokens of a row, vocabulary: 128 MiB of logits


def long_rows(count):
    return [{"input_ids": [i % 7] * LONG, "labels": [i % 7] * LONG} for i in range(count)]


def large_model(seed):
    return language_model(2, LARGE, seed, positions=LONG)


def test_reading_the_teachers_logits_takes_little_beside_these_logits(tmp_path):
    """Before the first step of a loss in chunks, whose training has less memory than the teacher's logits take."""
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=1, loss_chunk_size=8, save_strategy="steps")
    trainer = DistillationTrainer(
        large_model(0), large_model(1), args, train_dataset=long_rows(2), processing_class=tokenizer()
    )
    with Bytes() as held:
        trainer.train()
    assert trainer.record.probe["energies"]
    assert held.peak < 2.7 * LONG * LARGE * 4
