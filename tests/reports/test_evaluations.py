"""Reports are of the run's own evaluation set and of the weights that are saved, whatever else was evaluated."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.evaluation.metrics import item_accuracy
from hfkd.reports import ResultsCallback, distillation_page
from hfkd.reports.history import epoch_rows, other_evaluations

STEPS = 6


class ScoresOfStep:
    """An accuracy that falls and an error that grows from evaluation to evaluation: the first is the best of both."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prediction):
        self.calls += 1
        return {"accuracy": 1 - self.calls / 10, "error": self.calls / 10, "badness": self.calls / 10}


def trainer(folder, evaluated=None, metrics=item_accuracy, **keywords):
    given = {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    args = arguments(folder, **(given | keywords))
    evaluated = Rows(16) if evaluated is None else evaluated
    sets = {"train_dataset": Rows(64), "eval_dataset": evaluated, "compute_metrics": metrics}
    made = DistillationTrainer(Net(), teacher(), args, **sets)
    made.add_callback(ResultsCallback({"teacher": "big", "student": "small"}))
    return made


def results(folder):
    return json.loads((folder / "results.json").read_text())


def of_card(run):
    """Step and metrics on the model card."""
    run.create_model_card(dataset="owner/data")
    text = ModelCard.load(f"{run.args.output_dir}/README.md").text
    table = dict(re.findall(r"^\| (loss|accuracy|error) \| ([\d.e-]+) \|$", text, re.MULTILINE))
    return int(re.search(r"These weights \(step (\d+)", text)[1]), {k: float(v) for k, v in table.items()}


@pytest.mark.parametrize(
    ("metric", "greater", "best"),
    [("error", False, 2), ("error", True, 6), ("badness", False, 2), ("accuracy", True, 2), ("accuracy", None, 2)],
)
def test_the_best_epoch_is_the_one_that_is_saved(tmp_path, metric, greater, best):
    keywords = {"metric_for_best_model": metric, "greater_is_better": greater, "load_best_model_at_end": True}
    run = trainer(tmp_path, metrics=ScoresOfStep(), **keywords)
    run.train()
    found = results(tmp_path)
    row = next(row for row in found["epochs"] if row["step"] == best)
    assert run.state.best_global_step == best
    assert found["best"] == {"epoch": row["epoch"], metric: row[f"eval_{metric}"], "accuracy": row["eval_accuracy"]}
    assert found["saved"] == found["best"]
    assert found["last"]["epoch"] == found["epochs"][-1]["epoch"]
    assert found["best_by"] == {"metric": f"eval_{metric}", "greater_is_better": greater is not False}
    assert of_card(run) == (best, {k: pytest.approx(row[f"eval_{k}"]) for k in ("loss", "accuracy", "error")})
    distillation_page(tmp_path / "page.html", config={}, log_history=run.state.log_history, results=found)
    shown = re.search(rf"best {metric}</th><td>([^<]+)</td>", (tmp_path / "page.html").read_text())[1]
    assert shown.endswith(f"(epoch {row['epoch']:g})")


def test_what_is_saved_is_named_where_the_best_step_is_between_two_checkpoints(tmp_path):
    keywords = {"metric_for_best_model": "error", "greater_is_better": False, "load_best_model_at_end": True}
    run = trainer(tmp_path, metrics=ScoresOfStep(), **(keywords | {"eval_steps": 1}))  # best at step 1
    run.train()
    found = results(tmp_path)
    assert found["saved"]["epoch"] == found["best"]["epoch"] == found["epochs"][0]["epoch"]
    assert of_card(run)[0] == 1


def test_without_a_metric_for_the_best_model_the_default_chooses(tmp_path):
    trainer(tmp_path, metrics=ScoresOfStep()).train()
    found = results(tmp_path)
    assert found["best"] == {"epoch": found["epochs"][0]["epoch"], "accuracy": 0.9}
    assert found["saved"] == found["last"] == {"epoch": found["epochs"][-1]["epoch"], "accuracy": pytest.approx(0.7)}


class Elsewhere(TrainerCallback):
    """Evaluates the training rows too, after each evaluation, as people do to see overfitting."""

    def __init__(self, run, prefix):
        self.run, self.prefix, self.busy = run, prefix, False

    def on_evaluate(self, *arguments, **keywords):
        if self.run.is_in_train and not self.busy:
            self.busy = True
            self.run.evaluate(self.run.train_dataset, metric_key_prefix=self.prefix)
            self.busy = False


@pytest.mark.parametrize("prefix", ["eval", "train", "test"])
def test_another_set_leaves_card_results_and_page_as_they_were(tmp_path, prefix):
    alone = trainer(tmp_path / "alone")
    alone.train()
    run = trainer(tmp_path / "both")
    run.add_callback(Elsewhere(run, prefix))
    run.train()
    run.evaluate(Rows(64, seed=3), metric_key_prefix=prefix)
    run.evaluate({"far": Rows(8)}, metric_key_prefix=prefix)
    expected, found = results(tmp_path / "alone"), results(tmp_path / "both")

    def seen(rows):
        return [{k: v for k, v in row.items() if not k.endswith(("runtime", "second"))} for row in rows]

    assert seen(found["epochs"]) == seen(expected["epochs"])
    assert [found[k] for k in ("best", "last", "saved")] == [expected[k] for k in ("best", "last", "saved")]
    assert of_card(run) == of_card(alone)
    assert [entry["other_set_rows"] for entry in found["other_evaluations"]] == [64] * 4 + [8]
    assert all(isinstance(value, (int, float)) for entry in run.state.log_history for value in entry.values())
    assert all(f"{prefix}_accuracy" in entry for entry in found["other_evaluations"][:4])
    assert f"{prefix}_far_accuracy" in found["other_evaluations"][4]


def test_its_own_set_evaluated_once_more_is_no_other(tmp_path):
    own = Rows(16)
    run = trainer(tmp_path, own)
    run.train()
    before = results(tmp_path)
    run.evaluate()
    run.evaluate(own)
    after = results(tmp_path)
    assert "other_evaluations" not in after
    assert after["last"] == before["last"]


def test_named_sets_are_its_own(tmp_path):
    run = trainer(tmp_path, {"near": Rows(16), "far": Rows(8)})
    run.train()
    run.evaluate()
    assert "other_evaluations" not in results(tmp_path)
    assert {"eval_near_accuracy", "eval_far_accuracy"} <= results(tmp_path)["epochs"][-1].keys()


def test_named_sets_that_are_passed_are_its_own_too(tmp_path):
    sets = {"near": Rows(16), "far": Rows(8)}
    run = trainer(tmp_path, sets)
    run.train()
    run.evaluate(sets)
    assert "other_evaluations" not in results(tmp_path)
    run.evaluate(sets["far"])  # as `eval_loss`, which no evaluation in training has
    run.evaluate({"far": sets["far"]}, metric_key_prefix="test")
    assert [entry["other_set_rows"] for entry in results(tmp_path)["other_evaluations"]] == [8, 8]


def test_the_reloaded_best_weights_are_not_the_last_evaluation(tmp_path):
    keywords = {"metric_for_best_model": "error", "greater_is_better": False, "load_best_model_at_end": True}
    run = trainer(tmp_path, metrics=ScoresOfStep(), **keywords)
    run.train()
    before, card = results(tmp_path), of_card(run)
    run.evaluate()
    after = results(tmp_path)
    assert after["last"] == before["last"]
    assert after["epochs"] == before["epochs"]
    assert [entry["weights_of_step"] for entry in after["other_evaluations"]] == [2]
    assert of_card(run) == card


class EvaluatesAtTheEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **keywords):
        self.trainer.evaluate()


def test_the_reloaded_best_weights_are_not_the_last_evaluation_at_the_end_of_training_either(tmp_path):
    keywords = {"metric_for_best_model": "error", "greater_is_better": False, "load_best_model_at_end": True}
    run, last = trainer(tmp_path, metrics=ScoresOfStep(), **keywords), EvaluatesAtTheEnd()
    last.trainer = run
    run.add_callback(last)
    run.train()
    assert [row["eval_error"] for row in epoch_rows(run.state.log_history)] == [0.1, 0.2, 0.3]
    assert [entry["weights_of_step"] for entry in other_evaluations(run.state.log_history)] == [2]


def test_a_run_without_a_set_of_its_own_was_not_evaluated(tmp_path):
    args = arguments(tmp_path)
    run = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), compute_metrics=item_accuracy)
    run.train()
    assert run.evaluate(Rows())["eval_accuracy"] >= 0
    run.create_model_card()
    assert "were not evaluated while training" in (tmp_path / "README.md").read_text()
