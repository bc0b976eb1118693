"""Slots, arguments and what a trainer is built from, each wrong in one way: entries for tests/bad_input.py."""

import os
from dataclasses import dataclass

import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from text_toys import VOCAB, WORDS, TokenRows, language_model, taught_model, tokenizer
from tokenizers import Tokenizer, models
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import (
    CLIPImageProcessor,
    GPT2LMHeadModel,
    MobileViTImageProcessor,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Seq2SeqTrainingArguments,
)

from hfkd import DistillationTrainer
from hfkd.arguments import DistillationArguments
from hfkd.data import ImageTransform
from hfkd.data.images import decode
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.logits import DKD
from hfkd.models import image_classifier
from hfkd.utils.parsing import parse

# ---- slots ------------------------------------------------------------------------------------------------------


def slot(**keywords):
    return lambda folder: lambda: DistillationLoss(**keywords)


SLOTS = {
    'weighting="entrpy"': slot(weighting="entrpy"),
    'objective="kld"': slot(objective="kld"),
    'temperature="energi"': slot(temperature="energi"),
    'objective="dkd(gamma=1)"': slot(objective="dkd(gamma=1)"),
    "objective=\"dkd(beta='x')\"": slot(objective="dkd(beta='x')"),
    "objective=DKD(beta=True)": lambda folder: lambda: DistillationLoss(DKD(beta=True)),
    "weighting=\"entropy(standardized='no')\"": slot(weighting="entropy(standardized='no')"),
    'objective="dkd(8)"': slot(objective="dkd(8)"),
    "objective=\"__import__('os').getcwd()\"": slot(objective="__import__('os').getcwd()"),
    "objective: 600 characters": slot(objective="dkd(beta=" + "1" * 600 + ")"),
    "objective=DKD, the class": slot(objective=DKD),
    "objective=3": slot(objective=3),
    "temperature=0": slot(temperature=0),
    "temperature=-1.0": slot(temperature=-1.0),
    "temperature=1e-300": slot(temperature=1e-300),
    "temperature=nan": slot(temperature=float("nan")),
    "temperature=None": slot(temperature=None),
    'temperature="energy(ratio=0.6)"': slot(temperature="energy(ratio=0.6)"),
    'temperature="energy(temperature=2, decrease=2)"': slot(temperature="energy(temperature=2, decrease=2)"),
    "temperature=\"energy(direction='up')\"": slot(temperature="energy(direction='up')"),
    'temperature="energy(thresholds=(1,))"': slot(temperature="energy(thresholds=(1,))"),
    'temperature="energy(thresholds=(-5, -9))"': slot(temperature="energy(thresholds=(-5, -9))"),
    'temperature="energy(thresholds=(-1e999, -9))"': slot(temperature="energy(thresholds=(-1e999, -9))"),
    'temperature="gradation(temperatures=(4,))"': slot(temperature="gradation(temperatures=(4,))"),
    'temperature="learned(warmup_epochs=-1)"': slot(temperature="learned(warmup_epochs=-1)"),
    'weighting="entropy(upper_bound=0)"': slot(weighting="entropy(upper_bound=0)"),
    "objective=\"kd(scale='half')\"": slot(objective="kd(scale='half')"),
    'objective="skew_kl(alpha=1)"': slot(objective="skew_kl(alpha=1)"),
    'objective="jsd(beta=2)"': slot(objective="jsd(beta=2)"),
    "ce_weight=-1": slot(ce_weight=-1),
    "kd_weight=nan": slot(kd_weight=float("nan")),
    "ce_weight=0, kd_weight=0": slot(ce_weight=0, kd_weight=0),
}

# ---- arguments --------------------------------------------------------------------------------------------------


def argument(**keywords):
    return lambda folder: lambda: arguments(folder / "run", **keywords)


def made(path, make):
    """Arguments whose output folder `make` has put there."""
    make(path)
    return lambda: arguments(path)


def setting(content, name="settings.yaml"):
    def make(folder):
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return lambda: parse([DistillationArguments], ["--output_dir", str(folder / "run"), "--config", str(path)])

    return make


ARGUMENTS = {
    "task='mask_lm'": argument(task="mask_lm"),
    "loss_chunk_size=-1": argument(loss_chunk_size=-1),
    "lr_decay_epochs=[180, 150]": argument(lr_decay_epochs=[180, 150]),
    "lr_decay_epochs=['x']": argument(lr_decay_epochs=["x"]),
    "lr_decay_factor=0": argument(lr_decay_factor=0),
    "lr_decay_factor=0.5 without lr_decay_epochs": argument(lr_decay_factor=0.5),
    "label_smoothing_factor=1": argument(label_smoothing_factor=1.0),
    "label_names=['label']": argument(label_names=["label"]),
    "on_nan='abort'": argument(on_nan="abort"),
    "learning_rate=-0.1": argument(learning_rate=-0.1),
    "learning_rate=nan": argument(learning_rate=float("nan")),
    "weight_decay=-1": argument(weight_decay=-1.0),
    "max_grad_norm=-1": argument(max_grad_norm=-1.0),
    "per_device_train_batch_size=0": argument(per_device_train_batch_size=0),
    "gradient_accumulation_steps=0": argument(gradient_accumulation_steps=0),
    "hub_model_id='a/b/c'": argument(hub_model_id="a/b/c"),
    "model_license of two lines": argument(model_license="mit\n# Evil"),
    "output_dir of two lines": lambda folder: lambda: arguments(folder / "run\nb"),
    "output_dir is a file": lambda folder: made(folder / "run", lambda path: path.write_text("x")),
    "output_dir is a pipe": lambda folder: made(folder / "run", os.mkfifo),
    "output_dir is a link to nothing": lambda folder: made(
        folder / "run", lambda path: path.symlink_to(folder / "nowhere")
    ),
    "channels_last='no'": argument(channels_last="no"),
    "num_train_epochs=inf": argument(num_train_epochs=float("inf"), max_steps=-1),
    "num_train_epochs=0": argument(num_train_epochs=0, max_steps=-1),
    "YAML: weigthing: entropy": setting("weigthing: entropy\n"),
    "YAML: a list": setting("- entropy\n"),
    "YAML: not YAML": setting("weighting: [entropy\n"),
    "YAML: !!python/object": setting("seed: !!python/object/apply:os.getcwd []\n"),
    "YAML: not text": setting(b"\xff\xfe\x00\x01"),
    "YAML: seed: one": setting("seed: one\n"),
    "YAML: 1: 2": setting("1: 2\n"),
    "--config: no such file": lambda folder: (
        lambda: parse(
            [DistillationArguments], ["--output_dir", str(folder / "run"), "--config", str(folder / "none.yaml")]
        )
    ),
    "--config: a folder": lambda folder: (
        lambda: parse([DistillationArguments], ["--output_dir", str(folder / "run"), "--config", str(folder)])
    ),
}

# ---- trainer ----------------------------------------------------------------------------------------------------


class Renamed(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "target": 0}


def holed(rows):
    rows.images[1, 0, 0, 0] = float("nan")
    return rows


class Unequal(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i][:, : 8 - i % 2], "labels": 0}


@dataclass
class GeneratingArguments(DistillationArguments, Seq2SeqTrainingArguments):
    pass


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from (Rows()[i] for i in range(32))


class Wide(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i].to(torch.int32), "labels": 0}


class Late(Rows):
    """Every label is one more than the classes allow."""

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": CLASSES}


class Twice(Rows):
    def __getitem__(self, i):
        return {"pixel_values": torch.stack([self.images[i]] * 2), "labels": int(self.labels[i])}


class Mixed(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": torch.full((CLASSES + 2,), 1 / (CLASSES + 2))}


class Biased(GPT2LMHeadModel):
    """Its logits are more than its head on its hidden states."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, logits_to_keep=0, **keywords):
        keywords |= {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        output = super().forward(input_ids, **keywords)
        output.logits = output.logits + torch.linspace(-0.01, 0.01, VOCAB)
        return output


def flat(network):
    """Without a head: every image has the same logits, and the same energy."""
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    return network


def broken(network):
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    return network


def trainer(student=Net, taught=teacher, rows=Rows, args=None, **keywords):
    def make(folder):
        settings = arguments(folder / "run", **(args or {}))
        return lambda: DistillationTrainer(student(), taught and taught(), settings, train_dataset=rows(), **keywords)

    return make


def training(**keywords):
    """The call to train of a trainer that could be built."""
    return lambda folder: trainer(**keywords)(folder)().train


def after_a_run(then, **args):
    """What `then` makes of the folder of a finished run, and of a trainer that is to go on there."""

    def make(folder):
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "temperature": "learned"} | args
        for _ in range(2):
            made = trainer(args=saving)(folder)()
            made.remove_callback(PrinterCallback)
            if not (folder / "run" / "distillation.json").exists():
                made.train()
        return then(folder / "run", made)

    return make


def resumed(harm, wanted="checkpoint-1", **args):
    def then(run, made):
        harm(run / "checkpoint-1")
        return lambda: made.train(resume_from_checkpoint=wanted if wanted is True else str(run / wanted))

    return after_a_run(then, **args)


def cut(name):
    return lambda checkpoint: os.truncate(checkpoint / name, 10)


def other_bytes(checkpoint):
    path = checkpoint / "distillation.safetensors"
    path.write_bytes(path.read_bytes()[::-1])


def without_a_bias(checkpoint):
    """As a plain Trainer's checkpoint, which lists no files."""
    (checkpoint / "files.json").unlink()
    path = checkpoint / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "head.bias"}, path)


def unfrozen_head():
    student = get_peft_model(Net(), LoraConfig(target_modules=["conv"]))
    student.base_model.model.head.requires_grad_(True)
    return student


def masked():
    net = teacher()
    net.head.bias.data[2] = float("-inf")
    return net


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def own_optimizer(folder):
    student = Net()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return trainer(lambda: student, args={"temperature": "learned"}, optimizers=(optimizer, schedule))(folder)


def permuted():
    """The words of `tokenizer`, two of them with each other's ids."""
    words = [*WORDS[:-2], *WORDS[:-3:-1]]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>")


PACKED = {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "position_ids": [0, 0, 1]}


def language(taught=taught_model, words=tokenizer, rows=TokenRows, **keywords):
    return trainer(language_model, taught, rows, processing_class=words(), **keywords)


def opt():
    """Its attention passes over the positions."""
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    return OPTForCausalLM(OPTConfig(vocab_size=VOCAB, **sizes, num_attention_heads=2, max_position_embeddings=32))


def named(*names):
    def network():
        return image_classifier("cifar_resnet8", 3, label_names=names or None)

    return network


def pictures(names=("bird", "cat", "dog")):
    """Stored images of three classes, ready for training."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    stored = {"image": [Image.new("RGB", (8, 8), (9 * i, 90, 200)) for i in range(6)], "label": [0, 1, 2] * 2}
    return decode(Dataset.from_dict(stored, features)).with_transform(ImageTransform())


def images(taught=None, rows=pictures, **keywords):
    return trainer(named(), taught or named(), rows, **keywords)


def on_other_rows(run, made):
    return trainer(rows=lambda: Rows(seed=1), args={"max_steps": 2, "temperature": "learned"})(run.parent)


def with_another_optimizer(run, made):
    args = {"max_steps": 2, "temperature": "learned", "optim": "adamw_torch"}
    other = trainer(args=args)(run.parent)()
    return lambda: other.train(resume_from_checkpoint=True)


def with_another_schedule(run, made):
    other = trainer(args={"max_steps": 2, "temperature": "learned", "lr_decay_epochs": [1.0]})(run.parent)()
    return lambda: other.train(resume_from_checkpoint=True)


def in_other_batches(run, made):
    args = {"max_steps": -1, "num_train_epochs": 2, "temperature": "learned", "per_device_train_batch_size": 1}
    other = trainer(args=args)(run.parent)()
    return lambda: other.train(resume_from_checkpoint=True)


def in_another_order(run, made):
    args = {"max_steps": 2, "temperature": "learned", "data_seed": 7}
    other = trainer(args=args)(run.parent)()
    return lambda: other.train(resume_from_checkpoint=True)


TRAINER = {
    "no teacher": trainer(taught=None),
    "evaluate_kl=True, no teacher": trainer(
        taught=None, args={"evaluate_kl": True, "kd_weight": 0.0, "ce_weight": 1.0}
    ),
    "shard_teacher=True, no FSDP": trainer(args={"shard_teacher": True}),
    "compute_loss_func=": trainer(compute_loss_func=lambda *a: 0),
    "a model and a model_init": trainer(model_init=lambda: Net()),
    "args that are a dict": lambda folder: lambda: DistillationTrainer(Net(), teacher(), {"output_dir": str(folder)}),
    "a student's name that holds none": lambda folder: (
        lambda: DistillationTrainer(str(folder / "student"), teacher(), arguments(folder / "run"))
    ),
    "predict_with_generate=True": lambda folder: (
        lambda: DistillationTrainer(
            Net(), teacher(), Seq2SeqTrainingArguments(str(folder / "run"), use_cpu=True, predict_with_generate=True)
        )
    ),
    "predict_with_generate=True in DistillationArguments": lambda folder: (
        lambda: DistillationTrainer(
            Net(), teacher(), GeneratingArguments(str(folder / "run"), use_cpu=True, predict_with_generate=True)
        )
    ),
    "a teacher of 7 classes for a student of 5": trainer(taught=lambda: teacher(7)),
    "a teacher that is a function": trainer(taught=lambda: lambda images: images),
    "a teacher whose logits are -inf for a class": trainer(taught=masked),
    "an eval_dataset whose labels are all -1": trainer(
        eval_dataset=[{"pixel_values": image, "labels": -1} for image in Rows(2).images]
    ),
    "17 rows, batches of 8, batch norm of single values": trainer(student=normed, rows=lambda: Rows(17)),
    "a row of 40 tokens for 32 positions": language(rows=lambda: [{"input_ids": [3] * 40, "labels": [3] * 40}] * 2),
    "a teacher whose weights are NaN": trainer(taught=lambda: broken(teacher())),
    'temperature="energy", a teacher whose energies are all the same': training(
        taught=lambda: flat(teacher()), temperature="energy"
    ),
    "temperature=a callable that gives -4": trainer(temperature=lambda items: torch.full((len(items),), -4.0)),
    "weighting=a callable that gives -1": trainer(weighting=lambda items: torch.full((len(items),), -1.0)),
    'objective="dist", per_device_train_batch_size=1': trainer(
        args={"per_device_train_batch_size": 1}, objective="dist"
    ),
    "7 rows, batches of 8, dataloader_drop_last=True": trainer(
        rows=lambda: Rows(7), args={"dataloader_drop_last": True}
    ),
    "an empty train_dataset": trainer(rows=lambda: Rows(0)),
    "rows without 'labels'": trainer(rows=Renamed),
    "images of different shapes": trainer(rows=Unequal),
    "an eval_dataset with two views": trainer(eval_dataset=Twice()),
    'objective="dkd", a stream that does not say how long it is': trainer(rows=Endless, objective="dkd"),
    "lr_decay_epochs=[2], a stream that does not say how long it is": trainer(
        rows=Endless, args={"lr_decay_epochs": [2]}
    ),
    'temperature="energy", a stream that does not say how long it is': trainer(rows=Endless, temperature="energy"),
    "pixels of int32": trainer(rows=Wide),
    "a label of 5 for 5 classes": trainer(rows=Late),
    "pixels that are NaN": trainer(rows=lambda: holed(Rows())),
    "mixed labels have 7 classes": trainer(rows=Mixed),
    "loss_chunk_size=64 for images": trainer(args={"loss_chunk_size": 64}),
    "loss_chunk_size=64, a bias on the logits": language(
        taught=lambda: Biased(language_model().config), args={"loss_chunk_size": 64}
    ),
    "packed rows for OPT": language(taught=opt, rows=lambda: [PACKED, PACKED]),
    "an attention_mask for 2 tokens of 3": language(rows=lambda: [PACKED | {"attention_mask": [1, 1]}]),
    "an attention_mask that numbers documents": language(rows=lambda: [PACKED | {"attention_mask": [1, 2, 2]}]),
    "a teacher_processing_class with other token ids": language(teacher_processing_class=permuted()),
    "output_dir of another run": after_a_run(lambda run, made: trainer(args={"temperature": "3.0"})(run.parent)),
    "resume_from_checkpoint=True without one": resumed(lambda path: None, True, save_strategy="no"),
    "resume_from_checkpoint=a folder that is none": resumed(lambda path: None, "runs"),
    "resume: the optimizer's file is cut": resumed(cut("optimizer.pt")),
    "resume: the list of files is cut": resumed(cut("files.json")),
    "resume: the last whole checkpoint is cut": resumed(cut("trainer_state.json"), True),
    "resume: a learned temperature's file was altered": resumed(other_bytes),
    "resume: other training rows, as many": after_a_run(on_other_rows),
    "resume: rows in another order": after_a_run(in_another_order),
    "resume: batches of another size": after_a_run(
        in_other_batches, max_steps=-1, num_train_epochs=1, save_strategy="epoch"
    ),
    "resume: another kind of optimizer": after_a_run(with_another_optimizer),
    "resume: another kind of schedule": after_a_run(with_another_schedule),
    "resume: a weight of the student is missing": resumed(without_a_bias),
    "LoRA on a student whose head was unfrozen": trainer(student=unfrozen_head),
    "optimizers= with a scheduler, and a temperature that learns": own_optimizer,
    "a teacher of other classes than the data name": images(named("bird", "cat", "fox")),
    "an eval_dataset in another order of classes": lambda folder: images(eval_dataset=pictures(("dog", "cat", "bird")))(
        folder
    ),
    "a processing_class that prepares images otherwise": images(processing_class=CLIPImageProcessor()),
    "a timm student, a processing_class that flips channels": images(
        rows=lambda: Rows(classes=3), processing_class=MobileViTImageProcessor()
    ),
    "a teacher that is the student": lambda folder: (lambda net: trainer(lambda: net, lambda: net)(folder))(Net()),
    "a teacher of another vocabulary": language(taught=lambda: taught_model(vocab=VOCAB - 3)),
}
