"""What scripts written for Trainer pass, set or return that cannot be trained on: entries for tests/bad_input.py."""

import torch
from bad_training import language, trainer, training
from scan_job import packed
from task_toys import padded, spoken, whisper
from torch import nn
from torch.nn.functional import cross_entropy
from toys import Net, Rows, arguments, teacher
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hfkd import DistillationTrainer
from hfkd.data.transforms import ImageTransform
from hfkd.models import Peers
from hfkd.teachers import FrozenTeacher


def in_pairs(rows):
    """Mixes each image with the one beside it, as timm's Mixup in half of a batch."""
    if len(rows) % 2:
        raise AssertionError("images come in pairs")
    return torch.utils.data.default_collate(rows)


def smoothing(make):
    """The trainer that `make` builds, with a label smoother of a subclass's own."""

    def subclass(folder):
        made = make(folder)()
        made.label_smoother = LabelSmoother(0.1)
        return made.train

    return subclass


def subclass(**methods):
    """A trainer whose class has these methods of the user's own."""
    kind = type("MyTrainer", (DistillationTrainer,), methods)
    return lambda folder: lambda: kind(Net(), teacher(), arguments(folder / "run"), train_dataset=Rows())


class NeedsLabels(Net):
    """As notebooks have it, where the loss is computed in the network."""

    def forward(self, pixel_values, labels):
        return super().forward(pixel_values)


class ByClass(Net):
    """A network whose own loss weights the classes."""

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        return {"loss": None if labels is None else cross_entropy(3 * logits, labels, weight), "logits": logits}


def for_two():
    return [row | {"teacher_pixel_values": row["pixel_values"]} for row in map(Rows().__getitem__, range(8))]


def own_temperature(folder):
    plain = TrainingArguments(str(folder / "run"), use_cpu=True, report_to="none")
    plain.temperature = 2.0
    return lambda: DistillationTrainer(Net(), teacher(), plain, train_dataset=Rows())


def searched(folder):
    data = {"train_dataset": Rows(), "eval_dataset": Rows(), "model_init": lambda trial: Net()}
    made = DistillationTrainer(None, teacher(), arguments(folder / "run"), **data)
    return lambda: made.hyperparameter_search(direction="maximize", backend="optuna")


def set_late(**values):
    """To train with arguments that were set once the trainer was built."""

    def make(folder):
        made = trainer()(folder)()
        vars(made.args).update({name: value for name, value in values.items() if name in vars(made.args)})
        vars(made).update({name: value for name, value in values.items() if name not in vars(made.args)})
        return made.train

    return make


def set_on_loss(name, value, **keywords):
    """To train once an attribute of the trainer's loss was set."""

    def make(folder):
        made = trainer(**keywords)(folder)()

        def call():
            setattr(made.distillation_loss, name, value)
            made.train()

        return call

    return make


def other_rows(later, **keywords):
    """To train on rows that were set once the trainer was built."""

    def make(folder):
        made = trainer(**keywords)(folder)()
        made.train_dataset = later()
        return made.train

    return make


def reordered():
    """A teacher whose classes the caller has put into another order."""
    taught = FrozenTeacher(teacher())
    taught.reorder([4, 3, 2, 1, 0])
    return taught


class Doubled(FrozenTeacher):
    def forward(self, **inputs):
        return 2 * super().forward(**inputs)


def loading(batches, **keywords):
    """To train on these batches, by a `get_train_dataloader` of the user's own."""

    def make(folder):
        made = trainer(rows=lambda: None, **keywords)(folder)()
        made.get_train_dataloader = lambda: batches
        return made.train

    return make


class Words(nn.Module):
    """A network on tokens that does not say what its head is for."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30))

    def forward(self, input_ids):
        return self.net(input_ids)


def unlabelled():
    return [{"pixel_values": image} for image in Rows().images]


def several():
    return [{"pixel_values": image, "labels": torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])} for image in Rows().images]


def of_words():
    """Each token has a class, and none is the token itself."""
    return [{"input_ids": [3, 4, 5, 6], "labels": [1, 2, 1, 0]}] * 4


class LateStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ({"pixel_values": image, "labels": 5} for image in Rows().images)


PLAIN = {"pixel_values": torch.zeros(2, 3, 8, 8)}
EPOCH = {"max_steps": -1, "num_train_epochs": 1}
HABITS = {
    "27 rows, batches of 8, a collator that takes even batches alone": trainer(
        rows=lambda: Rows(27), data_collator=in_pairs, args=EPOCH
    ),
    "no model and no model_init": trainer(student=lambda: None),
    "a model_init of two arguments": trainer(student=lambda: None, model_init=lambda trial, more: Net()),
    "a model_init that returns nothing": trainer(student=lambda: None, model_init=lambda: None),
    "a model_init that is set afterwards": set_late(model_init=Net),
    "a model_init, and optimizers=": trainer(
        student=lambda: None, model_init=Net, optimizers=(torch.optim.SGD(Net().parameters(), lr=0.1), None)
    ),
    "hyperparameter_search(direction='maximize') without compute_objective": searched,
    "tokenizer=": trainer(tokenizer=None),
    "teacher_model=": trainer(teacher_model=None),
    "alpha=0.5": trainer(alpha=0.5),
    "rows with teacher_pixel_values, a teacher that takes pixel_values": trainer(rows=for_two),
    "a student whose forward needs labels": trainer(student=NeedsLabels),
    "a student that weights the classes in its own loss": trainer(student=ByClass),
    "a subclass with a method distillation_loss": subclass(distillation_loss=lambda self, student, teacher: 0),
    "arguments of another trainer with a temperature": own_temperature,
    "a Whisper teacher of 8 mel bins for a student of 6": trainer(
        lambda: whisper(8), lambda: whisper(8, mels=8), spoken, data_collator=padded
    ),
    "a compute_loss of earlier versions": subclass(
        compute_loss=lambda self, model, inputs, return_outputs=False: torch.zeros(())
    ),
    "args.temperature set to '2.0' after the trainer was built": set_late(temperature="2.0"),
    "args.kd_weight set to 0.5 after the trainer was built": set_late(kd_weight=0.5),
    "args.label_smoothing_factor set to 0.1 after the trainer was built": set_late(label_smoothing_factor=0.1),
    "distillation_loss.kd_weight set to 0.5 in a trainer built with kd_weight=0": set_on_loss(
        "kd_weight", 0.5, args={"kd_weight": 0.0}
    ),
    "distillation_loss.ce_weight set to 0.5 in a trainer of rows without labels": set_on_loss(
        "ce_weight", 0.5, rows=unlabelled, args={"ce_weight": 0.0}
    ),
    'distillation_loss.objective set to "dkd"': set_on_loss("objective", "dkd"),
    "distillation_loss.temperature set to 2.0": set_on_loss("temperature", 2.0),
    "trainer.model set to another after the trainer was built": set_late(model=Net(seed=1)),
    "trainer.teacher set to a network after the trainer was built": set_late(teacher=teacher()),
    "trainer.train_dataset set to other rows after the trainer was built, crd": other_rows(
        packed, rows=packed, objective="kd + crd(layer='conv', sampling='other_images')"
    ),
    "trainer.train_dataset set to images that are normalised otherwise": other_rows(
        lambda: packed(transform=ImageTransform(mean=(0.1, 0.2, 0.3))), rows=packed
    ),
    "a FrozenTeacher that was reordered": trainer(taught=reordered),
    "a subclass of FrozenTeacher in a list of teachers": trainer(taught=lambda: [Doubled(teacher()), Net(seed=3)]),
    "compute_loss_func set after the trainer was built": set_late(compute_loss_func=lambda *given: 0),
    "a label_smoother of a subclass, loss_chunk_size=4": smoothing(language(args={"loss_chunk_size": 4})),
    "a label_smoother of a subclass, Peers": smoothing(
        trainer(student=lambda: Peers([Net(), Net(seed=2)]), taught=None)
    ),
    "transformers' label smoother, several labels a row": smoothing(
        trainer(rows=several, args={"task": "multi_label_classification"})
    ),
    "Peers, and a teacher": trainer(student=lambda: Peers([Net(), Net(seed=2)])),
    "rows without labels, ce_weight=0.1": trainer(rows=unlabelled),
    'rows without labels, objective="dkd"': trainer(
        rows=unlabelled, args={"ce_weight": 0.0, "kd_weight": 1.0}, objective="dkd"
    ),
    "rows without labels, a weighting that reads them": trainer(
        rows=unlabelled, args={"ce_weight": 0.0, "kd_weight": 1.0}, weighting=lambda items: items.labels / 2.0
    ),
    "an eval_dataset without labels": trainer(eval_dataset=unlabelled()),
    "a network on tokens that says nothing, labels that are not the tokens": trainer(Words, Words, of_words),
    "a network on tokens that says nothing, a loader with a label a row": loading(
        [{"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 1])}], student=Words, taught=Words
    ),
    "a training loader of one's own that is empty": loading([]),
    "a training loader of one's own that gives tuples": loading([(torch.zeros(2, 3, 8, 8), torch.zeros(2))]),
    "a training loader of one's own without labels": loading([PLAIN]),
    "a training loader of one's own with a label of 9 for 5 classes": loading(
        [PLAIN | {"labels": torch.tensor([0, 9])}]
    ),
    "a training loader of one's own, a teacher of 7 classes for a student of 5": loading(
        [PLAIN | {"labels": torch.tensor([0, 4])}], taught=lambda: teacher(7)
    ),
    'a training loader of one\'s own, objective="crd"': loading(
        [PLAIN | {"labels": torch.tensor([0, 4])}], objective="kd + 0.8*crd(layer='conv')"
    ),
    "a stream whose labels are more than the classes": training(rows=LateStream),
}
