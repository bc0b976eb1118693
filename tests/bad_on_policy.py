"""Runs whose responses cannot be written, or not learned: entries for tests/bad_input.py."""

from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model, token_dataset, tokenizer
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.arguments import DistillationArguments
from hfkd.data.pack_rows import pack_rows
from hfkd.data.text_collate import TokenCollator
from hfkd.experiments.responses import ResponseArguments, generate_responses
from hfkd.teachers import CachedTextTeacher, build_text_cache

HALF = {"on_policy": 0.5, "on_policy_max_new_tokens": 8}


def flags(**keywords):
    return lambda folder: lambda: DistillationArguments(output_dir=str(folder / "run"), **keywords)


def run(student=None, taught=None, rows=None, collator=None, **keywords):
    def make(folder):
        networks = (student or language_model)(), (taught or taught_model)()
        data = token_dataset(8) if rows is None else rows()
        given = HALF | keywords
        return lambda: DistillationTrainer(
            *networks,
            arguments(folder / "run", **given),
            train_dataset=data,
            processing_class=tokenizer(),
            data_collator=collator,
        )

    return make


def stored(folder):
    rows = token_dataset(8)
    build_text_cache(taught_model(), rows, folder / "stored", progress_bar=False)
    teacher = CachedTextTeacher(folder / "stored")
    return run(taught=lambda: teacher, rows=lambda: rows)(folder)


def images(folder):
    args = arguments(folder / "run", **HALF)
    return lambda: DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())


class Bare(nn.Module):
    """A network of the next token without `generate`."""

    def __init__(self):
        super().__init__()
        self.inner = language_model()

    def forward(self, input_ids, labels=None):
        return self.inner(input_ids, labels=labels)

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()


def no_prompt():
    return Dataset.from_list([{"input_ids": [3, 4, 5], "labels": [3, 4, 5], "index": i} for i in range(8)])


def long_prompt():
    rows = token_dataset(8).to_list()
    rows[5] |= {"input_ids": [4] * 30, "labels": [-100] * 28 + [4] * 2}
    return Dataset.from_list(rows)


def without_index(rows):
    batch = TokenCollator(0)(rows)
    del batch["index"]
    return batch


def responses(first=None, line='{"prompt": "ask me", "response": "one"}', **settings):
    """Responses to one prompt; `first`: settings of another call, which has ended."""

    def make(folder):
        (folder / "rows.jsonl").write_text(line + "\n")
        given = {"dataset_name": str(folder / "rows.jsonl"), "max_new_tokens": 4, "disable_tqdm": True}
        given |= {"output_dir": str(folder / "answers"), "keep_unfinished": True}

        def call(**more):
            return generate_responses(language_model(), tokenizer(), ResponseArguments(**given | more), "model")

        if first is not None:
            call(**first)
        return lambda: call(**settings)

    return make


def full_folder(folder):
    (folder / "answers").mkdir()
    (folder / "answers" / "notes.txt").write_text("mine")
    return responses()(folder)


ON_POLICY = {
    "on_policy=1.5": flags(on_policy=1.5),
    "on_policy=True": flags(on_policy=True),
    "on_policy_max_new_tokens=0": flags(on_policy=0.5, on_policy_max_new_tokens=0),
    "on_policy_temperature=-1.0": flags(on_policy=0.5, on_policy_temperature=-1.0),
    "on_policy_top_k=0.5": flags(on_policy=0.5, on_policy_top_k=0.5),
    "on_policy_top_p=0.0": flags(on_policy=0.5, on_policy_top_p=0.0),
    "on_policy_batch_size=0": flags(on_policy=0.5, on_policy_batch_size=0),
    "seq_kd where every step is on_policy": flags(on_policy=1.0, seq_kd=True),
    "on_policy_temperature where nothing is written": flags(on_policy_temperature=0.5),
    "log_completions where nothing is written": flags(log_completions=True),
    "on_policy of images": images,
    "on_policy without a teacher": run(taught=lambda: None, kd_weight=0.0, ce_weight=1.0),
    "on_policy with a stored teacher": stored,
    "seq_kd of two teachers": run(taught=lambda: [taught_model(), taught_model()], on_policy=0.0, seq_kd=True),
    "on_policy under FSDP": run(fsdp="full_shard"),
    "on_policy of a network without generate": run(student=Bare, task="causal_lm"),
    "on_policy with kd_weight=0": run(kd_weight=0.0, ce_weight=1.0),
    "every step on_policy with ce_weight": run(on_policy=1.0, ce_weight=0.5),
    "on_policy with an objective that reads labels": run(objective="dkd"),
    "on_policy with rows without prompts": run(rows=no_prompt),
    "on_policy with packed rows": run(rows=lambda: pack_rows(token_dataset(8), 28)),
    "on_policy with rows without an index": run(rows=lambda: TokenRows(8)),
    "on_policy with a collator that loses the index": run(collator=without_index),
    "on_policy with a prompt longer than the positions leave": run(rows=long_prompt),
    "generate_responses.py --num_samples 4 --temperature 0": responses(num_samples=4, temperature=0.0),
    "generate_responses.py --top_p 0": responses(top_p=0.0),
    "generate_responses.py, prompts that are all too long": responses(max_prompt_length=1),
    "generate_responses.py, a prompt and its response longer than the positions": responses(max_new_tokens=40),
    "generate_responses.py, rows without a prompt": responses(line='{"text": "one two"}'),
    "generate_responses.py, a folder of other settings": responses(first={}, top_k=3),
    "generate_responses.py, a folder with other files": full_folder,
}
