"""The best evaluation may come between two checkpoints."""

import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


def run(folder, scores, **settings):
    """Train for six steps, evaluated after each, with these scores; the student after each step, and at the end."""
    given, after = iter(scores), []

    def compute_metrics(prediction):
        after.append({name: weight.clone() for name, weight in student.state_dict().items()})
        return {"score": next(given)}

    student = Net()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    steps = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 3}
    trainer = DistillationTrainer(
        student,
        teacher(),
        arguments(folder, **best | steps | settings),
        train_dataset=Rows(),
        eval_dataset=Rows(8),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return trainer, after, student.state_dict()


@pytest.mark.parametrize("best", [1, 3, 4, 5])  # 3 is saved anyway, 4 ends the epoch
def test_the_best_weights_are_loaded_whenever_they_were_evaluated(tmp_path, best):
    scores = [0.9 if step == best else 0.1 * step for step in range(1, 7)]
    trainer, after, last = run(tmp_path, scores, save_total_limit=1)
    for name, weight in after[best - 1].items():
        assert torch.equal(weight, last[name]), name
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{best}"]


@pytest.mark.parametrize(
    ("scores", "settings", "why"),
    [
        ([float("nan")] * 6, {}, "eval_score was never a number"),
        ([], {"eval_delay": 10}, "there was no evaluation"),
    ],
    ids=["nan", "no evaluation"],
)
def test_without_a_best_checkpoint_the_last_weights_are_spoken_of(tmp_path, caplog, scores, settings, why):
    run(tmp_path, scores, **settings)
    assert f"no best checkpoint: {why}" in caplog.text
    assert "The student has the weights of the last step, 6" in caplog.text
