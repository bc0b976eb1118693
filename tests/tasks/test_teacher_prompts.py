"""A teacher that reads a prompt of its own (context distillation), through the trainer, against each row alone."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from reference import ea_weight
from teacher_prompt_toys import TEACHERS, rows, texts, trainer
from test_ranks import SPLITS
from test_ranks import run as on_ranks
from text_toys import language_model, taught_model, tokenizer
from tokenizer_toys import byte_level, sentencepiece

from hfkd import DistillationArguments
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_arguments import TextDataArguments
from hfkd.data.text_collate import TokenCollator
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.experiments.teacher_tokenizer import TeacherTokenizerArguments
from hfkd.tasks.teacher_prompt import TeacherPromptLM
from hfkd.utils.targets import IGNORED


def alone(network, ids, labels):
    """A network's logits at the targets of one row."""
    with torch.no_grad():
        logits = network.eval()(torch.tensor([ids])).logits[0, :-1]
    return logits[torch.tensor(labels[1:]) != IGNORED]


def both_alone(row, student, teacher):
    its = alone(teacher, row["teacher_input_ids"], row["teacher_labels"])
    return alone(student, row["input_ids"], row["labels"]), its


def loss_of(made, data):
    made.model.train()
    batch = made._prepare_inputs(made.training_collator(data))
    counts = made._get_num_items_in_batch([batch], torch.device("cpu"))
    with torch.no_grad():
        return made.compute_loss(made.model, batch, num_items_in_batch=counts).item()


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_both_read_the_same_tokens_of_the_response_after_their_own_prompts():
    given, made, words = texts(), rows(), tokenizer()
    for text, row in zip(given, made, strict=True):
        response = words(text["completion"])["input_ids"] + [words.eos_token_id]
        for ids, labels, prompt in (("input_ids", "labels", "prompt"), (*TEACHERS[:2], "teacher_prompt")):
            asked = words(text[prompt])["input_ids"]
            assert row[ids] == asked + response
            assert row[labels] == [IGNORED] * len(asked) + response
        assert row["teacher_length"] == len(row["teacher_input_ids"])


def test_a_response_is_cut_for_both_and_rows_too_long_for_the_teacher_are_dropped():
    made = rows(max_length=6, max_prompt_length=5)
    for row in made:
        assert [one for one in row["labels"] if one != IGNORED] == [
            one for one in row["teacher_labels"] if one != IGNORED
        ]
    assert max(made["length"]) == 6
    assert max(rows(teacher_max_length=9)["teacher_length"]) <= 9 < max(rows()["teacher_length"])
    with pytest.raises(ValueError, match="none of the 16 rows is left.*or teacher_max_length=2"):
        rows(teacher_max_length=2)


def test_without_a_teacher_prompt_a_row_is_read_by_both():
    given = [{"prompt": "ask a", "completion": " b", "teacher_prompt": p} for p in (None, "c c c ask")]
    made = tokenize_dataset(Dataset.from_list(given), tokenizer(), max_length=12, max_prompt_length=8)
    assert made[0]["teacher_input_ids"] == made[0]["input_ids"] != made[1]["teacher_input_ids"]


def test_the_first_token_of_a_row_without_a_prompt_is_no_target_for_the_teacher_either(tmp_path):
    """The tokenizer writes no token before a text, so that the student has nothing to predict the first one from."""
    given = [{"prompt": "", "completion": "a b c", "teacher_prompt": p} for p in ("you me one", None, "")] * 4
    made = tokenize_dataset(Dataset.from_list(given), tokenizer())
    assert [made[0][name][-4:] for name in TEACHERS[:2]] == [[3, 4, 5, 1], [IGNORED, 4, 5, 1]]
    assert made[1]["teacher_input_ids"] == made[2]["teacher_input_ids"] == made[1]["input_ids"]
    trainer(tmp_path, data=made, args={"max_steps": 1}).train()


@pytest.mark.parametrize("chat", [False, True])
def test_the_context_of_a_row_is_in_the_prompt_of_the_teacher(chat):
    """Columns from which teacher_prompt was made stay in the data."""

    def asked(text):
        return [{"role": "user", "content": text}] if chat else text

    answer = [{"role": "assistant", "content": " b"}] if chat else " b"
    words = tokenizer()
    words.chat_template = TEMPLATE
    row = {"prompt": asked("ask a"), "completion": answer, "context": "c d", "privileged_context": "d"}
    for given in ("c d ask a", "ask a"):
        data = Dataset.from_list([row | {"teacher_prompt": asked(given)}])
        if given == "ask a":
            with pytest.raises(ValueError, match="row 0 has a value in the column context, which is not written into"):
                tokenize_dataset(data, words, chat_template=chat)
            continue
        made = tokenize_dataset(data, words, chat_template=chat)[0]
        assert "c d" in words.decode(made["teacher_input_ids"])
        assert "c d" not in words.decode(made["input_ids"])


TEMPLATE = (
    "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}{{ 'assistant ' if add_generation_prompt }}"
)


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_turns_of_a_chat_are_written_by_the_template_for_both(column):
    words = byte_level()
    words.chat_template = TEMPLATE
    asked, answer = [{"role": "user", "content": "who"}], [{"role": "assistant", "content": "me"}]
    row = {"messages": asked + answer} if column == "messages" else {"prompt": asked, "completion": answer}
    row["teacher_prompt"] = [{"role": "system", "content": "it was me"}, *asked]
    made = tokenize_dataset(Dataset.from_list([row]), words, chat_template=True)[0]
    assert words.decode(made["input_ids"]).startswith("user who assistant me")
    assert words.decode(made["teacher_input_ids"]).startswith("system it was me user who assistant me")
    assert [i for i in made["labels"] if i != IGNORED] == [i for i in made["teacher_labels"] if i != IGNORED]


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("chunk", [0, 5])
def test_the_loss_is_that_of_each_row_alone(tmp_path, side, chunk):
    """KL(p_t || p_s) of the k-th target of both rows, with EA-KD's weight of each token."""
    collator = TokenCollator(tokenizer(), padding_side=side)
    slots = {"weighting": "entropy(level='item')", "ce_weight": 0.7, "kd_weight": 2.0}
    made = trainer(tmp_path, args={"loss_chunk_size": chunk}, data_collator=collator, **slots)
    assert type(made.task) is TeacherPromptLM
    ce, kd = [], []
    for row in made.train_dataset:
        z, v = both_alone(row, made.model, made.teacher.networks[0])
        labels = torch.tensor([label for label in row["labels"] if label != IGNORED])
        ce.append(F.cross_entropy(z, labels, reduction="none"))
        kl = F.kl_div(z.log_softmax(-1), v.softmax(-1), reduction="none").sum(-1)
        kd.append(kl * torch.tensor([ea_weight(*one) for one in zip(v.double(), z.double(), strict=True)]))
    expected = 0.7 * torch.cat(ce).mean() + 2 * torch.cat(kd).mean()
    assert loss_of(made, list(made.train_dataset)) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    "args", [{}, {"loss_chunk_size": 4}, {"on_policy": 1.0, "on_policy_max_new_tokens": 5}], ids=str
)
def test_with_the_students_prompts_it_is_plain_distillation(tmp_path, args):
    data = texts(8).map(lambda row: {"teacher_prompt": row["prompt"]})
    both = [tokenize_dataset(one, tokenizer()) for one in (data, data.remove_columns("teacher_prompt"))]
    slots = {"temperature": "energy(ratio=0.25)", "weighting": "entropy", "ce_weight": 0.0, "kd_weight": 1.0}
    found = []
    for number, one in enumerate(both):
        made = trainer(tmp_path / str(number), data=one, args=args, **slots)
        made.train()
        found.append((made.model.state_dict(), [e["kd"] for e in made.state.log_history if "kd" in e]))
    assert found[0][1] == found[1][1]
    for name, parameter in found[0][0].items():
        assert torch.equal(parameter, found[1][0][name]), name


def test_parts_of_a_batch_are_the_whole_and_several_teachers_their_mean(tmp_path):
    found = []
    for size in (16, 4):
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size, "max_steps": 1}
        teachers = [taught_model(), language_model(width=24, seed=7)]
        networks = language_model().double(), [one.double() for one in teachers]
        made = trainer(tmp_path / str(size), networks, args=args, weighting="entropy", objective="average")
        made.train()
        found.append(made.model.state_dict())
    for name, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_that_are_padded_already_are_read_without_their_padding(tmp_path, side):
    words = tokenizer()
    words.pad_token, words.padding_side = words.eos_token, side

    def padded(row):
        both = {}
        for whose in ("", "teacher_"):
            ids, labels = row[f"{whose}input_ids"], row[f"{whose}labels"]
            there = words.pad({"input_ids": ids}, padding="max_length", max_length=24)
            none = [IGNORED] * (24 - len(ids))
            both |= {f"{whose}{name}": value for name, value in there.items()}
            both[f"{whose}labels"] = labels + none if side == "right" else none + labels
        return both

    made = trainer(tmp_path, data=rows().map(padded), weighting="entropy")
    assert loss_of(made, list(made.train_dataset)) == pytest.approx(loss_of(made, list(rows())), rel=1e-6)


def test_the_scan_reads_what_the_teacher_reads_in_training(tmp_path):
    made = trainer(tmp_path, temperature="energy(ratio=0.25)", args={"max_steps": 1})
    found = made.scan_training_set(energy_temperature=4.0)
    for row, energy in zip(made.train_dataset, found.energy.tolist(), strict=True):
        v = alone(made.teacher.networks[0], row["teacher_input_ids"], row["teacher_labels"])
        assert energy == pytest.approx((-4 * (v / 4).logsumexp(-1)).mean().item(), rel=1e-4)
    made.train()


def test_it_learns_and_is_evaluated_against_the_teacher_with_its_prompt(tmp_path):
    made = trainer(tmp_path, scored=rows(8, seed=3), args={"max_steps": 15, "evaluate_kl": True}, ce_weight=0.0)
    before = made.evaluate()
    made.train()
    after, each = made.evaluate(), []
    for row in made.eval_dataset:
        z, v = both_alone(row, made.model, made.teacher.networks[0])
        labels = torch.tensor([label for label in row["labels"] if label != IGNORED])
        kl = F.kl_div(z.log_softmax(-1), v.softmax(-1), reduction="none").sum(-1)
        each.append(torch.stack([F.cross_entropy(z, labels, reduction="none"), kl, (v.argmax(-1) == labels).float()]))
    ce, kl, right = torch.cat(each, 1).mean(1).tolist()
    assert (after["eval_loss"], after["eval_kl"]) == pytest.approx((ce, kl), rel=1e-4)
    assert after["eval_kl"] < before["eval_kl"]
    assert made.state.log_history[0]["teacher_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("teachers", [1, 2])
def test_a_teacher_that_only_evaluates_reads_its_prompt_too(tmp_path, teachers):
    """kd_weight=0 with evaluate_kl: the baseline beside a distilled student, against the same teacher."""
    several = [taught_model(), language_model(width=24, seed=7)][:teachers]
    networks = language_model(), several if teachers > 1 else several[0]
    weights = {"ce_weight": 1.0, "kd_weight": 0.0}
    made = trainer(tmp_path, networks, scored=rows(8, seed=3), args={"max_steps": 1, "evaluate_kl": True}, **weights)
    made.train()
    kl = []
    for row in made.eval_dataset:
        z = alone(made.model, row["input_ids"], row["labels"])
        v = torch.stack([alone(one, row["teacher_input_ids"], row["teacher_labels"]) for one in several]).mean(0)
        kl.append(F.kl_div(z.log_softmax(-1), v.softmax(-1), reduction="none").sum(-1))
    assert made.evaluate()["eval_kl"] == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)


def test_the_card_and_the_results_say_that_the_teacher_read_its_own_prompts(tmp_path):
    made = trainer(tmp_path, args={"max_steps": 1})
    made.train()
    made.create_model_card()
    assert made.settings["teacher_prompts"] == "of its own"
    assert "| teacher_prompts | of its own |" in (tmp_path / "README.md").read_text()
    plain = trainer(tmp_path / "plain", data=rows().remove_columns(TEACHERS))
    assert "teacher_prompts" not in plain.settings


def test_evaluation_rows_may_be_the_students_alone(tmp_path):
    made = trainer(tmp_path, scored=rows(6).remove_columns(TEACHERS), args={"max_steps": 1})
    made.train()
    assert made.evaluate()["eval_loss"] > 0


def test_a_token_collator_keeps_its_columns_where_unused_ones_are_removed(tmp_path):
    made = trainer(tmp_path, data_collator=TokenCollator(tokenizer()), args={"remove_unused_columns": True})
    assert "teacher_input_ids" in made.training_collator(list(made.train_dataset))
    packed = [
        {"input_ids": [3, 4, 5, 3, 4, 5], "labels": [3, 4, 5] * 2, "seq_lengths": [3, 3], "index": i} for i in (0, 1)
    ]
    for name, how in (("given", {"data_collator": TokenCollator(tokenizer())}), ("none", {})):
        made = trainer(tmp_path / name, data=Dataset.from_list(packed), args={"remove_unused_columns": True}, **how)
        assert made.training_collator(packed)["position_ids"].tolist() == [[0, 1, 2] * 2] * 2


class Louder(TokenCollator):
    def __call__(self, rows):
        return super().__call__(rows) | {"loud": True}


def test_a_token_collator_of_ones_own_is_refused_instead_of_replaced(tmp_path):
    with pytest.raises(ValueError, match="data_collator=Louder creates batches of the student's tokens only"):
        trainer(tmp_path, data_collator=Louder(tokenizer()))


def test_texts_are_tokenised_for_both(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        made = trainer(tmp_path, data=texts(), args={"max_steps": 1})
    assert "tokenize_dataset(max_length=32" in caplog.text
    assert type(made.task) is TeacherPromptLM
    assert set(TEACHERS) <= set(made.train_dataset.column_names)
    made.train()


def test_rows_that_are_too_long_for_the_teacher_are_left_out_aloud(tmp_path, caplog):
    long = texts(4).map(lambda row: {"teacher_prompt": "c " * 40 + row["teacher_prompt"]})
    with caplog.at_level(logging.WARNING):
        made = trainer(tmp_path, data=concatenate_datasets([texts(), long]))
    assert len(made.train_dataset) == 16
    assert "4 of 20 rows are left out: blank, or longer than the teacher's 32 positions" in caplog.text


def test_the_flag_of_the_teachers_length_is_for_its_prompts_too(tmp_path):
    texts().to_json(tmp_path / "train.jsonl")
    words = tokenizer()
    words.save_pretrained(tmp_path / "network")
    names = (str(tmp_path / "network"),) * 2
    flags = TeacherTokenizerArguments(teacher_max_length=9)
    _, its = flags.both(names, None, DistillationArguments(str(tmp_path / "run"), use_cpu=True))
    made = TextDataArguments(str(tmp_path)).load(words, its, flags.teacher_max_length).train
    assert 0 < len(made) < 16
    assert max(made["teacher_length"]) <= 9
    texts().remove_columns("teacher_prompt").to_json(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match="teacher_max_length=9: student and teacher have the same tokenizer, and the"):
        TextDataArguments(str(tmp_path)).load(words, its, flags.teacher_max_length)


def prompts_of(row):
    """The tokens without a label, of the student and of the teacher."""
    sides = (row["input_ids"], row["labels"]), (row["teacher_input_ids"], row["teacher_labels"])
    return [[token for token, label in zip(*side, strict=True) if label == IGNORED] for side in sides]


@pytest.mark.parametrize(
    ("by", "weights"),
    [
        ({"on_policy": 1.0}, {"ce_weight": 0.0}),
        ({"seq_kd": True}, {"ce_weight": 0.0}),
        ({"seq_kd": True}, {"ce_weight": 1.0, "kd_weight": 0.0}),  # the teacher does nothing but write
    ],
    ids=["student", "teacher", "teacher-alone"],
)
def test_a_generated_response_follows_both_prompts(tmp_path, by, weights):
    args = {"max_steps": 1, "on_policy_max_new_tokens": 5, "log_completions": True, "per_device_train_batch_size": 16}
    made = trainer(tmp_path, args=args | by, **weights)
    given, words = list(made.train_dataset), tokenizer()
    (batch,) = made.written([made.training_collator(given)], 0)
    for place, row in enumerate(given):
        read = [
            batch[f"{whose}input_ids"][place][batch[f"{whose}attention_mask"][place] == 1] for whose in ("", "teacher_")
        ]
        asked = prompts_of(row)
        assert [ids[: len(prompt)].tolist() for ids, prompt in zip(read, asked, strict=True)] == asked
        responses = [ids[len(prompt) :].tolist() for ids, prompt in zip(read, asked, strict=True)]
        assert responses[0] == responses[1] != []
        alone = made.written.write(
            *((made.model, asked[:1]) if "on_policy" in by else (made.teacher.model, asked[1:])), [place], 0
        )
        assert alone == responses[:1]
    made.train()
    for line in (tmp_path / "completions" / "step-1.jsonl").read_text().splitlines():
        kept = json.loads(line)
        assert [kept["prompt"], kept["teacher_prompt"]] == [words.decode(one) for one in prompts_of(given[kept["row"]])]


@pytest.mark.parametrize("tokenised", [True, False])
def test_each_network_needs_positions_for_its_own_prompts_alone(tmp_path, tokenised):
    """A small student with few positions, and a teacher with many: what the student is to do without is long."""
    long = texts(8).map(lambda row: {"teacher_prompt": "c " * 20 + row["teacher_prompt"]})
    data = tokenize_dataset(long, tokenizer(), max_length=16, max_prompt_length=8)
    data = data if tokenised else data.remove_columns(["prompt_length", "length", "teacher_length"])
    args = {"on_policy": 1.0, "on_policy_max_new_tokens": 8, "max_steps": 1}
    networks = language_model(positions=16), language_model(seed=1, positions=64)
    trainer(tmp_path, networks, data, args=args, ce_weight=0.0).train()
    with pytest.raises(ValueError, match="the row may take 3[0-9] positions, but the networks have 36"):
        trainer(tmp_path / "few", (networks[0], language_model(positions=36)), data, args=args, ce_weight=0.0)


# ---- what else -----------------------------------------------------------------------------------------------------


def extended(**special):
    words = tokenizer()
    words.add_special_tokens(special)
    return words


def test_a_tokenizer_with_a_token_more_is_not_another(tmp_path):
    """A pad token that was added to one of them, as is common: the columns were left out without a word."""
    networks, words = (language_model(vocab=16), taught_model(vocab=16)), extended(pad_token="<pad>")
    for number, (mine, its) in enumerate([(words, tokenizer()), (tokenizer(), words)]):
        both = {"processing_class": mine, "teacher_processing_class": its}
        made = trainer(tmp_path / str(number), networks, args={"max_steps": 1}, **both)
        assert type(made.task) is TeacherPromptLM
        stream = rows(8).to_iterable_dataset().map(dict)
        late = trainer(tmp_path / f"{number}-stream", networks, data=stream, args={"max_steps": 1}, **both)
        with pytest.raises(ValueError, match="the rows have teacher_input_ids, which only the teacher reads"):
            late.train()


def test_a_row_too_long_for_one_of_several_teachers_is_named(tmp_path):
    """It came later, in rows without teacher_length, and ended the run with an IndexError."""
    long = {name: [value] * 40 for name, value in (("teacher_input_ids", 3), ("teacher_labels", IGNORED))}
    data = [dict(row) for row in rows(6).remove_columns("teacher_length")]
    data[5] |= {name: start + data[5][name] for name, start in long.items()}
    networks = language_model(), [language_model(seed=1, positions=64), language_model(seed=2)]
    made = trainer(tmp_path, networks, data, objective="average", args={"max_steps": 3})
    with pytest.raises(ValueError, match="a row has [0-9]+ tokens, but GPT2LMHeadModel has 32 positions"):
        made.train()


def test_columns_that_a_stream_does_not_name_are_refused_at_its_first_batch(tmp_path):
    stream = rows(8).to_iterable_dataset().map(dict)
    made = trainer(tmp_path, data=stream, args={"max_steps": 1})
    with pytest.raises(ValueError, match="the rows have teacher_input_ids, which only the teacher reads"):
        made.train()


def test_with_two_tokenizers_the_teacher_reads_its_prompt_too():
    given = Dataset.from_list([{"prompt": "Tell: ", "completion": "the cat", "teacher_prompt": "Say the cat: "}] * 2)
    row = tokenize_for_both(given, byte_level(), sentencepiece(), max_length=40, max_prompt_length=20)[0]
    its = sentencepiece()("Say the cat: ")["input_ids"]
    assert row["teacher_input_ids"][: len(its)] == its
    assert row["teacher_byte_ends"][: len(its)] == [-1] * len(its)
    assert row["byte_ends"][-1] == row["teacher_byte_ends"][-1] == len("the cat") + 1


JOB = {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "max_steps": 3, "evaluate_kl": True}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"on_policy": 1.0, "ce_weight": 0.0, "on_policy_max_new_tokens": 5}], ids=str)
def test_two_ranks_and_accumulation_are_one_process(tmp_path, more):
    found = {}
    for way in ("1 x 8", "1 x 4 x 2", "2 x 4"):
        count, split = SPLITS[way]
        found[way] = on_ranks(tmp_path / way, count, "teacher_prompt_toys.py", JOB | more, **split)
    parameters, record = found.pop("1 x 8")
    for others, other in found.values():
        for name, parameter in parameters.items():
            torch.testing.assert_close(others[name], parameter, rtol=0, atol=1e-9)
        assert other["thresholds"] == pytest.approx(record["thresholds"], abs=1e-6)
        for name in ("eval_loss", "eval_kl"):
            assert other["scores"][name] == pytest.approx(record["scores"][name], abs=1e-9)
