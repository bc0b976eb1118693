"""Several trainers in one process, as in a notebook: each computes and reports in its own precision."""

import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


class Watched(Net):
    """Keeps the precision of the outputs of its last layer."""

    def __init__(self):
        super().__init__()
        self.seen = set()
        self.head.register_forward_hook(lambda module, inputs, output: self.seen.add(str(output.dtype)))


def built(args):
    return DistillationTrainer(Watched(), teacher(), args, train_dataset=Rows(8), eval_dataset=Rows(8))


def precisions(trainer):
    """In training: what it computes in, and what is recorded."""
    trainer.model.seen.clear()
    trainer.train()
    return trainer.model.seen, trainer.settings["mixed_precision"]


BF16, WHOLE = ({"torch.bfloat16"}, "bf16"), ({"torch.float32"}, "no")


@pytest.fixture
def both(tmp_path):
    return [arguments(tmp_path / str(bf16), max_steps=1, bf16=bf16) for bf16 in (True, False)]


def test_arguments_made_later_leave_a_trainer_as_it_is(tmp_path):
    first = built(arguments(tmp_path / "first", max_steps=1, bf16=True))
    arguments(tmp_path / "second")
    assert first.settings["mixed_precision"] == "bf16"
    assert first.evaluate()["eval_loss"] > 0
    assert precisions(first) == BF16


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_trainers_that_are_built_before_they_train(both, order):
    trainers = [built(args) for args in both]
    found = {i: precisions(trainers[i]) for i in order}
    assert [found[0], found[1]] == [BF16, WHOLE]
    assert [trainer.settings["mixed_precision"] for trainer in trainers] == ["bf16", "no"]


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 1)])
def test_a_student_that_two_trainers_share_has_the_precision_of_the_one_that_trains_it(tmp_path, order):
    student, trainers, found = Watched(), [], []
    for bf16 in (True, False):
        args = arguments(tmp_path / str(bf16), max_steps=1, bf16=bf16, float32_evaluation=False, evaluate_teacher=False)
        rows = {"train_dataset": Rows(8), "eval_dataset": Rows(8)}
        trainers.append(DistillationTrainer(student, teacher(), args, **rows))
    for evaluates in (False, True):
        for i in order:
            student.seen.clear()
            (trainers[i].evaluate if evaluates else trainers[i].train)()
            found.append(student.seen == (BF16, WHOLE)[i][0])
    assert found == [True] * 6
