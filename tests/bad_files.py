"""Networks, data, tokenizers, scans and results, each wrong in one way: entries for tests/bad_input.py."""

import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from bad_training import broken
from datasets import Dataset, Features, Value
from safetensors.torch import save_file
from text_toys import language_model, taught_model, token_dataset, tokenizer
from torch import nn
from toys import Net, Rows, teacher
from transformers import AutoModelForMaskedLM

from hfkd.data.images import decode, load_images
from hfkd.data.instructions import dolly_rows, to_prompt_response
from hfkd.data.labelled_texts import LabelledTextArguments
from hfkd.data.masking import TokenMasking
from hfkd.data.plain_texts import PlainTextArguments
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_collate import TokenCollator
from hfkd.data.text_files import read_jsonl
from hfkd.data.transforms import ImageTransform, pack_pixels
from hfkd.evaluation.generation import TextGenerator
from hfkd.evaluation.run import evaluate_sets
from hfkd.models import image_classifier, image_teacher
from hfkd.models.checkpoints import load_checkpoint
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.models.text_networks import fresh_network
from hfkd.models.vocabulary import same_tokenizer
from hfkd.teachers import CachedTextTeacher, FrozenTeacher, build_text_cache, scan
from hfkd.utils.json_file import write_json
from hfkd.utils.saved_weights import list_weights

# ---- checkpoints and networks -----------------------------------------------------------------------------------


def checkpoint(write, name="weights.pth", network=Net):
    def make(folder):
        path = folder / name
        write(path)
        return lambda: load_checkpoint(network(), path)

    return make


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path(tempfile.gettempdir()) / "hfkd-was-here",))


def cut_safetensors(path):
    save_file(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-20])


def without(name):
    return {key: value for key, value in Net().state_dict().items() if key != name}


def saved_as(architecture):
    def make(folder):
        (folder / "config.json").write_text(json.dumps({"architecture": architecture}))
        (folder / "model.safetensors").touch()
        return lambda: image_classifier("efficientnet_lite0", 2, folder / "model.safetensors")

    return make


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/0", bytes(1 << 20), compresslevel=9)


def changed_after_saving(path):
    save_file(Net().state_dict(), path)
    list_weights(path.parent, [path.name])
    save_file(Net(seed=1).state_dict(), path)


CHECKPOINTS = {
    "checkpoint: no such file": checkpoint(lambda path: None),
    "checkpoint: a folder": checkpoint(lambda path: path.mkdir()),
    "checkpoint: not a weights file": checkpoint(lambda path: path.write_bytes(b"<html>404</html>")),
    "checkpoint: an empty file": checkpoint(lambda path: path.write_bytes(b"")),
    "checkpoint: cut .safetensors": checkpoint(cut_safetensors, "weights.safetensors"),
    "checkpoint: another than was saved": checkpoint(changed_after_saving, "weights.safetensors"),
    "checkpoint: a pickle of other objects": checkpoint(lambda path: path.write_bytes(pickle.dumps(Malicious()))),
    "checkpoint: torch.save of other objects": checkpoint(lambda path: torch.save({"model": Malicious()}, path)),
    "checkpoint: a compressed archive": checkpoint(compressed),
    "checkpoint: a list": checkpoint(lambda path: torch.save([1, 2], path)),
    "checkpoint: {}": checkpoint(lambda path: torch.save({}, path)),
    "checkpoint: a number among the weights": checkpoint(
        lambda path: torch.save(Net().state_dict() | {"epoch": 3}, path)
    ),
    "checkpoint: a weight is missing": checkpoint(lambda path: torch.save(without("head.bias"), path)),
    "checkpoint: another width": checkpoint(lambda path: torch.save(Net(6).state_dict(), path)),
    "checkpoint: NaN": checkpoint(lambda path: torch.save(broken(Net()).state_dict(), path)),
    "checkpoint: another architecture beside config.json": saved_as("tf_efficientnet_lite0"),
    'student "resnet20"': lambda folder: lambda: image_classifier("resnet20", 10),
    'student "resnet18.a1_in1k"': lambda folder: lambda: image_classifier("resnet18.a1_in1k", 10),
    "student of 0 classes": lambda folder: lambda: image_classifier("cifar_resnet20", 0),
    "3 label names for 10 classes": lambda folder: (
        lambda: image_classifier("cifar_resnet20", 10, label_names=["a"] * 3)
    ),
    "teacher without weights": lambda folder: lambda: image_teacher("cifar_resnet20", 10),
    'dtype="half"': lambda folder: lambda: causal_lm("gpt2", dtype="half"),
    "8 bits and 4 bits": lambda folder: lambda: causal_lm("gpt2", load_in_8bit=True, load_in_4bit=True),
    "from_config in 8 bits": lambda folder: lambda: causal_lm("gpt2", from_config=True, load_in_8bit=True),
}

# ---- data -------------------------------------------------------------------------------------------------------


def jsonl(content):
    def make(folder):
        path = folder / "rows.jsonl"
        path.write_bytes(content)
        return lambda: read_jsonl(path)

    return make


def images(columns, **keywords):
    return lambda folder: lambda: decode(Dataset.from_dict(columns), **keywords)


def text(columns, **keywords):
    def make(folder):
        settings = {"max_length": 8, "max_prompt_length": 4} | keywords
        words = settings.pop("tokenizer", tokenizer)()
        return lambda: tokenize_dataset(Dataset.from_dict(columns), words, **settings)

    return make


def no_words():
    words = tokenizer()
    words.eos_token = None
    return words


def labelled(flags, **columns):
    """A set of texts with labels, in JSON lines, of which some rows are held out unless the flags name a split."""

    def make(folder):
        Dataset.from_dict(columns).to_json(folder / "rows.jsonl")
        settings = {"dataset_name": str(folder / "rows.jsonl")} | ({"hold_out": 1} if "eval_split" not in flags else {})
        return lambda: LabelledTextArguments(**settings | flags).read()

    return make


def read_by(**flags):
    return lambda folder: lambda: TextNetworkArguments(**flags).tokenizer(["a text"])


TEXTS = {"text": ["one", "two", "three", "four"]}
PAIR = {"prompt": ["ask you"], "response": ["answer me"]}
PICTURE = np.zeros((4, 4, 3), np.uint8).tolist()


def in_two_splits(folder):
    for name in ("train", "train-test"):
        (folder / f"{name}.csv").write_text("image,label\na.png,0\n")
    return lambda: load_images(str(folder))


DATA = {
    "images: an empty folder": lambda folder: lambda: load_images(str(folder)),
    "images: no rows": images({"img": [], "label": []}),
    "images: no image column": images({"picture": [PICTURE], "label": [0]}),
    'images: image_column="photo"': images({"img": [PICTURE], "label": [0]}, image_column="photo"),
    "images: labels are text": images({"img": [PICTURE], "label": ["cat"]}),
    "images: a broken image": images({"img": [PICTURE, "not an image"][1:], "label": [0]}),
    "images: no label in row 1": images({"img": [PICTURE, PICTURE], "label": [0, None]}),
    "images: a file in two splits": in_two_splits,
    "images: padding=-1": lambda folder: lambda: ImageTransform(padding=-1),
    "JSON lines: no such file": lambda folder: lambda: read_jsonl(folder / "none.jsonl"),
    "JSON lines: an empty file": jsonl(b"\n"),
    "JSON lines: a broken line": jsonl(b'{"a": 1}\n{"a": \n'),
    "JSON lines: a number": jsonl(b'{"a": 1}\n3\n'),
    "JSON lines: not UTF-8": jsonl(b'{"a": "\xff"}\n'),
    "text: no columns that are known": text({"question": ["a"], "answer": ["b"]}),
    "text: no rows": lambda folder: (
        lambda: tokenize_dataset(
            Dataset.from_dict(
                {"prompt": [], "response": []}, Features({"prompt": Value("string"), "response": Value("string")})
            ),
            tokenizer(),
        )
    ),
    "text: max_prompt_length=0": text(PAIR, max_prompt_length=0),
    "text: max_prompt_length above max_length": text(PAIR, max_prompt_length=9),
    'text: long_prompts="shorten"': text(PAIR, long_prompts="shorten"),
    'text: tokenization="words"': text(PAIR, tokenization="words"),
    "text: a tokenizer without an end": text(PAIR, tokenizer=no_words),
    "text: every prompt too long": text({"prompt": ["ask you me one two"], "response": ["a"]}),
    "text: a number for a response": lambda folder: (
        lambda: to_prompt_response(Dataset.from_dict({"prompt": ["ask"], "response": [3]}), tokenizer(), False)
    ),
    "labelled texts: no column of labels": labelled({}, **TEXTS, grade=[0, 1, 0, 1]),
    "labelled texts: two columns of text, none of which is named": labelled(
        {}, premise=TEXTS["text"], hypothesis=TEXTS["text"], label=[0, 1, 0, 1]
    ),
    "labelled texts: labels are numbers with a fraction": labelled({}, **TEXTS, label=[0.5, 1.0, 2.0, 0.1]),
    "labelled texts: hidden labels": labelled({}, **TEXTS, label=[-1, -1, -1, -1]),
    "labelled texts: nothing to score": labelled({"eval_split": None}, **TEXTS, label=[0, 1, 0, 1]),
    "labelled texts: hold_out=4 of 4 rows": labelled({"hold_out": 4}, **TEXTS, label=[0, 1, 0, 1]),
    "masking: a tokenizer without a mask token": lambda folder: lambda: TokenMasking(tokenizer()),
    "masking: mask_probability=0": lambda folder: lambda: PlainTextArguments(mask_probability=0),
    "texts: no tokenizer anywhere": read_by(student_name_or_path="bert", from_config=True),
    "texts: train_tokenizer for stored weights": read_by(student_name_or_path="owner/name", train_tokenizer=100),
    "texts: student_config of stored weights": read_by(student_config="num_hidden_layers=1"),
    "texts: a configuration without depth": lambda folder: (
        lambda: fresh_network(AutoModelForMaskedLM, "bert", tokenizer(), "depth=1")
    ),
    "text: messages with tools": lambda folder: (
        lambda: to_prompt_response(
            Dataset.from_dict({"messages": [[{"role": "user", "content": "ask"}] * 2], "tools": [["look"]]})
        )
    ),
    "text: a system prompt in a column": lambda folder: (
        lambda: to_prompt_response(Dataset.from_dict({"instruction": ["a"], "output": ["b"], "system": ["be brief"]}))
    ),
    "text: Dolly of one row": lambda folder: (
        lambda: dolly_rows(
            Dataset.from_dict({"instruction": ["ask"], "context": [""], "response": ["a"], "category": ["qa"]}),
            tokenizer(),
        )
    ),
}

# ---- tokenizers, caches, generation, results --------------------------------------------------------------------


def other_words():
    words = tokenizer()
    words.add_tokens(["four"])
    return words


def scanning(**keywords):
    def make(folder):
        settings = dict(keywords)
        rows, taught = settings.pop("rows", Rows()), settings.pop("taught", teacher)
        return lambda: scan(FrozenTeacher(taught()), rows, progress_bar=False, **settings)

    return make


def a_file(folder):
    (folder / "file").write_text("not a folder")
    return folder / "file"


def packed():
    pixels = [pack_pixels(np.zeros((8, 8, 3), np.uint8))] * 4
    rows = Dataset.from_dict({"pixels": pixels, "labels": [0] * 4, "index": list(range(4))})
    return rows.with_transform(ImageTransform())


def generator(**keywords):
    return lambda folder: (
        lambda: TextGenerator(
            language_model(), tokenizer(), **({"max_new_tokens": 4, "max_prompt_length": 8} | keywords)
        )
    )


def answers(columns, **keywords):
    rows = Dataset.from_dict(columns)
    limits = {"max_new_tokens": 4, "max_prompt_length": 8}
    return lambda folder: (
        lambda: evaluate_sets(language_model(), tokenizer(), {"dolly": rows}, folder / "run", **(limits | keywords))
    )


def stored(harm=lambda folder: None, **keywords):
    """A second attempt at a text cache, after `harm` was done to the first."""

    def make(folder):
        settings = {"k": 4, "temperatures": 2.0, "progress_bar": False}
        build_text_cache(taught_model(), token_dataset(), folder / "cache", **settings)
        harm(folder / "cache")
        settings |= {name: value for name, value in keywords.items() if name != "taught"}
        taught = keywords.get("taught", taught_model)()
        return lambda: build_text_cache(taught, token_dataset(), folder / "cache", **settings)

    return make


def opened(harm):
    def make(folder):
        stored(harm)(folder)
        return lambda: CachedTextTeacher(folder / "cache")

    return make


def flipped(name):
    def harm(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return harm


def with_another_scale():
    model = taught_model()
    model.config.scale_attn_weights = False
    return model


def hooked():
    model = taught_model()
    model.lm_head.register_forward_hook(lambda head, states, logits: 2 * logits)
    return model


REST = {
    "teacher cache: temperature 1000 in float16": stored(temperatures=1000.0),
    "teacher cache: another configuration": stored(taught=with_another_scale),
    "teacher cache: a teacher that gives other numbers": stored(taught=hooked),
    "teacher cache: a damaged file": opened(flipped("shard-00000.arrow")),
    "teacher cache: a damaged manifest": opened(flipped("teacher_cache.json")),
    "tokenizer: a folder without one": lambda folder: lambda: load_tokenizer(folder),
    "tokenizer: the teacher has another": lambda folder: lambda: same_tokenizer(tokenizer(), other_words()),
    'collator: padding_side="both"': lambda folder: lambda: TokenCollator(tokenizer(), padding_side="both"),
    "collator: pad_to_multiple_of=0": lambda folder: lambda: TokenCollator(tokenizer(), pad_to_multiple_of=0),
    "collator: labels of another length": lambda folder: (
        lambda: TokenCollator(tokenizer())([{"input_ids": [3, 4], "labels": [3]}])
    ),
    'scan: views="test"': scanning(views="test"),
    "scan: clean views of rows without a transform": scanning(views="clean"),
    "scan: a teacher that gives NaN": scanning(taught=lambda: broken(teacher())),
    "generation: max_new_tokens=0": generator(max_new_tokens=0),
    "generation: top_p=0": generator(top_p=0.0),
    "generation: temperature=nan": generator(temperature=float("nan")),
    "generation: more positions than the model has": generator(max_prompt_length=40),
    "generation: seed=-1": lambda folder: lambda: generator()(folder)()(["ask"], seed=-1),
    "answers: no column of references": answers({"prompt": ["ask"]}),
    "answers: a row without a reference": answers({"prompt": ["ask"], "references": [[]]}),
    "answers: a seed twice": answers({"prompt": ["ask"], "references": [["a"]]}, seeds=(1, 1)),
    "results: an object JSON does not know": lambda folder: (
        lambda: write_json(folder / "results.json", {"net": nn.Linear(1, 1)})
    ),
    "results: the folder is a file": lambda folder: (lambda path: lambda: write_json(path / "results.json", {}))(
        a_file(folder)
    ),
}
