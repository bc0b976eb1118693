"""A stored head of other classes than the data's, or of these in another order, is warned of when it is renamed."""

import pytest
import torch
from task_toys import VOCAB, bert, segformer, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

from hfkd.models import image_classifier
from hfkd.models.label_names import class_names
from hfkd.models.segmentation import segmentation_network
from hfkd.models.text_networks import stored_network

NAMES = ["bear", "fox", "owl"]
WARNER = "hfkd.models.label_names"


def image(folder, names=None, **keywords):
    return image_classifier(folder if names else "cifar_resnet8", 3, label_names=names or NAMES, **keywords)


def text(folder, names=None):
    labels = class_names(names or NAMES, 3)
    if names is None:
        return bert(BertForSequenceClassification, **labels)(8)
    return stored_network(AutoModelForSequenceClassification, str(folder), tokenizer(), **labels)


def masks(folder, names=None, **keywords):
    if names:
        return segmentation_network(str(folder), 3, label_names=names, **keywords)
    made = SegformerForSemanticSegmentation(segformer(8).config)  # with its batch norm
    made.config.id2label = dict(enumerate(NAMES))
    made.config.label2id = {name: i for i, name in enumerate(NAMES)}
    return made


@pytest.mark.parametrize("load", [image, text, masks])
def test_a_renamed_head_is_warned_of(tmp_path, caplog, load):
    assert VOCAB >= len(tokenizer())
    torch.manual_seed(0)
    load(tmp_path).save_pretrained(tmp_path)

    def said(names, **keywords):
        caplog.clear()
        network = load(tmp_path, names, **keywords)
        assert list(network.config.id2label.values()) == names
        return [record.getMessage() for record in caplog.records if record.name == WARNER]

    assert said(NAMES) == []
    (turned,) = said(NAMES[::-1])
    assert "a stored head for the data's classes in another order (bear, fox, owl instead of owl, fox, bear)" in turned
    (others,) = said(["cat", "dog", "cow"])
    assert "a stored head for other classes than the data's (bear, fox, owl instead of cat, dog, cow)" in others
    if load is not text:
        assert said(NAMES[::-1], new_head=True) == []


def test_a_base_without_a_head_has_none_to_rename(tmp_path, caplog):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes, **labels)).save_pretrained(tmp_path)
    image(tmp_path, NAMES[::-1])
    assert [record for record in caplog.records if record.name == WARNER] == []
