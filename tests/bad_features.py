"""Objectives on inner features that nothing could give them: entries for tests/bad_input.py."""

import timm
import torch
from task_toys import KINDS
from text_toys import TokenRows, language_model, tokenizer
from torch import nn
from toys import CHECKPOINTING, CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.base import Objective, Requirements
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.features import FitNet
from hfkd.models import Peers

HINT = "kd + 100 * fitnet(layer=2)"


def cifar(name="cifar_resnet8"):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES)


def timms():
    return timm.create_model("convnext_atto", num_classes=CLASSES)


class Indexed(Rows):
    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": i}


def distilling(objective=HINT, student=cifar, taught=lambda: cifar("cifar_wrn_16_2"), rows=Rows, **settings):
    def make(folder):
        args = arguments(folder / "run", objective=objective, **settings)
        return lambda: DistillationTrainer(student(), taught(), args, train_dataset=rows(4, size=32))

    return make


def transformers_of(objective):
    def make(folder):
        args = arguments(folder / "run", objective=objective)
        student, teacher_ = KINDS["BERT, masked"].pair()
        return lambda: DistillationTrainer(student, teacher_, args, **KINDS["BERT, masked"].keywords())

    return make


class OnStates(Objective):
    """Says neither that it reads logits nor that it does not."""

    level = "sample"
    softens = False

    def requirements(self):
        return Requirements("1", "1")

    def __call__(self, items, temperature):
        return items.sample_means(items.student.logits.sum(-1))

    def __repr__(self):
        return "OnStates()"


def language_models_of(*depths, rows=TokenRows, **settings):
    def make(folder):
        args = arguments(folder / "run", **({"objective": "hidden_mse"} | settings))
        pair = [language_model(layers=depth) for depth in depths]
        return lambda: DistillationTrainer(*pair, args, train_dataset=rows(), processing_class=tokenizer())

    return make


class Twice(Net):
    """Its convolution runs on the image and on its mirror image."""

    def forward(self, x):
        return self.head((self.conv(x) + self.conv(x.flip(-1))).relu().mean((2, 3)))


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(3, 4, 1)


def twice(folder):
    hint = FitNet()
    return lambda: DistillationLoss([hint, (2, hint)])


FEATURES = {
    'objective="kd - fitnet"': lambda folder: lambda: DistillationLoss("kd - fitnet"),
    'objective="kd + 100 * (fitnet + at)"': lambda folder: lambda: DistillationLoss("kd + 100 * (fitnet + at)"),
    'objective="kd + 0 * fitnet"': lambda folder: lambda: DistillationLoss("kd + 0 * fitnet"),
    "objective=[]": lambda folder: lambda: DistillationLoss([]),
    "one FitNet object as two terms": twice,
    'objective="fitnet", temperature="energy"': lambda folder: lambda: DistillationLoss("fitnet", "energy"),
    'objective="fitnet(layer=2.5)"': lambda folder: lambda: DistillationLoss("fitnet(layer=2.5)"),
    "objective=\"fitnet(layer='post:2')\"": lambda folder: lambda: DistillationLoss("fitnet(layer='post:2')"),
    "a stage that there is not": distilling("fitnet(layer=7)"),
    "a module that there is not": distilling("fitnet(layer='layer9')"),
    "stages of a network that nobody knows": distilling(student=Net, taught=teacher),
    "a module that runs twice": distilling("fitnet(layer='conv')", student=Twice, taught=teacher),
    "a module that never runs": distilling(
        "fitnet(layer='spare', teacher_layer='conv')", student=Unused, taught=teacher
    ),
    "a layer that is no map": distilling("fitnet(layer='pooled')"),
    "maps whose sizes no convolution joins": distilling("fitnet(layer=3, teacher_layer=1)"),
    "a hint of several layers": distilling("fitnet(layer='1:')"),
    "more layers of the student than of the teacher": distilling("at(layers=(1, 2), teacher_layers=3)"),
    "stages of networks that have different numbers of them": distilling("at", taught=lambda: cifar("cifar_vgg8")),
    "crd, rows whose labels nobody tells": distilling("crd", rows=Indexed),
    "crd, rows without an index": distilling("crd"),
    "lsh, a student of another width": distilling("lsh"),
    "catkd, a layer that is not pooled for the classifier": distilling("catkd(layer=1)"),
    "catkd, a network without get_classifier": distilling("catkd(layer='conv')", student=Net, taught=teacher),
    "ofd, a teacher without a batch norm before the layer": distilling("ofd(layers='conv')", Net, teacher),
    "fcfd, networks whose stages nobody can run": distilling("fcfd", timms, timms),
    "fcfd, more paths than there are": distilling("kd + fcfd(paths=5)"),
    "hidden_cosine, networks of different widths": transformers_of("hidden_cosine"),
    "hidden_mse, networks whose depths are no multiples": language_models_of(2, 3),
    'objective="hidden_mse(layers={1: 3}, teacher_layers=3)"': lambda folder: (
        lambda: DistillationLoss("hidden_mse(layers={1: 3}, teacher_layers=3)")
    ),
    "objective=\"hidden_mse(layers=(1, 2), teacher_layers='uniform')\"": lambda folder: (
        lambda: DistillationLoss("hidden_mse(layers=(1, 2), teacher_layers='uniform')")
    ),
    "hidden_mse, rows that hold several documents": language_models_of(
        2, 2, rows=lambda: [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6], "seq_lengths": [2, 2]}] * 4
    ),
    "minilm(compared='qx')": lambda folder: lambda: DistillationLoss("minilm(compared='qx')"),
    "features, teacher_cache_dir": distilling(teacher_cache_dir="cache"),
    "features, several teachers": distilling(taught=lambda: [cifar(), cifar("cifar_wrn_16_2")]),
    "features, Peers": distilling(student=lambda: Peers([cifar(), cifar()]), taught=lambda: None),
    "features, FSDP": distilling(fsdp="full_shard"),
    "whole logits as a feature, loss_chunk_size=64": language_models_of(
        2, 2, objective="hidden_mse(layers='logits')", loss_chunk_size=64
    ),
    "layer pooled of a language model, loss_chunk_size=64": language_models_of(
        2, 2, objective="kd + rkd", loss_chunk_size=64
    ),
    "a weighting that reads logits, loss_chunk_size=64": language_models_of(
        2, 2, objective="kd", weighting="entropy(standardized=True)", loss_chunk_size=64
    ),
    "tokens compared with each other, loss_chunk_size=64": language_models_of(
        2, 2, objective="kd + dist", loss_chunk_size=64
    ),
    "an objective of your own on a layer and logits, loss_chunk_size=64": language_models_of(
        2, 2, objective=OnStates(), loss_chunk_size=64
    ),
    "features, reentrant gradient checkpointing": distilling(
        **{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    ),
}
