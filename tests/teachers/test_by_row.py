"""A teacher for each row, named in its column `teacher`: against logits computed by hand, row by row."""

import logging

import pytest
import torch
from datasets import Dataset
from processes import on_ranks
from row_teacher_toys import NamedRows, named_tokens, of_kind, specialists, writers
from task_toys import KINDS
from text_tokenizer import word_tokenizer
from text_toys import VOCAB, language_model, taught_model, token_dataset, tokenizer
from torch import nn
from toys import CLASSES, Net, Rows, arguments
from transformers import DataCollatorWithPadding

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator
from hfkd.data.text_collate import TokenCollator
from hfkd.models import InputSpec
from hfkd.teachers import FrozenTeacher, TeacherByRow

ENERGY = {"temperature": "energy(ratio=0.3)", "weighting": "entropy"}
METHODS = [{}, {"weighting": "entropy"}, ENERGY | {"objective": "dkd"}]


class Answered(NamedRows):
    """The same rows with the logits of their own teacher, which a single network hands on."""

    def __init__(self, teachers, **keywords):
        super().__init__(**keywords)
        with torch.no_grad():
            self.logits = [teachers[self.name_of(i)](self.images[i][None])[0] for i in range(len(self))]

    def __getitem__(self, i):
        return super().__getitem__(i) | {"teacher_logits": self.logits[i]}


class HandsOn(nn.Module):
    def forward(self, teacher_logits):
        return teacher_logits


def trained(folder, teachers, rows, student=None, **keywords):
    others = ("objective", "temperature", "weighting", "data_collator")
    slots = {name: keywords.pop(name) for name in others if name in keywords}
    trainer = DistillationTrainer(
        student or Net(), teachers, arguments(folder, **keywords), train_dataset=rows, **slots
    )
    trainer.train()
    return trainer


def same(one, other, **close):
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return all(torch.allclose(ours[name], theirs[name], **close) for name in ours)


@pytest.mark.parametrize("slots", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_image_is_taught_by_its_own_teacher(tmp_path, slots, accumulation):
    made = specialists()
    keywords = slots | {"gradient_accumulation_steps": accumulation, "dataloader_drop_last": True}
    ours = trained(tmp_path / "ours", made, NamedRows(), **keywords)
    by_hand = trained(tmp_path / "by_hand", HandsOn(), Answered(specialists()), **keywords)
    assert same(ours, by_hand, rtol=1e-4, atol=1e-6)
    alone = trained(tmp_path / "alone", specialists()["photos"], NamedRows(), **keywords)
    assert not same(ours, alone, rtol=1e-3, atol=1e-5)


def test_rows_of_one_teacher_are_trained_as_by_it_alone(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = NamedRows(name_of=lambda i: "photos")
    ours = trained(tmp_path / "ours", specialists(), rows, weighting="entropy")
    alone = trained(tmp_path / "alone", specialists()["photos"], rows, weighting="entropy")
    assert same(ours, alone, rtol=0, atol=0)
    assert not same(ours, trained(tmp_path / "other", specialists()["drawings"], rows, weighting="entropy"))


def test_each_network_runs_on_its_own_rows_and_is_left_as_it_was(tmp_path):
    made, seen = specialists(), {"photos": 0, "drawings": 0}

    def count(name):
        return lambda module, given, output: seen.update({name: seen[name] + len(given[0])})

    trainer = DistillationTrainer(Net(), made, arguments(tmp_path), train_dataset=NamedRows())
    hooks = [net.register_forward_hook(count(name)) for name, net in made.items()]
    trainer.train()
    assert sum(seen.values()) == 3 * 8
    assert 0 < seen["drawings"] < seen["photos"]
    for hook in hooks:
        hook.remove()
    assert all(p.requires_grad for net in made.values() for p in net.parameters())
    assert all(net.training for net in made.values())


class Mirrored(NamedRows):
    """Two views of each image."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": torch.stack([row["pixel_values"], row["pixel_values"].flip(-1)])}


def test_each_view_of_an_image_has_the_teacher_of_the_image(tmp_path):
    made = specialists()
    trainer = trained(tmp_path, made, Mirrored(), objective="mld", ce_weight=1.0)
    batch = trainer.as_networks_take_it(next(iter(trainer.get_train_dataloader())), True)
    assert len(batch["pixel_values"]) == 2 * len(batch["labels"]) == 16
    taught, names = trainer.teacher(**batch), list(made)
    for image, which, logits in zip(batch["pixel_values"], batch["which_teacher"].tolist(), taught, strict=True):
        torch.testing.assert_close(logits, made[names[which]](image[None])[0].detach(), rtol=1e-4, atol=1e-4)


def test_trials_have_the_same_teachers(tmp_path):
    def anew():
        return Net()

    args, rows = arguments(tmp_path, **ENERGY), NamedRows()
    searched = DistillationTrainer(None, TeacherByRow(specialists()), args, model_init=anew, train_dataset=rows)
    searched.train()
    first = {name: value.clone() for name, value in searched.model.state_dict().items()}
    searched.train()
    assert all(torch.equal(value, first[name]) for name, value in searched.model.state_dict().items())
    assert same(searched, trained(tmp_path / "plain", specialists(), rows, student=anew(), **ENERGY), rtol=0, atol=0)


def test_without_distillation_rows_name_no_teacher(tmp_path):
    trained(tmp_path, specialists(), Rows(), kd_weight=0.0, ce_weight=1.0)


def test_teachers_that_expect_other_images_get_these():
    made = specialists()
    mine = InputSpec((0.5,) * 3, (0.5,) * 3, None)
    wanted = InputSpec((0.4,) * 3, (0.2,) * 3, None)
    given = {
        "photos": FrozenTeacher(made["photos"], mine, mine),
        "drawings": FrozenTeacher(made["drawings"], mine, wanted),
    }
    images = Rows(4).images
    out = TeacherByRow(given)(pixel_values=images, which_teacher=torch.tensor([1, 0, 0, 1]))
    for i, which in enumerate([1, 0, 0, 1]):
        image = images[i][None]
        wants = made["drawings"]((image * 0.5 + 0.5 - 0.4) / 0.2) if which else made["photos"](image)
        torch.testing.assert_close(out[i : i + 1], wants.detach(), rtol=1e-4, atol=1e-4)


# ---- language --------------------------------------------------------------------------------------------------------


class ByIndex(nn.Module):
    """The two language models as one network, which runs both on all rows and looks up whose row it is."""

    def __init__(self, networks, names):
        super().__init__()
        self.networks, self.names = nn.ModuleDict(networks), names

    def forward(self, input_ids, attention_mask, position_ids, teacher_row):
        both = {
            name: net(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
            for name, net in self.networks.items()
        }
        return torch.stack([both[self.names[int(row)]][place] for place, row in enumerate(teacher_row)])


def with_row_numbers(collate):
    def collated(rows):
        return collate(rows) | {"teacher_row": torch.tensor([row["index"] for row in rows])}

    return collated


@pytest.mark.parametrize("slots", [ENERGY, {"objective": "skew_reverse_kl"}, {"weighting": "entropy"}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_text_is_taught_by_its_own_teacher(tmp_path, slots, accumulation):
    rows, keywords = named_tokens(), {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4}
    ours = trained(tmp_path / "ours", writers(), rows, language_model(), **slots, **keywords)
    by_hand = DistillationTrainer(
        language_model(),
        ByIndex(writers(), rows["teacher"][:]),
        arguments(tmp_path / "by_hand", **keywords),
        train_dataset=rows,
        data_collator=with_row_numbers(TokenCollator(0)),
        **slots,
    )
    by_hand.train()
    assert same(ours, by_hand, rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, by_hand)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_vocabularies_padded_to_other_sizes(tmp_path):
    wide = taught_model(32, VOCAB + 3)
    rows = token_dataset(24).add_column("teacher", ["wide" if i % 3 == 0 else "maths" for i in range(24)])
    made = {"maths": taught_model(), "wide": wide}
    args = arguments(tmp_path, per_device_train_batch_size=4)
    trainer = DistillationTrainer(
        language_model(), made, args, train_dataset=rows, temperature="energy", processing_class=tokenizer()
    )
    trainer.train()
    assert trainer.num_classes == VOCAB
    assert len(trainer.scan_result.energy) == 24


def test_raw_texts_keep_the_name_of_their_teacher(tmp_path):
    rows = Dataset.from_list(
        [
            {"prompt": "w3 w4", "completion": " w5 w6", "teacher": name}
            for name in ("maths", "code", "maths", "code") * 4
        ]
    )
    trainer = DistillationTrainer(
        language_model(), writers(), arguments(tmp_path), train_dataset=rows, processing_class=tokenizer()
    )
    assert trainer.train_dataset["teacher"][:4] == ["maths", "code", "maths", "code"]
    trainer.train()


def test_responses_of_the_student_go_to_the_teacher_of_the_prompt(tmp_path):
    made = writers()
    seen = {name: [] for name in made}
    for name, net in made.items():
        net.register_forward_hook(
            lambda module, given, keywords, output, name=name: seen[name].append(keywords["input_ids"]),
            with_kwargs=True,
        )
    rows = Dataset.from_list(
        [
            {"input_ids": [3 + i % 2, 5, 6, 7], "labels": [-100, -100, 6, 7], "index": i, "teacher": name}
            for i, name in enumerate(("maths", "code") * 8)
        ]
    )
    args = arguments(tmp_path, on_policy=1.0, ce_weight=0.0, on_policy_max_new_tokens=4)
    trainer = DistillationTrainer(language_model(), made, args, train_dataset=rows, processing_class=tokenizer())
    for one in seen.values():
        one.clear()
    trainer.train()
    assert {int(row[0]) for ids in seen["maths"] for row in ids} == {3}
    assert {int(row[0]) for ids in seen["code"] for row in ids} == {4}


def distil_texts(folder, size):
    args = arguments(folder, per_device_train_batch_size=size, **ENERGY)
    parts = {"train_dataset": named_tokens(), "processing_class": tokenizer()}
    trainer = DistillationTrainer(language_model(), writers(), args, **parts)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), f"{folder}/student.pt")


@pytest.mark.slow
def test_two_ranks_whose_rows_have_other_teachers(tmp_path):
    found = []
    for ranks, size in ((1, 8), (2, 4)):
        folder = tmp_path / str(ranks)
        assert on_ranks(tmp_path / "log", ranks, distil_texts, str(folder), size) == [0] * ranks
        found.append(torch.load(folder / "student.pt"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-6, msg=name)


# ---- all tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name != "LLaVA"])
def test_of_each_task_rows_get_the_answers_of_their_own_teacher(tmp_path, name):
    made, keywords = of_kind(KINDS[name])
    args = arguments(tmp_path, max_steps=1, channels_last=False)
    trainer = DistillationTrainer(KINDS[name].network(), made, args, weighting="entropy", **keywords)
    batch = trainer.as_networks_take_it(next(iter(trainer.get_train_dataloader())), True)
    assert set(batch["which_teacher"].tolist()) == {0, 1}
    alone = [FrozenTeacher(net)(**batch) for net in made.values()]
    ours = trainer.teacher(**batch)
    for row, which in enumerate(batch["which_teacher"].tolist()):
        torch.testing.assert_close(ours[row], alone[which][row])
    trainer.train()


class Shuffled:
    """A user's collator that sorts the rows by label, and says which teacher each has."""

    def __init__(self, names):
        self.names = names

    def __call__(self, rows):
        rows = sorted(rows, key=lambda row: row["labels"])
        numbers = torch.tensor([self.names.index(row["teacher"]) for row in rows])
        return ImageCollator()(rows) | {"which_teacher": numbers}


def test_a_collator_that_sorts_rows_says_whose_they_are(tmp_path):
    made, slots = specialists(), {"weighting": "entropy", "dataloader_drop_last": True}
    plain = trained(tmp_path / "plain", made, NamedRows(), **slots)
    sorts = trained(tmp_path / "sorts", specialists(), NamedRows(), data_collator=Shuffled(list(made)), **slots)
    assert same(plain, sorts, rtol=1e-4, atol=1e-6)


def test_collators_of_transformers(tmp_path):
    """Their batches are no dicts."""
    kind = KINDS["BERT, a label a row"]
    made, keywords = of_kind(kind)
    keywords["data_collator"] = DataCollatorWithPadding(word_tokenizer(pad_token="<s>"))
    trainer = DistillationTrainer(kind.network(), made, arguments(tmp_path, max_steps=1), **keywords)
    trainer.train()
    assert set(next(iter(trainer.get_train_dataloader()))["which_teacher"].tolist()) == {0, 1}


def test_no_token_is_masked_for_prediction(tmp_path):
    made, _ = of_kind(KINDS["BERT, masked"])
    rows = Dataset.from_list(
        [{"input_ids": [3 + (i + j) % 9 for j in range(12)], "teacher": "ab"[i % 2]} for i in range(16)]
    )
    words = word_tokenizer(pad_token="<end>", mask_token="<s>")
    trainer = DistillationTrainer(
        KINDS["BERT, masked"].network(), made, arguments(tmp_path), train_dataset=rows, processing_class=words
    )
    trainer.train()
    found = torch.tensor(trainer.predict(rows).predictions)
    whole = trainer.model(input_ids=torch.tensor(rows["input_ids"][:])).logits.detach()
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


# ---- evaluation, records ---------------------------------------------------------------------------------------------


def test_the_accuracy_is_that_of_each_rows_teacher(tmp_path):
    made, rows = specialists(), NamedRows(40, seed=3)
    trainer = DistillationTrainer(
        Net(), made, arguments(tmp_path), train_dataset=NamedRows(), eval_dataset=rows, weighting="entropy"
    )
    trainer.train()
    found = next(e["teacher_accuracy"] for e in trainer.state.log_history if "teacher_accuracy" in e)
    right = [int(made[row["teacher"]](row["pixel_values"][None]).argmax()) == row["labels"] for row in rows]
    assert found == pytest.approx(sum(right) / len(right))


def test_evaluation_rows_need_no_teacher_unless_it_is_compared(tmp_path):
    parts = {"train_dataset": NamedRows(), "eval_dataset": Rows(8)}
    trainer = DistillationTrainer(Net(), specialists(), arguments(tmp_path / "a"), **parts)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    assert not any("teacher_accuracy" in entry for entry in trainer.state.log_history)
    parts["eval_dataset"] = NamedRows(8)
    trainer = DistillationTrainer(Net(), specialists(), arguments(tmp_path / "c", evaluate_kl=True), **parts)
    assert trainer.evaluate()["eval_kl"] > 0


def some_without(i):
    return None if i % 5 == 0 else "photos"


def test_evaluation_rows_of_which_some_name_a_teacher(tmp_path):
    parts = {"train_dataset": NamedRows(), "eval_dataset": NamedRows(40, some_without)}
    trainer = DistillationTrainer(Net(), specialists(), arguments(tmp_path), **parts)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    assert not any("teacher_accuracy" in entry for entry in trainer.state.log_history)


def test_a_run_with_the_names_exchanged_is_another_run(tmp_path):
    trainer = trained(tmp_path, specialists(), NamedRows(), save_strategy="steps", save_steps=1)
    assert trainer.record.teacher.startswith("photos: Net (")
    photos, drawings = specialists().values()
    with pytest.raises(ValueError, match="another run"):
        DistillationTrainer(
            Net(), {"photos": drawings, "drawings": photos}, arguments(tmp_path), train_dataset=NamedRows()
        )


# ---- refused ---------------------------------------------------------------------------------------------------------


def refused(tmp_path, teachers, rows, match, student=None, **keywords):
    with pytest.raises(ValueError, match=match):
        DistillationTrainer(student or Net(), teachers, arguments(tmp_path, **keywords), train_dataset=rows)


def test_a_teacher_that_no_row_names_is_said(tmp_path, caplog):
    rows = token_dataset(8).add_column("teacher", ["maths"] * 8)
    DistillationTrainer(language_model(), writers(), arguments(tmp_path), train_dataset=rows)
    assert "No row of train_dataset names 'code' in its column 'teacher': this teacher does not run." in caplog.text


class Flat(nn.Sequential):
    """Takes images of 4 by 4 pixels."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 4 * 4, CLASSES))


def test_each_teacher_is_tried_when_the_trainer_is_built(tmp_path):
    """The first rows are all of one teacher, and the other has other classes, or NaN in its weights."""
    rows = NamedRows(name_of=lambda i: "photos" if i < 8 else "drawings")
    other = specialists()
    other["drawings"] = Net(16, CLASSES + 1)
    refused(tmp_path, other, rows, "classes")
    broken = specialists()
    with torch.no_grad():
        broken["drawings"].head.bias[0] = torch.nan
    refused(tmp_path, broken, rows, "NaN or infinite")
    refused(tmp_path, specialists() | {"drawings": Flat()}, rows, "the teacher, a Flat, cannot process")


def test_rows_of_a_later_batch_that_name_none(tmp_path):
    rows = NamedRows(name_of=lambda i: None if i > 8 else "photos")
    trainer = DistillationTrainer(Net(), specialists(), arguments(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="name one in each row's column 'teacher'"):
        trainer.train()


class Louder(TeacherByRow):
    def forward(self, *arguments, **inputs):
        return 2 * super().forward(*arguments, **inputs)


def test_a_subclass_whose_own_code_would_not_run(tmp_path):
    refused(tmp_path, Louder(specialists()), NamedRows(), "what Louder computes itself would have no effect")


def test_inputs_that_are_not_one_for_each_row():
    both = TeacherByRow(specialists())
    with pytest.raises(ValueError, match="does not say which teacher each row has, among photos, drawings"):
        both(pixel_values=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"which_teacher=\[0, 2\] must be numbers of the 2 teachers, from 0"):
        both(pixel_values=torch.zeros(2, 3, 8, 8), which_teacher=torch.tensor([0, 2]))
    texts, ids = TeacherByRow(writers()), torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"position_ids of the shape \(2, 2, 4\) cannot be divided among the teachers of its 2 rows"
    ):
        texts(input_ids=ids, position_ids=torch.zeros(2, 2, 4), which_teacher=torch.tensor([0, 1]))
