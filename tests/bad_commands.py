"""Launches, folders and settings files that would do something else than they say: entries for tests/bad_input.py."""

import json

from accelerate.utils import patch_environment
from bad_training import argument, setting, trainer
from digit_files import write_digits
from recipe_toys import MASKED, write_masks
from task_toys import segformer
from text_toys import TokenRows, language_model, taught_model, tokenizer
from torch import nn
from toys import arguments
from transformers import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageDataArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.experiments.analyse import AnalysisArguments, analyse
from hfkd.experiments.analyse_masks import MaskAnalysisArguments, analyse_masks
from hfkd.experiments.instruct import InstructArguments
from hfkd.models import image_classifier
from hfkd.models.language import causal_lm
from hfkd.utils.parsing import parse


def launched(make, **environment):
    """What `make` gives, called in a process with these variables."""
    return lambda folder: patch_environment(**environment)(make(folder))


def in_the_folder_of(network):
    """Training of a stored network whose folder is to take the student."""

    def make(folder):
        language_model().save_pretrained(folder / "net")
        loaded = {"student": causal_lm(folder / "net"), "taught": causal_lm(folder / "net")}
        own = {"student": language_model(), "taught": taught_model()} | {network: loaded[network]}
        args = arguments(folder / "net")
        trainer_keywords = {"train_dataset": TokenRows(), "processing_class": tokenizer()}
        return DistillationTrainer(own["student"], own["taught"], args, **trainer_keywords).train

    return make


def flags(*argv):
    return lambda folder: lambda: parse([DistillationArguments], [f"--output_dir={folder / 'run'}", "--use_cpu", *argv])


def from_a_finished_run(**args):
    """Training by other arguments from the checkpoint of a finished run of two steps."""

    def make(folder):
        saving = {"save_strategy": "steps", "save_steps": 2}
        made = trainer(args=saving | {"max_steps": 2})(folder)()
        made.remove_callback(PrinterCallback)
        made.train()
        elsewhere = folder / "elsewhere" if "temperature" in args else folder  # in one folder the constructor refuses
        again = trainer(args=saving | args)(elsewhere)()
        return lambda: again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-2"))

    return make


def analysis(teacher="teacher", student="teacher", labels=None, labelled_images=None, hidden=0, **more):
    """An analysis of digits by networks that are saved in the folder. hidden: test images with the label -1."""

    def make(folder):
        write_digits(folder / "digits", 4, 4, hidden)
        image_classifier("cifar_resnet8", 10).save_pretrained(folder / "teacher")
        image_classifier("cifar_resnet8", len(labels or "12345"), label_names=labels).save_pretrained(
            folder / "student"
        )
        names = [str(folder / name) if name in ("teacher", "student") else name for name in (teacher, student)]
        own = {"output_dir": str(folder / "page"), "use_cpu": True} | more
        data = ImageDataArguments(dataset_name=str(folder / "digits"), labelled_images=labelled_images)
        return lambda: analyse(AnalysisArguments(names[0], [names[1]], **own), data)

    return make


def mask_analysis(student, classes=3):
    """An analysis of masks of three classes by networks of the first so many of them, saved in the folder."""

    def make(folder):
        write_masks(folder)
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(MASKED[:classes]))))
        (folder / "empty").mkdir()
        network = segformer(8)
        network.decode_head.classifier = nn.Conv2d(8, classes, 1)
        network.config.id2label = dict(enumerate(MASKED[:classes]))
        for name in ("teacher", "student"):
            network.save_pretrained(folder / name)
        data = MaskDataArguments(str(folder), image_size=[24, 32])
        own = {"output_dir": str(folder / "page"), "use_cpu": True}
        args = MaskAnalysisArguments(str(folder / "teacher"), [str(folder / student)], **own)
        return lambda: analyse_masks(args, data)

    return make


COMMANDS = {
    "WORLD_SIZE=2, and no RANK": launched(argument(), world_size=2),
    "WORLD_SIZE=2, one process": launched(trainer(), world_size=2, rank=0),
    "a launch with gradient_accumulation_steps=5": launched(argument(), accelerate_gradient_accumulation_steps=5),
    "output_dir is the student's folder": in_the_folder_of("student"),
    "output_dir is the teacher's folder": in_the_folder_of("taught"),
    "resume_from_checkpoint=a checkpoint of another run": from_a_finished_run(temperature="3.0"),
    "resume_from_checkpoint=one of 2 steps, max_steps=1": from_a_finished_run(max_steps=1),
    "--lr_scheduler_type cosine --lr_decay_epochs 5": flags("--lr_scheduler_type=cosine", "--lr_decay_epochs=5"),
    "--do_train false": flags("--do_train=false"),
    "--do_eval, eval_strategy is no": flags("--do_eval"),
    "--do_predict": flags("--do_predict"),
    "analyse: a student of 5 classes, data of 10": analysis(student="student"),
    "analyse: a student of other classes": analysis(student="student", labels=[str(n) for n in range(20, 30)]),
    "analyse: a timm name without a checkpoint": analysis(student="cifar_resnet8"),
    "analyse: a student that is nothing": analysis(student="nothing"),
    "analyse: a folder that is not there": analysis(student="runs/kd"),
    "analyse: labelled_images=4": analysis(student="student", labelled_images=4),
    "analyse: 3 of 4 images with the label -1": analysis(student="student", labels=[*"0123456789"], hidden=3),
    "analyse: one network twice": analysis(student="teacher"),
    "analyse: kl_temperature=0": analysis(student="student", kl_temperature=0.0),
    "analyse: masks, a student that is no folder": mask_analysis("gone"),
    "analyse: masks, a folder without a network": mask_analysis("empty"),
    "analyse: masks of 3 classes, of which 2 are named": mask_analysis("student", classes=2),
    "max_steps=0": argument(max_steps=0),
    "max_rows=0": lambda folder: lambda: InstructArguments(max_rows=0),
    "YAML: seed twice": setting("seed: 1\nseed: 2\n"),
    "YAML: seed, blank": setting("seed:\n"),
    "YAML: channels_last: [false]": setting("channels_last: [false]\n"),
    "YAML: temperature: {energy: 4}": setting("temperature: {energy: 4}\n"),
    "YAML: seed: 12:30": setting("seed: 12:30\n"),
    "YAML: eval_strategy: never": setting("eval_strategy: never\n"),
}
