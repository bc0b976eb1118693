"""Teachers of which each row names its own, and what they cannot have: entries for tests/bad_input.py."""

from row_teacher_toys import NamedRows, named_tokens, of_kind, specialists, writers
from task_toys import KINDS
from teacher_prompt_toys import rows as prompted
from text_toys import language_model, token_dataset, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.teachers import TeacherByRow


def images(teachers=None, rows=None, scored=None, **keywords):
    parts = {"train_dataset": NamedRows() if rows is None else rows, "eval_dataset": scored}
    its = specialists() if teachers is None else teachers
    return lambda folder: lambda: DistillationTrainer(Net(), its, arguments(folder, **keywords), **parts)


def tokens(rows=None, **keywords):
    parts = {"train_dataset": named_tokens() if rows is None else rows, "processing_class": tokenizer()}
    return lambda folder: (
        lambda: DistillationTrainer(language_model(), writers(), arguments(folder, **keywords), **parts)
    )


def pictured(folder):
    teachers, keywords = of_kind(KINDS["LLaVA"])
    return lambda: DistillationTrainer(KINDS["LLaVA"].network(), teachers, arguments(folder), **keywords)


ROW_TEACHERS = {
    "a dict of teachers, one": images({"photos": teacher()}),
    "a dict of teachers, a list in it": images({"photos": [teacher(), teacher()], "drawings": teacher()}),
    "a dict of teachers, in a list": images([TeacherByRow(specialists()).unfreeze(), teacher()]),
    "a dict of teachers, one with other classes": images(specialists() | {"drawings": Net(16, CLASSES + 1)}),
    "a dict of teachers, rows without a column teacher": images(rows=Rows()),
    "a dict of teachers, a row that names none of them": tokens(
        token_dataset(8).add_column("teacher", ["code", "maths"] * 3 + ["coed", "maths"])
    ),
    "a dict of teachers, evaluate_kl and evaluation rows without the column": images(scored=Rows(8), evaluate_kl=True),
    "a dict of teachers, he_da": images(he_da="released"),
    "a dict of teachers, fitnet": images(objective="kd + fitnet(layer='conv')"),
    "a dict of teachers, teacher_cache_dir": images(teacher_cache_dir="cache"),
    "a dict of teachers, loss_chunk_size": tokens(loss_chunk_size=8),
    "a dict of teachers, seq_kd": tokens(seq_kd=True),
    "a dict of teachers, teacher_prompt": tokens(prompted(4).add_column("teacher", ["code", "maths"] * 2)),
    "a dict of teachers, pictures within texts": pictured,
}
