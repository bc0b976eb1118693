"""Networks, slots and settings that do not go together in a trainer: entries for tests/bad_input.py."""

import torch
from bad_training import language, trainer
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model, token_dataset, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import GPT2LMHeadModel

from hfkd import DistillationTrainer
from hfkd.experiments.cache_arguments import TeacherCacheArguments
from hfkd.models import Peers
from hfkd.teachers import CachedTextTeacher, build_text_cache

ROWS = token_dataset(8)


def peers(network=Net, rows=Rows, **keywords):
    return trainer(lambda: Peers([network(), network(seed=2)]), None, rows, **keywords)


def scheduled(**keywords):
    student = Net()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return trainer(lambda: student, optimizers=(optimizer, schedule), **keywords)


def stored(rows=ROWS, student=language_model, **settings):
    """A trainer whose teacher is a store of T = 1 and the two largest logits."""

    def make(folder):
        build_text_cache(taught_model(), ROWS, folder / "cache", k=2, temperatures=1.0, progress_bar=False)
        args = arguments(folder / "run", **{"temperature": 1.0} | settings)
        kept = CachedTextTeacher(folder / "cache")
        return lambda: DistillationTrainer(student(), kept, args, train_dataset=rows, processing_class=tokenizer())

    return make


def cached(**flags):
    """A recipe's flags that ask for another store than the folder has: k = 2."""

    def make(folder):
        build_text_cache(taught_model(), ROWS, folder / "cache", k=2, progress_bar=False, name="teacher")
        where = str(folder / "cache"), taught_model, "teacher", ROWS, language_model(), tokenizer(), 2.0
        return lambda: TeacherCacheArguments(**flags).teacher(*where)

    return make


def heads_of(objective):
    """Language models of 2 heads and of 3, 16 and 24 wide."""

    def three():
        config = language_model(24).config
        config.n_head = 3
        return GPT2LMHeadModel(config)

    return trainer(language_model, three, TokenRows, objective=objective, processing_class=tokenizer())


class Alone(torch.nn.Module):
    """One output for each image, and no class dimension."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(192, CLASSES)

    def forward(self, x):
        return {"features": self.head(x.flatten(1))}


def nothing_labelled():
    rows = Rows()
    return Dataset.from_list([{"pixel_values": rows[i]["pixel_values"].tolist(), "labels": -100} for i in range(8)])


def changed_tokens():
    return ROWS.map(lambda row: {"input_ids": [3 + token % 5 for token in row["input_ids"]]})


SETTINGS = {
    "lr_decay_epochs, and optimizers= with a scheduler": scheduled(args={"lr_decay_epochs": [1.0]}),
    "decay_bias_and_norm, and optimizers=": scheduled(args={"decay_bias_and_norm": True}),
    "on_nan='skip', optim='lomo'": lambda folder: lambda: arguments(folder / "run", on_nan="skip", optim="lomo"),
    'Peers, temperature="energy"': peers(temperature="energy(ratio=0.2)"),
    'Peers, objective="mld"': peers(objective="mld"),
    "Peers, he_da='released'": peers(args={"he_da": "released"}),
    "Peers, evaluate_kl=True": peers(args={"evaluate_kl": True}),
    "Peers of language models": peers(language_model, TokenRows, processing_class=tokenizer()),
    "teacher_cache_dir of a language model": language(args={"teacher_cache_dir": "cache"}),
    "he_da='paper' of a language model": language(args={"he_da": "paper"}),
    "he_da='released', kd_weight=0": trainer(args={"he_da": "released", "kd_weight": 0.0, "ce_weight": 1.0}),
    "two tokenizers for one teacher": language(teacher_processing_class=[tokenizer(), tokenizer()]),
    "teacher_processing_class='gpt2'": language(teacher_processing_class="gpt2"),
    "teachers of 5 and of 7 classes": trainer(taught=lambda: [teacher(), teacher(7)]),
    "a student without logits": trainer(student=Alone),
    "rows of label -100 alone, ce_weight=1": trainer(rows=nothing_labelled, args={"ce_weight": 1.0}),
    'objective="minilm(heads=7)"': heads_of("minilm(heads=7)"),
    'objective="attention_scores", networks of 2 and 3 heads': heads_of("attention_scores"),
    "task='token_classification' for images": trainer(args={"task": "token_classification"}),
    "stored logits, temperature=2.0": stored(temperature=2.0),
    'stored logits, objective="dist"': stored(objective="dist"),
    'stored logits, objective="dkd"': stored(objective="dkd"),
    "stored logits, evaluate_kl=True": stored(evaluate_kl=True),
    "stored logits of other tokens": stored(changed_tokens()),
    "stored logits, rows without an index": stored(TokenRows(8)),
    "stored logits of tokens for a student of images": stored(Rows(), Net),
    "stored logits, --teacher_cache_k 8": cached(teacher_cache_k=8),
    "stored logits: an empty folder": lambda folder: lambda: CachedTextTeacher(folder),
}
