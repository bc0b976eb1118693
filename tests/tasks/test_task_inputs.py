"""What a task makes of further inputs: several pictures of a row, multi-hot labels, positions, its name on the Hub."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from task_toys import CLASSES, KINDS, LONG, VOCAB, padded, roberta, tokenizer, vit
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.models import InputSpec
from hfkd.models.calling import Call
from hfkd.teachers import FrozenTeacher
from hfkd.training.validation.label_maps import label_names_of_data

LABELS_ONLY = {"ce_weight": 1.0, "kd_weight": 0.0, "max_steps": 1}
TAGS = {
    "BERT, masked": "fill-mask",
    "BERT, a label a row": "text-classification",
    "BERT, several labels": "text-classification",
    "BERT, a label a token": "token-classification",
    "AST": "audio-classification",
    "Wav2Vec2": "audio-classification",
    "ViT": "image-classification",
    "ViT, several labels": "image-classification",
    "T5": "text2text-generation",
    "Whisper": "automatic-speech-recognition",
    "GPT-2": "text-generation",
    "LLaVA": "image-text-to-text",
}


@pytest.mark.parametrize("name", TAGS)
def test_the_card_says_what_the_hub_calls_it(tmp_path, name):
    kind = KINDS[name]
    student = kind.network()
    made = DistillationTrainer(student, None, arguments(tmp_path, **LABELS_ONLY), **kind.keywords())
    made.create_model_card()
    assert f"pipeline_tag: {TAGS[name]}\n" in (tmp_path / "README.md").read_text()
    assert made.task.hub_tag(Call.of(student)) == TAGS[name]


class Pictured(torch.nn.Module):
    """Text, and two pictures of each row."""

    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, VOCAB)

    def forward(self, input_ids, pixel_values):
        assert pixel_values.shape[1:] == (2, 3, 8, 8)
        return self.head(self.words(input_ids) + pixel_values.mean((1, 2, 3, 4))[:, None, None])


def test_several_pictures_of_a_text_are_no_views(tmp_path):
    rows = [row | {"pixel_values": torch.stack([row["pixel_values"]] * 2)} for row in KINDS["LLaVA"].rows()]
    keywords = {"train_dataset": rows, "eval_dataset": rows, "data_collator": padded}
    settings = arguments(tmp_path, task="causal_lm", max_steps=1)
    made = DistillationTrainer(Pictured(), Pictured(), settings, **keywords)
    made.train()
    assert made.evaluate()["eval_loss"] > 0


# ---- multi-hot labels -------------------------------------------------------------------------------------------


def tagged(folder, label, kind="BERT, several labels"):
    made = KINDS[kind]
    rows = [row | {"labels": label} for row in made.rows()]
    return DistillationTrainer(
        made.network(), None, arguments(folder, **LABELS_ONLY), train_dataset=rows, processing_class=tokenizer()
    )


def test_whole_numbers_are_taken_for_yes_and_no(tmp_path):
    losses = [
        tagged(tmp_path / str(i), label).train().training_loss for i, label in enumerate(([1, 0, 1], [1.0, 0.0, 1]))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("label", [[2, 0, 1], [-100, 0, 1], [0.5, -1.0, 0.0]])
def test_other_numbers_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match="labels of row 0 of the batch must be from 0 to 1"):
        tagged(tmp_path / "run", label)
    assert not (tmp_path / "run").exists()


def test_a_number_that_comes_later_is_refused_in_its_batch(tmp_path):
    kind = KINDS["BERT, several labels"]
    rows = [row | {"labels": [1, 0, 2 if i == 7 else 1]} for i, row in enumerate(kind.rows())]
    settings = arguments(tmp_path, **LABELS_ONLY)
    made = DistillationTrainer(kind.network(), None, settings, train_dataset=rows, processing_class=tokenizer())
    with pytest.raises(ValueError, match="the label 2 of row 7"):
        made.train()


def test_several_views_of_an_image_have_its_labels(tmp_path):
    """The losses of the views add up, as for one label an image."""
    student = vit(8, problem_type="multi_label_classification").eval()
    rows = KINDS["ViT, several labels"].rows()
    twice = [row | {"pixel_values": torch.stack([row["pixel_values"]] * 2)} for row in rows]
    losses = [
        DistillationTrainer(
            student, None, arguments(tmp_path / str(i), **LABELS_ONLY, learning_rate=1e-9), train_dataset=data
        )
        .train()
        .training_loss
        for i, data in enumerate((rows, twice))
    ]
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)


def test_a_class_of_something_else_does_not_name_the_labels():
    """A ClassLabel beside multi-hot labels, of another number of classes."""
    features = Features({"genre": ClassLabel(names=["prose", "verse"]), "labels": Sequence(Value("float32"), CLASSES)})
    data = Dataset.from_dict({"genre": [0, 1], "labels": [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]}, features)
    assert label_names_of_data(data, lambda rows: {"labels": torch.tensor([row["labels"] for row in rows])}) is None


# ---- positions --------------------------------------------------------------------------------------------------


def test_the_positions_of_padding_are_no_tokens(tmp_path):
    """RoBERTa counts from behind its padding's id: of LONG + 2 positions LONG are a text's."""
    rows = [{"input_ids": [4] * n, "labels": [5] * n, "length": n} for n in (LONG, LONG + 1)]
    keywords = {"processing_class": tokenizer()}
    for count, message in ((1, None), (2, f"has {LONG + 1} tokens, but RobertaForMaskedLM has {LONG} positions")):
        settings, data = arguments(tmp_path / str(count), **LABELS_ONLY), Dataset.from_list(rows[:count])
        if message is None:
            DistillationTrainer(roberta(8), None, settings, train_dataset=data, **keywords).train()
            continue
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(roberta(8), None, settings, train_dataset=data, **keywords)


def test_a_teacher_of_pictured_text_is_given_the_pixels_that_its_student_gets(tmp_path):
    kind, seen = KINDS["LLaVA"], []
    net = kind.network()
    net.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["pixel_values"].shape), with_kwargs=True
    )
    teacher = FrozenTeacher(net, wanted=InputSpec((0.5,) * 3, (0.5,) * 3, (4, 4)))  # as a saved processor may say
    made = DistillationTrainer(kind.network(), teacher, arguments(tmp_path, max_steps=1), **kind.keywords())
    made.train()
    assert {tuple(shape[-2:]) for shape in seen} == {(8, 8)}


@pytest.mark.parametrize("objective", ["dist", "mld"])
def test_labels_of_a_row_are_not_compared_with_each_other(tmp_path, objective):
    kind = KINDS["BERT, several labels"]
    with pytest.raises(ValueError, match="compares the items of a batch class by class, but the items of multi_label"):
        DistillationTrainer(kind.network(), kind.network(), arguments(tmp_path, objective=objective), **kind.keywords())
