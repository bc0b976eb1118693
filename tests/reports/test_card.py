"""The model card is true: metrics of the saved weights, no base for fresh ones, no method without distillation."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset
from detection_toys import boxed, detector
from huggingface_hub import ModelCard
from peft import LoraConfig
from task_toys import KINDS, padded
from text_toys import TokenRows, language_model, tokenizer
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import BertForSequenceClassification, GPT2LMHeadModel, TrainerState

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.masks import MaskTransform
from hfkd.data.transforms import pack_pixels
from hfkd.models import Peers, image_classifier, image_processor, prune_layers
from hfkd.reports.card import FILE, evaluation


def card(folder):
    return ModelCard.load(folder / FILE)


def trained(folder, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "kd_weight", "ce_weight") if k in keywords}
    taught = None if slots.get("kd_weight") == 0 else teacher()
    args = arguments(folder, eval_strategy="steps", eval_steps=1, **keywords)
    trainer = DistillationTrainer(Net(), taught, args, train_dataset=Rows(), eval_dataset=Rows(8), **slots)
    trainer.train()
    return trainer


def test_a_bare_module_and_a_data_set_nobody_named(tmp_path):
    trained(tmp_path, model_license="apache-2.0").create_model_card(tags=["mine"])
    data, text = card(tmp_path).data.to_dict(), card(tmp_path).text
    assert data["library_name"] == "pytorch"
    assert data["tags"] == ["hfkd", "knowledge-distillation", "mine"]
    assert data["license"] == "apache-2.0"
    assert "model-index" not in data
    assert "datasets" not in data
    assert "base_model" not in data
    assert "model.load_state_dict" in text
    assert "| loss | " in text
    assert "the evaluation split" not in text


def test_a_student_without_a_config_has_its_class_names_in_the_card(tmp_path):
    names = ("sky", "road", "car")
    rows = {"image": [np.zeros((6, 9, 3), dtype=int).tolist()] * 2, "labels": [np.eye(6, 9, dtype=int).tolist()] * 2}
    data = Dataset.from_dict(rows | {"index": [0, 1]}).with_transform(MaskTransform(label_names=names))
    args = arguments(tmp_path, task="semantic_segmentation", ce_weight=1.0, kd_weight=0.0)
    DistillationTrainer(nn.Conv2d(3, 3, 1), None, args, train_dataset=data).create_model_card()
    assert "| classes | `sky, road, car`, in the order of its outputs |" in card(tmp_path).text
    assert (
        "| images | mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225), of values from 0 to 1" in card(tmp_path).text
    )


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"chat_template": True, "prompts_with_template": False}, "by the tokenizer's chat template"),
        ({"chat_template": False, "prompts_with_template": True}, "by the tokenizer's chat template"),
        ({"chat_template": False}, "as they are, instructions in `hfkd.data.instructions.instruction_prompt`; not in"),
    ],
)
def test_the_card_says_how_the_prompts_were_written(tmp_path, details, said):
    """A saved tokenizer may have a chat template that the student has never seen."""
    args = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0)
    trainer = DistillationTrainer(language_model(), None, args, processing_class=tokenizer(), train_dataset=TokenRows())
    trainer.details = details | {"max_length": 24}
    trainer.create_model_card()
    assert f"| prompts | {said}" in card(tmp_path).text
    assert "| max_length | 24 |" in card(tmp_path).text


def test_the_card_of_a_detector_has_the_sizes_that_its_weights_do_not_have(tmp_path):
    args = arguments(tmp_path, task="object_detection", ce_weight=1.0, kd_weight=0.0)
    DistillationTrainer(detector(), None, args, train_dataset=boxed()).create_model_card()
    assert (
        "| images | resized by the network (min_size=(48,), max_size=72) and normalised by it (mean (0.485, "
        in card(tmp_path).text
    )


def test_a_timm_model_of_its_own_too_and_a_compiled_one_is_loaded_as_it_is_saved(tmp_path):
    rows = {"pixels": [pack_pixels(np.zeros((8, 8, 3), np.uint8))] * 3, "labels": [0, 1, 2], "index": [0, 1, 2]}
    data = Dataset.from_dict(rows).cast_column("labels", ClassLabel(names=["bird", "cat", "dog"]))
    data = data.with_transform(ImageTransform())
    for name in ("bare", "compiled"):
        student = image_classifier("cifar_resnet8", 3)
        student = student.timm_model if name == "bare" else torch.compile(student, backend="eager")
        args = arguments(tmp_path / name, ce_weight=1.0, kd_weight=0.0)
        DistillationTrainer(student, None, args, train_dataset=data).create_model_card()
    assert "| classes | `bird, cat, dog`, in the order of its outputs |" in card(tmp_path / "bare").text
    assert card(tmp_path / "compiled").data.library_name == "transformers"
    assert "model = AutoModelForImageClassification.from_pretrained(" in card(tmp_path / "compiled").text
    assert "OptimizedModule" not in card(tmp_path / "compiled").text


def run_example(folder):
    """What the card's example leaves, with the folder in place of the repository."""
    example = card(folder).text.split("```python\n")[1].split("```")[0]
    made = {}
    exec(example.replace(f'"{folder.name}"', repr(str(folder))), made)
    return made


def labels_alone(folder, student, kind, **keywords):
    args = arguments(folder, task=kind.task, ce_weight=1.0, kd_weight=0.0)
    given = kind.keywords(dtype=torch.float32) | keywords
    trainer = DistillationTrainer(student, None, args, **given)
    trainer.save_model()
    trainer.create_model_card()
    return trainer


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("stored", [2, 5])  # classes of the base model, whose head is not the student's
def test_the_example_of_adapters_builds_their_head(tmp_path, stored):
    kind, names = KINDS["BERT, a label a row"], ["bird", "cat", "dog"]
    base = kind.network(dtype=torch.float32)
    base.config.num_labels = stored
    (base.bert if stored == 2 else BertForSequenceClassification(base.config)).save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(
        tmp_path / "base", id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
    )
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, init_lora_weights=False)
    trainer = labels_alone(tmp_path / "student", base, kind, peft_config=config)
    written = card(tmp_path / "student").content
    trainer.save_model()  # PEFT writes a card too
    assert card(tmp_path / "student").content == written
    inputs = torch.tensor([[3, 4, 5]])
    loaded = run_example(tmp_path / "student")
    with torch.no_grad():
        expected, found = (model.eval()(inputs).logits for model in (trainer.model, loaded["model"]))
    assert torch.equal(found, expected)
    words = loaded["tokenizer"], trainer.saved_processor
    assert words[0]("a b c")["input_ids"] == words[1]("a b c")["input_ids"]
    assert "| classes | `bird, cat, dog`, in the order of its outputs |" in card(tmp_path / "student").text


@pytest.mark.parametrize("name", ["ViT", "BERT, a label a row"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_example_prepares_inputs_by_what_is_saved(tmp_path, name):
    kind = KINDS[name]
    labels_alone(
        tmp_path / "alone", kind.network(dtype=torch.float32), kind, processing_class=None, data_collator=padded
    )
    assert "no tokenizer or processor was saved with it" in card(tmp_path / "alone").text
    assert set(run_example(tmp_path / "alone")) & {"tokenizer", "processor", "model"} == {"model"}
    words = KINDS["BERT, a label a row"].tokenizer()
    given = image_processor((0.5,) * 3, (0.5,) * 3, (8, 8)) if name == "ViT" else words
    labels_alone(tmp_path / "with", kind.network(dtype=torch.float32), kind, processing_class=given)
    made = run_example(tmp_path / "with")
    assert {"tokenizer", "processor"} & made.keys() == {"processor" if name == "ViT" else "tokenizer"}


def test_without_a_teacher_nothing_was_distilled(tmp_path):
    trained(tmp_path, kd_weight=0.0, ce_weight=1.0).create_model_card()
    assert card(tmp_path).data.to_dict()["tags"] == ["hfkd"]
    text = card(tmp_path).text
    assert "trained on the labels alone" in text
    assert "None is stated" in text
    assert "bibtex" not in text
    assert "| objective |" not in text


def test_a_temperature_that_nothing_reads_is_in_no_card_and_no_log(tmp_path):
    """The default's 4 would be taken for one that was trained with."""
    features, both = (
        trained(tmp_path / name, objective=objective)
        for name, objective in {"features": "at(layers='conv')", "both": "kd + at(layers='conv')"}.items()
    )
    for trainer, read in ((features, False), (both, True)):
        trainer.create_model_card()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(("temperature" in entry) == read and "weight" in entry and "at" in entry for entry in logs)
        assert ("| temperature |" in card(Path(trainer.args.output_dir)).text) == read


def test_arguments_win_and_a_table_survives_a_pipe(tmp_path):
    class Piped:
        def __call__(self, items, temperature):
            return temperature * items.student.logits.sum(-1)

        def __repr__(self):
            return "a | b"

    trainer = trained(tmp_path, objective=Piped(), model_license="mit")
    trainer.create_model_card(license="gpl-3.0", dataset="owner/data", model_name="mine", finetuned_from="owner/base")
    data = card(tmp_path).data.to_dict()
    assert data["license"] == "gpl-3.0"
    assert data["datasets"] == ["owner/data"]
    assert data["base_model"] == "owner/base"
    assert data["model-index"][0]["name"] == "mine"
    assert data["model-index"][0]["results"][0]["dataset"] == {"name": "owner/data", "type": "owner/data"}
    assert "| objective | a \\| b |" in card(tmp_path).text
    assert "on 8 rows of the evaluation split of owner/data" in card(tmp_path).text


def test_a_base_that_is_a_folder_here_is_nobody_elses(tmp_path, monkeypatch):
    for name, base in (("gpt2", "gpt2"), ("fresh", None), (str(tmp_path), None)):
        model = stored_language_model(tmp_path)
        model.name_or_path = name
        args = arguments(tmp_path / "run")
        trainer = DistillationTrainer(
            model, None, args, ce_weight=1, kd_weight=0, train_dataset=TokenRows(), processing_class=tokenizer()
        )
        trainer.details = {"from_config": name == "fresh"}
        trainer.create_model_card()
        assert card(tmp_path / "run").data.to_dict().get("base_model") == base


def stored_language_model(folder):
    language_model().save_pretrained(folder / "stored")
    return GPT2LMHeadModel.from_pretrained(folder / "stored")


def test_random_weights_have_no_base_whatever_their_config_was_read_from(tmp_path):
    stored = stored_language_model(tmp_path)
    stored.config.name_or_path = stored.name_or_path = "gpt2"
    for student, base in ((GPT2LMHeadModel(stored.config), None), (prune_layers(stored, 1), "gpt2")):
        args = arguments(tmp_path / "run", ce_weight=1, kd_weight=0)
        rows = {"train_dataset": TokenRows(), "processing_class": tokenizer()}
        DistillationTrainer(student, None, args, **rows).create_model_card()
        assert student.name_or_path == "gpt2"
        assert card(tmp_path / "run").data.to_dict().get("base_model") == base


@pytest.mark.parametrize(("step", "metrics"), [(4, {"accuracy": 0.5}), (2, {"accuracy": 0.7}), (5, {})])
def test_metrics_are_those_of_the_weights_that_are_saved(step, metrics):
    history = [
        {"step": 2, "eval_accuracy": 0.7, "eval_runtime": 1.0, "eval_samples_per_second": 3.0},
        {"step": 2, "loss": 1.0},
        {"step": 4, "eval_accuracy": 0.5, "eval_loss": float("nan"), "eval_model_preparation_time": 0.1},
        {"step": 4, "eval_accuracy": 0.9, "other_set_rows": 64},
    ]
    assert evaluation(TrainerState(log_history=history), step) == metrics


def test_a_bar_in_a_metrics_name_begins_no_cell(tmp_path):
    trainer = trained(tmp_path)
    trainer.state.log_history.append({"step": trainer.state.global_step, "eval_iou_road|street": 0.5})
    trainer.create_model_card()
    assert r"| iou_road\|street | 0.5 |" in (tmp_path / FILE).read_text()


def test_a_token_never_gets_into_the_card(tmp_path):
    trainer = trained(tmp_path, hub_token="planted-token")
    trainer.create_model_card(tags=["planted-token"], model_name=f"hf_{'0123456789aBcDeFgH' * 2}")
    assert "planted" not in (tmp_path / FILE).read_text()
    assert yaml.safe_load((tmp_path / FILE).read_text().split("---\n")[1])["tags"][-1] == "HIDDEN"
    assert "hf_" not in (tmp_path / FILE).read_text()


def test_the_example_names_the_repository_before_there_is_one(tmp_path):
    args = arguments(tmp_path, hub_model_id="someone/named")
    rows = {"train_dataset": TokenRows(), "processing_class": tokenizer()}
    DistillationTrainer(language_model(), None, args, ce_weight=1, kd_weight=0, **rows).create_model_card()
    assert "# named\n" in card(tmp_path).text
    assert 'AutoModelForCausalLM.from_pretrained("someone/named")' in card(tmp_path).text


def test_a_teacher_that_is_called_like_a_method_is_no_method(tmp_path):
    class DKD(Net):
        """A network."""

    args = arguments(tmp_path)
    DistillationTrainer(Net(), DKD(), args, train_dataset=Rows()).create_model_card()
    text = card(tmp_path).text
    assert "distilled from DKD (" in text
    assert "hinton2015distilling" in text
    assert "zhao2022decoupled" not in text


def test_peers_taught_each_other(tmp_path):
    args = arguments(tmp_path)
    DistillationTrainer(Peers([Net(), Net()]), None, args, train_dataset=Rows()).create_model_card()
    text = card(tmp_path).text
    assert "networks that taught each other" in text
    assert "labels alone" not in text
    assert "| objective | KD(" in text
    assert "zhang2018mutual" in text
    assert "knowledge-distillation" in card(tmp_path).data.to_dict()["tags"]


@pytest.mark.parametrize(
    ("keywords", "entries"),
    [
        ({"tasks": "image-classification"}, {"pipeline_tag": "image-classification"}),
        ({"tasks": ["feature-extraction", "other"]}, {"pipeline_tag": "feature-extraction"}),
        ({"dataset_tags": "owner/beans"}, {"datasets": ["owner/beans"]}),
        ({"dataset_tags": ["a/b", "c/d"], "dataset": ["B", "D"]}, {"datasets": ["a/b", "c/d"]}),
        ({"dataset": "beans", "dataset_args": "clean"}, {}),
    ],
)
def test_the_keywords_of_transformers_examples(tmp_path, keywords, entries):
    trained(tmp_path).create_model_card(finetuned_from="a/b", tags=["vision"], **keywords)
    data = card(tmp_path).data.to_dict()
    assert entries.items() <= data.items()
    if len(keywords) == 2:
        (result,) = data["model-index"][0]["results"]
        names = {"name": "B, D", "type": "a/b"}
        assert result["dataset"] == (
            names if "dataset_tags" in keywords else dict.fromkeys(("name", "type"), "beans") | {"config": "clean"}
        )


def test_the_order_of_the_arguments_is_trainers(tmp_path):
    trained(tmp_path).create_model_card("en", "mit", ["mine"], "called")
    data = card(tmp_path).data.to_dict()
    assert (data["language"], data["license"], data["tags"][-1]) == ("en", "mit", "mine")
    assert "# called\n" in card(tmp_path).text
    with pytest.raises(TypeError, match="licence"):
        trained(tmp_path / "other").create_model_card(licence="mit")


def test_no_word_of_the_card_adds_a_line_to_it(tmp_path):
    evil = "fine\n\n# Evil\n| a | b |"
    run = trained(tmp_path)
    keywords = dict.fromkeys(("license", "model_name", "dataset", "tasks", "dataset_args", "finetuned_from"), evil)
    run.create_model_card(**keywords)
    text = (tmp_path / "README.md").read_text()
    assert "\n# Evil" not in text.split("---\n", 2)[2]
    assert "\n| a | b |" not in text.split("---\n", 2)[2]
    assert card(tmp_path).data.to_dict()["license"] == "fine # Evil | a | b |"


def test_a_checkout_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    """Its path may be on PYTHONPATH alone; a run must not end in an error at its last step."""
    real = metadata.Distribution.from_name.__func__

    def unknown(cls, name):
        if name == "hfkd":
            raise metadata.PackageNotFoundError(name)
        return real(cls, name)

    monkeypatch.setattr(metadata.Distribution, "from_name", classmethod(unknown))
    trained(tmp_path).create_model_card()
    assert "hfkd of an unknown version, transformers " in card(tmp_path).text
