"""Networks that read text: what is loaded, what is fresh, and whose tokens they read."""

import pytest
import torch
from text_tokenizer import word_tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from versions import since

from hfkd.models.label_names import class_names
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.models.text_networks import fresh_network, stored_network, text_teacher
from hfkd.models.wordpiece import train_wordpiece

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
CHANGES = ",".join(f"{name}={value}" for name, value in SMALL.items())
CLASSIFIER = AutoModelForSequenceClassification
reads_heads = since("transformers", "5.23", "do not read the head that was saved with an adapter")


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(pad_token="<pad>", mask_token="<mask>")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, words):
    """Folders of a classifier of three classes, a masked language model, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("networks")
    config = BertConfig(**SMALL, vocab_size=len(words))
    BertForSequenceClassification(BertConfig(**SMALL, vocab_size=len(words), num_labels=3)).save_pretrained(
        folder / "three"
    )
    BertForMaskedLM(config).save_pretrained(folder / "masked")
    BertForMaskedLM(config).save_pretrained(folder / "other")
    BertForMaskedLM(config).save_pretrained(folder / "none")
    other = word_tokenizer(pad_token="<pad>")
    other.add_tokens(["four"])
    for name, tokenizer in (("three", words), ("masked", words), ("other", other)):
        tokenizer.save_pretrained(folder / name)
    return folder


def test_a_fresh_network_has_the_tokenizers_vocabulary_and_the_datas_classes(words):
    network = fresh_network(CLASSIFIER, "bert", words, CHANGES, **class_names(["no", "yes", "maybe"], 3))
    assert network.get_input_embeddings().num_embeddings == len(words)
    assert (network.config.num_hidden_layers, network.config.pad_token_id) == (1, words.pad_token_id)
    assert network.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert network(torch.tensor([[3, 4]])).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "changes", ["depth=2", "num_hidden_layers=two", "num_hidden_layers", "num_hidden_layers=1;hidden_size=2"]
)
def test_settings_that_a_configuration_does_not_have_are_refused(words, changes):
    with pytest.raises(ValueError, match="cannot be set on a configuration of bert .*write name=value"):
        fresh_network(CLASSIFIER, "bert", words, changes)


def test_a_student_may_have_a_fresh_head_and_a_teacher_may_not(stored, words):
    student = stored_network(CLASSIFIER, str(stored / "masked"), words, **class_names(None, 3))
    assert student.config.num_labels == 3
    with pytest.raises(ValueError, match=r"no stored weights for .*classifier\.bias.*would be random in its"):
        text_teacher(CLASSIFIER, str(stored / "masked"), words)
    with pytest.raises(ValueError, match="no stored weights for"):
        text_teacher(AutoModelForMaskedLM, str(stored / "three"), words)
    assert text_teacher(CLASSIFIER, str(stored / "three"), words).config.num_labels == 3
    text_teacher(AutoModelForMaskedLM, str(stored / "masked"), words)  # whose head is tied to its embeddings


def test_a_head_of_other_classes_is_refused_unless_a_fresh_one_is_asked_for(stored, words):
    with pytest.raises(
        ValueError, match=r"classifier\.\w+ of .*three has the shape \[3.*need \[2.*ignore_mismatched_sizes"
    ):
        stored_network(CLASSIFIER, str(stored / "three"), words, **class_names(None, 2))
    renewed = stored_network(
        CLASSIFIER, str(stored / "three"), words, ignore_mismatched_sizes=True, **class_names(None, 2)
    )
    assert renewed.classifier.out_features == 2


def test_fewer_embeddings_than_tokens_are_refused(stored, words):
    larger = word_tokenizer(pad_token="<pad>", mask_token="<mask>")
    larger.add_tokens(["four"])
    with pytest.raises(ValueError, match="has 16 embeddings, but the tokenizer has 17 tokens"):
        text_teacher(CLASSIFIER, str(stored / "three"), larger)
    with pytest.raises(ValueError, match="has 4 embeddings"):
        fresh_network(CLASSIFIER, "bert", words, f"{CHANGES},vocab_size=4")


# ---- whose tokenizer -------------------------------------------------------------------------------------------------


def tokenizer(texts=(), **flags):
    return TextNetworkArguments(
        **{name: str(v) if name.endswith("path") else v for name, v in flags.items()}
    ).tokenizer(texts)


def test_the_teachers_tokenizer_is_both_networks(stored, words):
    fresh = {"student_name_or_path": "bert", "from_config": True}
    assert tokenizer(teacher_name_or_path=stored / "three", **fresh).get_vocab() == words.get_vocab()
    same = tokenizer(teacher_name_or_path=stored / "three", student_name_or_path=stored / "masked")
    assert same.get_vocab() == words.get_vocab()
    # a folder with a tokenizer, whose weights are not taken, stands for no tokens
    fresh["student_name_or_path"] = stored / "other"
    assert tokenizer(teacher_name_or_path=stored / "three", **fresh).get_vocab() == words.get_vocab()
    assert len(tokenizer(**fresh)) == 16  # alone it is asked: <pad> and four beside the words
    assert len(tokenizer(**fresh, tokenizer_name=str(stored / "other"))) == 16


@pytest.mark.parametrize(
    "student", [{"student_name_or_path": "three"}, {"student_name_or_path": "masked", "from_config": True}]
)
def test_a_tokenizer_by_name_that_would_not_be_used_is_refused(stored, student):
    """The run would record a tokenizer that it did not have."""
    student = student | {"student_name_or_path": stored / student["student_name_or_path"]}
    with pytest.raises(
        ValueError, match="is only for a network without a tokenizer, and has other tokens than that of"
    ):
        tokenizer(**student, tokenizer_name=str(stored / "other"))
    tokenizer(**student, tokenizer_name=str(stored / "masked"))  # the same tokens


def test_stored_weights_for_two_tokenizers_are_refused(stored):
    with pytest.raises(ValueError, match="the tokenizers of the student .*other.* and the teacher .*three.* differ"):
        tokenizer(teacher_name_or_path=stored / "three", student_name_or_path=stored / "other")


def test_a_network_without_a_tokenizer_needs_one_by_name(stored, words):
    with pytest.raises(ValueError, match="have no tokenizer: pass --tokenizer_name"):
        tokenizer(student_name_or_path=stored / "none")
    given = tokenizer(student_name_or_path=stored / "none", tokenizer_name=str(stored / "three"))
    assert given.get_vocab() == words.get_vocab()


def test_a_tokenizer_that_cannot_pad_pads_with_its_end(stored, tmp_path):
    word_tokenizer().save_pretrained(tmp_path)
    padding = tokenizer(student_name_or_path="gpt2", from_config=True, tokenizer_name=str(tmp_path))
    assert padding.pad_token == "<end>"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"student_config": "num_hidden_layers=1"}, "has no effect without from_config"),
        ({"teacher_config": "num_hidden_layers=1"}, "has no effect without teacher_from_config"),
        ({"train_tokenizer": 100, "tokenizer_name": "x", "from_config": True}, "leave one out"),
        ({"train_tokenizer": 100}, "has stored weights, which belong to its own"),
        ({"train_tokenizer": 100, "from_config": True, "teacher_name_or_path": "owner/name"}, "owner/name has stored"),
        ({"train_tokenizer": 0, "from_config": True}, "train_tokenizer=0 must be 1 or more"),
        ({"teacher_dtype": "half"}, "unknown teacher_dtype 'half'"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(ValueError, match=message):
        TextNetworkArguments(**flags)


# ---- a tokenizer of one's own texts ----------------------------------------------------------------------------------

LINES = [f"the {a} film is {b}" for a in ("first", "second", "third") for b in ("good", "bad", "fine", "dull")]


def test_a_wordpiece_of_the_texts(tmp_path):
    made = train_wordpiece(LINES, 80)
    assert all(train_wordpiece(LINES, 80).get_vocab() == made.get_vocab() for _ in range(5))
    assert set(made.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ids = made("The good", "film")
    assert made.convert_ids_to_tokens(ids["input_ids"]) == ["[CLS]", "the", "good", "[SEP]", "film", "[SEP]"]
    assert ids["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert made.mask_token == "[MASK]"
    made.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("The good", "film") == ids
    with pytest.raises(ValueError, match="a vocabulary of 5 tokens is too small"):
        train_wordpiece(LINES, 5)


def classifier_adapter(folder, classes):
    """A LoRA adapter of a classifier, whose base has no head."""
    peft = pytest.importorskip("peft")
    BertModel(BertConfig(**SMALL, vocab_size=20)).save_pretrained(folder / "base")
    network = BertForSequenceClassification.from_pretrained(folder / "base", num_labels=classes)
    adapted = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    adapted.save_pretrained(folder / "adapter")
    return str(folder / "adapter"), adapted


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft
def test_an_adapter_as_the_student_is_refused(tmp_path, words):
    name, _ = classifier_adapter(tmp_path, 2)
    with pytest.raises(ValueError, match="is an adapter, of which transformers would train nothing but a new head"):
        stored_network(CLASSIFIER, name, words)


@reads_heads
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft
def test_an_adapter_as_the_teacher_has_its_own_head(tmp_path, words):
    name, adapted = classifier_adapter(tmp_path, 2)
    tokens = torch.tensor([[3, 4, 5]])
    teacher = text_teacher(CLASSIFIER, name, words)
    torch.testing.assert_close(teacher.eval()(tokens).logits, adapted.eval()(tokens).logits)


@reads_heads
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft
def test_an_adapter_whose_head_does_not_fit_is_no_teacher(tmp_path, words):
    name, _ = classifier_adapter(tmp_path, 3)
    with pytest.raises(ValueError, match=r"other shapes for classifier.modules_to_save.default.bias.*: merge the ada"):
        text_teacher(CLASSIFIER, name, words)
