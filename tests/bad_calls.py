"""Flags of recipes that do not go together, and functions called in ways that they refuse: entries for bad_input.py."""

import json

import numpy as np
import torch
from bad_training import slot
from datasets import ClassLabel, Dataset, Features
from task_toys import bart
from text_toys import TokenRows, language_model, token_dataset, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data import ImageDataArguments, ImageTransform
from hfkd.data.boxes import check_boxes
from hfkd.data.coco import load_coco
from hfkd.data.few_labels import few_labels
from hfkd.data.instructions import to_prompt_response
from hfkd.data.labelled_texts import LabelledTextArguments
from hfkd.data.longtail import long_tail
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.data.masks import MaskTransform, read_label_names, read_palette
from hfkd.data.pack_rows import pack_rows
from hfkd.data.plain_texts import PlainTextArguments, tokenize_plain
from hfkd.data.text_collate import TokenCollator
from hfkd.evaluation.callback import RougeArguments
from hfkd.evaluation.metrics.rouge_l import RougeL
from hfkd.evaluation.scoring import score
from hfkd.evaluation.sets import instruct_sets
from hfkd.experiments.analyse import AnalysisArguments
from hfkd.experiments.chain import distil_chain
from hfkd.experiments.rows import read_table
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.registry import register_objective
from hfkd.models import Peers, image_classifier
from hfkd.models.lora import LoraArguments
from hfkd.models.network_arguments import NetworkArguments
from hfkd.models.projector import with_projector
from hfkd.models.pruning import prune_layers
from hfkd.models.segmentation import segmentation_network
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.models.wordpiece import train_wordpiece
from hfkd.reports import figures
from hfkd.teachers import build_text_cache


def call(function, *given, **keywords):
    return lambda folder: lambda: function(*given, **keywords)


def file(name, content, read):
    """`read` of a file with this content."""

    def make(folder):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return lambda: read(str(folder / name))

    return make


# ---- flags ----------------------------------------------------------------------------------------------------------


def images(**flags):
    return lambda folder: ImageDataArguments(dataset_name=str(folder), **flags).load


def texts(**splits):
    """A folder of JSON lines with these splits; `flags` among them are those of the recipe."""
    flags = splits.pop("flags", {})

    def make(folder):
        for name, columns in splits.items():
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return LabelledTextArguments(dataset_name=str(folder), **flags).read

    return make


def plain(columns, **flags):
    def make(folder):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return PlainTextArguments(dataset_name=str(folder), hold_out=1, **flags).read

    return make


GRADED = {"text": ["a b", "c d", "a d", "b c"], "label": ["good", "bad", "good", "bad"]}
NETWORKS = {"student_name_or_path": "student", "teacher_name_or_path": "teacher"}

FLAGS = {
    "he_da='some'": call(arguments, "run", he_da="some"),
    "he_da_ratio=0": call(arguments, "run", he_da="paper", he_da_ratio=0.0),
    "he_da_mix without he_da": call(arguments, "run", he_da_mix="mixup"),
    "he_da=released, he_da_side=low": call(arguments, "run", he_da="released", he_da_side="low"),
    "log_completions, logging_strategy=no": call(
        arguments, "run", on_policy=0.5, log_completions=True, logging_strategy="no"
    ),
    "images: --streaming without --resized_crop": images(streaming=True),
    "images: --resized_crop --views 2": images(resized_crop=True, views=2),
    "images: --streaming --labelled_images 4": images(streaming=True, resized_crop=True, labelled_images=4),
    "masks: --id2label with three classes and --num_labels 4": file(
        "names.json",
        ["sky", "road", "car"],
        lambda path: MaskDataArguments(dataset_name="masks", id2label=path, num_labels=4).label_names,
    ),
    "masks: --palette that is none": file("colours.json", ["red"], read_palette),
    "masks: --palette of two numbers": file("colours.json", {"1,2": 0}, read_palette),
    "masks: --id2label that is no JSON": file("names.json", "sky", read_label_names),
    "masks: --id2label with a gap": file("names.json", {"0": "sky", "2": "car"}, read_label_names),
    "masks: --teacher_mean without --teacher_std": call(SegmentationNetworkArguments, teacher_mean=[0.5, 0.5, 0.5]),
    "masks: --teacher_size alone": call(SegmentationNetworkArguments, teacher_size=[8, 8]),
    "masks: no teacher": lambda folder: lambda: SegmentationNetworkArguments().teacher(3),
    "masks: --batch_norm_momentum 2": call(SegmentationNetworkArguments, batch_norm_momentum=2.0),
    "masks: --auxiliary_head of a network without": call(
        segmentation_network, "lraspp_mobilenet_v3_small", 3, auxiliary_head=True
    ),
    "masks: a student of no module": call(segmentation_network, "no_such_module:network", 3),
    "masks: a student that is no network": call(segmentation_network, "builtins:dict", 3),
    "texts: --hold_out and --eval_split": call(LabelledTextArguments, "texts", hold_out=4, eval_split="test"),
    "texts: no such --train_split": texts(train=GRADED, test=GRADED, flags={"train_split": "all"}),
    "texts: no such --eval_split": texts(train=GRADED, test=GRADED, flags={"eval_split": "dev"}),
    "texts: --eval_split train": texts(train=GRADED, test=GRADED, flags={"eval_split": "train"}),
    "texts: a label that training has not": texts(train=GRADED, test={"text": ["a"], "label": ["fair"]}),
    "texts: no column of that name": texts(train=GRADED, test=GRADED, flags={"text_column": "words"}),
    "texts: a row without a text": texts(train=GRADED | {"text": ["a", None, "b", "c"]}, test=GRADED),
    "texts: a column of numbers for the text": texts(
        train=GRADED | {"year": [1, 2, 3, 4]}, test=GRADED | {"year": [1, 2, 3, 4]}, flags={"text_column": "year"}
    ),
    "texts: two columns hold text": plain({"title": ["a"] * 4, "body": ["b"] * 4}),
    "texts: max_length above all of the texts": call(
        tokenize_plain, Dataset.from_dict({"text": ["ask you"]}), tokenizer(), max_length=64
    ),
    "texts: --teacher_dtype float8": call(TextNetworkArguments, **NETWORKS, teacher_dtype="float8"),
    "texts: --tokenizer_name and --train_tokenizer": call(
        TextNetworkArguments, tokenizer_name="words", train_tokenizer=100, from_config=True
    ),
    "texts: --eval_rouge without dev rows": lambda folder: lambda: RougeArguments(eval_rouge=True).check_rows(None),
    "texts: no teacher": lambda folder: lambda: TextNetworkArguments(student_name_or_path="student").check_teacher(1.0),
    "texts: --student_init random": call(TextNetworkArguments, **NETWORKS, student_init="random"),
    "texts: --student_init teacher without --student_layers": call(
        TextNetworkArguments, **NETWORKS, student_init="teacher"
    ),
    "texts: --student_init teacher and a student": call(
        TextNetworkArguments, **NETWORKS, student_init="teacher", student_layers=[2]
    ),
    "texts: --student_layers_from middle": call(TextNetworkArguments, **NETWORKS, student_layers_from="middle"),
    "texts: --student_layers_from last, layers by number": call(
        TextNetworkArguments, **NETWORKS, student_layers=[0, 2], student_layers_from="last"
    ),
    "texts: --lora_r without --use_peft": call(LoraArguments, lora_r=8),
    "texts: --train_tokenizer 5": call(train_wordpiece, ["one two"], 5),
    "images: mutual learning of a stored student": call(
        NetworkArguments, ["a"], mutual_learning=True, student_checkpoint="student.pth"
    ),
    "images: mutual learning, and classes of the teacher": call(
        NetworkArguments, ["a"], mutual_learning=True, teacher_classes=[0, 1]
    ),
    "images: --teacher_image_size 0": call(NetworkArguments, ["a"], teacher_image_size=0),
    "chain of one network": lambda folder: lambda: distil_chain(["a"], None, ImageDataArguments(), arguments("run")),
    "analyse: no students": call(AnalysisArguments, teacher="teacher", students=[]),
    "analyse: landscape_points=4": call(AnalysisArguments, teacher="teacher", students=["a"], landscape_points=4),
    "reproduce: a table without rows": file("table.yaml", "title: nothing\n", read_table),
    "reproduce: a table that is no YAML": file("table.yaml", "rows: [a\n", read_table),
    "reproduce: two rows of one name": file(
        "table.yaml", {"rows": [{"name": "kd", "settings": {}}, {"name": "kd", "settings": {}}]}, read_table
    ),
    "instruction sets: one that is not known": lambda folder: lambda: instruct_sets(folder, names=["alpaca"]),
    "instruction sets: an empty folder": lambda folder: lambda: instruct_sets(folder),
}

# ---- functions ------------------------------------------------------------------------------------------------------


def turns(messages, **keywords):
    rows = Dataset.from_dict({"messages": [messages]})
    return lambda folder: lambda: to_prompt_response(rows, **keywords)


def labelled(labels, names=("a", "b")):
    features = Features({"labels": ClassLabel(names=list(names))})
    return Dataset.from_dict({"labels": labels}, features)


def cached(rows=None, **settings):
    given = token_dataset(4) if rows is None else rows
    return lambda folder: (
        lambda: build_text_cache(language_model(), given, folder / "cache", progress_bar=False, **{"k": 2} | settings)
    )


def coco(**content):
    """A file of instances, of one image with one box."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    given = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [box]}
    given |= {"categories": [{"id": 1, "name": "cat"}]} | content

    def make(folder):
        (folder / "instances.json").write_text(json.dumps(given))
        return lambda: load_coco(folder, folder / "instances.json")

    return make


def stored(rows):
    def make(folder):
        teachers = [teacher(), teacher()]
        args = arguments(folder / "run", teacher_cache_dir=str(folder / "cache"))
        return lambda: DistillationTrainer(Net(), teachers, args, train_dataset=rows())

    return make


class Reading:
    """An objective of somebody's own that gives its numbers another shape."""

    def __init__(self, values):
        self.values = values

    def __call__(self, items, temperature):
        return self.values


def given_by(**slots):
    """The loss of four images, with a slot of somebody's own."""
    logits = torch.zeros(4, CLASSES)
    items = image_items(logits, logits, torch.zeros(4, dtype=torch.long))
    return lambda folder: lambda: DistillationLoss(**slots)(items)


CALLS = {
    "long_tail(imbalance_factor=0)": call(long_tail, labelled([0, 1] * 4), 0.0),
    "long_tail that leaves a class without images": call(long_tail, labelled([0, 1] * 4), 0.1),
    "long_tail of a set that is not balanced": call(long_tail, labelled([0] * 3 + [1] * 5), 1.0),
    "few_labels of more rows than there are": call(few_labels, labelled([0, 1]), 3),
    "few_labels of a set without labels": call(few_labels, Dataset.from_dict({"a": [1]}), 1),
    "ImageTransform(views=3)": call(ImageTransform, views=3),
    "MaskTransform(scale=(2, 1))": call(MaskTransform, scale=(2.0, 1.0), size=(8, 8)),
    "MaskTransform(augment=True) without a size": call(MaskTransform, augment=True),
    "messages without an answer": turns([{"role": "user", "content": "a"}]),
    "messages of a system without a chat template": turns(
        [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "b"}]
    ),
    "chat_template=True and a tokenizer without": turns(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        tokenizer=tokenizer(),
        chat_template=True,
    ),
    "several splits for one data set": lambda folder: (
        lambda: to_prompt_response({"train": Dataset.from_dict({"text": ["a"]})})
    ),
    "pack_rows of texts": call(pack_rows, Dataset.from_dict({"text": ["a"]}), 8),
    "pack_rows of padded rows": call(
        pack_rows,
        Dataset.from_list([{"input_ids": [5, 6, 0], "labels": [5, 6, 0], "attention_mask": [1, 1, 0]}]),
        8,
    ),
    "pack_rows of packed rows": call(
        pack_rows, Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "seq_lengths": [1, 2]}]), 8
    ),
    "pack_rows to less than a row": call(pack_rows, token_dataset(4), 2),
    "collator: an attention_mask of zeros": lambda folder: (
        lambda: TokenCollator(tokenizer())([{"input_ids": [3, 4], "labels": [3, 4], "attention_mask": [0, 0]}])
    ),
    "collator: a completion_mask of another length": lambda folder: (
        lambda: TokenCollator(tokenizer())([{"input_ids": [3, 4], "completion_mask": [1]}])
    ),
    "collator: texts": lambda folder: lambda: TokenCollator(tokenizer())([{"text": "a"}]),
    "boxes: labels that are no integers": call(check_boxes, torch.ones(1, 4), torch.ones(1), (8, 8), "row 0"),
    "boxes: a box of the background": call(
        check_boxes, torch.ones(1, 4), torch.zeros(1, dtype=torch.long), (8, 8), "row 0"
    ),
    "coco: a file of something else": file("instances.json", {"images": []}, lambda path: load_coco(".", path)),
    "coco: a category 0": coco(categories=[{"id": 0, "name": "cat"}]),
    "prune_layers of a module": call(prune_layers, Net(), 1),
    "prune_layers(keep=3) of one layer": call(prune_layers, language_model(), 3),
    "prune_layers(keep=[1, 0])": call(prune_layers, language_model(layers=2), [1, 0]),
    "prune_layers(how='middle')": call(prune_layers, language_model(layers=3), 2, how="middle"),
    "prune_layers(part='decoder') of one stack": call(prune_layers, language_model(), 1, part="decoder"),
    "prune_layers(part='head')": call(prune_layers, language_model(), 1, part="head"),
    "Peers of one": call(Peers, [Net()]),
    "Peers that are one": lambda folder: lambda: Peers([teacher()] * 2),
    "with_projector of a transformer": call(with_projector, language_model(), 8),
    "with_projector(width=0)": lambda folder: lambda: with_projector(image_classifier("cifar_resnet8", 3), 0),
    "a list of one teacher": lambda folder: (
        lambda: DistillationTrainer(Net(), [teacher()], arguments(folder / "run"), train_dataset=Rows())
    ),
    "teacher_cache_dir and two teachers": stored(Rows),
    "register_objective('two words')": call(register_objective, "two words"),
    "register_objective of a name that is taken": lambda folder: lambda: register_objective("kd")(Reading),
    'weighting="entropy(student=False, teacher=False)"': slot(weighting="entropy(student=False, teacher=False)"),
    'weighting="entropy(interaction=True, teacher=False)"': slot(weighting="entropy(interaction=True, teacher=False)"),
    'objective="mld(temperatures=(4,))"': slot(objective="mld(temperatures=(4,))"),
    'objective="rkd(distance=0, angle=0)"': slot(objective="rkd(distance=0, angle=0)"),
    "objective=\"minilm(compared=('qx',))\"": slot(objective="minilm(compared=('qx',))"),
    "objective=\"sakd(objective='kd')\"": slot(objective="sakd(objective='kd')"),
    'objective="fitnet(layer={})"': slot(objective="fitnet(layer={})"),
    "an objective that reduces": given_by(objective=Reading(torch.tensor(1.0))),
    "an objective that gives a number": given_by(objective=Reading(1.0)),
    "a weighting of another length": given_by(weighting=lambda items: torch.ones(3)),
    "image_items of other classes": lambda folder: (
        lambda: image_items(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    ),
    "build_text_cache(k=0)": cached(k=0),
    "build_text_cache(temperatures=())": cached(temperatures=()),
    "build_text_cache(dtype='int8')": cached(dtype="int8"),
    "build_text_cache of rows without an index": cached(Dataset.from_list(TokenRows(4).rows)),
    "build_text_cache of rows with one index": cached(token_dataset(4).map(lambda row: {"index": 0})),
    "build_text_cache(num_classes=99)": cached(num_classes=99),
    "build_text_cache of a model that is none of text": lambda folder: (
        lambda: build_text_cache(bart(16), token_dataset(4), folder / "cache", k=2)
    ),
    "score: answers without references": call(score, {"dolly": {10: ["a"]}}, {}),
    "score: no answers": call(score, {"dolly": {}}, {"dolly": [["a"]]}),
    "score: an answer less": call(score, {"dolly": {10: ["a"]}}, {"dolly": [["a"], ["b"]]}),
    "rougeL: no predictions": lambda folder: lambda: RougeL(keep_in_memory=True).compute(predictions=[], references=[]),
    "rougeL: another tokenizer": lambda folder: (
        lambda: RougeL(keep_in_memory=True).compute(predictions=["a"], references=["a"], tokenizer="words")
    ),
    "figures: thresholds in the wrong order": call(figures.energy_histogram, [1.0, 2.0], (2.0, 1.0)),
    "figures: NaN among the energies": call(figures.energy_histogram, [1.0, float("nan")]),
    "figures: no energies": call(figures.energy_histogram, []),
    "figures: images in floats": call(figures.image_grid, np.zeros((2, 8, 8, 3))),
    "figures: images of two channels": call(figures.image_grid, np.zeros((2, 8, 8, 2), dtype=np.uint8)),
    "figures: a caption less": call(figures.image_grid, np.zeros((2, 8, 8, 3), dtype=np.uint8), ["a"]),
    "figures: no groups": call(figures.mean_prediction, {}),
    "figures: a group without samples": call(figures.mean_prediction, {"low": np.zeros((0, 3))}),
    "figures: other samples": call(figures.accuracy_by_entropy, [1.0, 2.0], [1], [1, 0]),
    "figures: no methods": call(figures.comparison_bars, []),
}
