"""Optimizers that train at other weights than those that are their result, as schedule-free ones do."""

import torch
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.training.checkpoints.student_weights import load_student


class Apart(torch.optim.SGD):
    """Its result is at twice the weights that it trains at."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        for group in self.param_groups:
            group["trains"] = True

    def turn(self, trains, factor):
        for group in self.param_groups:
            if group["trains"] != trains:
                group["trains"] = trains
                with torch.no_grad():
                    torch._foreach_mul_(group["params"], factor)

    def train(self):
        self.turn(True, 0.5)

    def eval(self):
        self.turn(False, 2.0)


def run(folder, resume=None, optimizer=Apart, calls=None, **settings):
    student = Net()
    optimizers = (optimizer(student.parameters(), lr=0.01), None)
    args = arguments(folder, max_steps=4, **settings)
    trainer = DistillationTrainer(student, teacher(), args, train_dataset=Rows(), optimizers=optimizers)
    if calls is not None:
        trainer.add_callback(calls(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return student


def same(one, other, factor=1.0):
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name] * factor), name


def test_the_result_is_saved_and_training_goes_on_with_the_other_weights(tmp_path):
    plain = run(tmp_path / "plain", optimizer=torch.optim.SGD)
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = run(tmp_path / "whole", **saving)
    same(whole, plain, 2.0)
    saved = Net()
    load_student(saved, tmp_path / "whole/checkpoint-4")
    same(saved, whole)
    same(run(tmp_path / "whole", resume=str(tmp_path / "whole/checkpoint-2"), **saving), whole)


class SavesInBetween(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **keywords):
        self.trainer.save_model(f"{args.output_dir}/{state.global_step}")


def test_so_does_a_callback_that_saves_the_student(tmp_path):
    plain = run(tmp_path / "plain", optimizer=torch.optim.SGD, calls=SavesInBetween)
    same(run(tmp_path / "apart", calls=SavesInBetween), plain, 2.0)
    for step in (1, 3):
        one, other = Net(), Net()
        load_student(one, tmp_path / "apart" / str(step))
        load_student(other, tmp_path / "plain" / str(step))
        same(one, other, 2.0)
