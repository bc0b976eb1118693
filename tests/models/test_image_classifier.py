import io
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageClassification,
    CLIPForImageClassification,
    SiglipForImageClassification,
    TimmWrapperForImageClassification,
)

from hfkd.models import image_classifier, image_processor, image_teacher, input_spec
from hfkd.models.label_names import label_names_of
from hfkd.models.language import causal_lm, load_tokenizer

DATA = Path(os.environ.get("HFKD_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
needs_data = pytest.mark.skipif(
    not (DATA / "teachers").is_dir(), reason=f"no CIFAR-100 and teachers at {DATA}: set HFKD_DATA to the data folder"
)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def cifar_test() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 500 images of CIFAR-100's test set in [0, 1], and their labels."""
    table = parquet.read_table(DATA / "cifar100/test-00000-of-00001.parquet").slice(0, 500)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"].to_pylist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.tensor(table["fine_label"].to_pylist())


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "least"), [("cifar_wrn_16_2", "wrn_16_2.pth", 0.70), ("cifar_resnet20", "resnet20.pt", 0.62)]
)
def test_published_teachers_are_as_good_as_published(cifar_test, name, file, least):
    model = image_classifier(name, 100, checkpoint=DATA / "teachers" / file)
    spec = input_spec(model)
    images, labels = cifar_test
    pixels = (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        correct = model(pixel_values=pixels).logits.argmax(-1) == labels
    assert correct.float().mean() >= least


@pytest.mark.parametrize("name", ["cifar_resnet8x4", "resnet18", "vit_tiny_patch16_224"])
def test_fresh_weights_are_timms(name):
    """transformers' wrapper alone would redraw them all from N(0, 0.02)."""
    torch.manual_seed(3)
    model = image_classifier(name, 10)
    torch.manual_seed(3)
    want = timm.create_model(name, num_classes=10).state_dict()
    assert isinstance(model, TimmWrapperForImageClassification)
    assert not model.training
    assert same(model.timm_model.state_dict(), want)


@pytest.mark.parametrize("name", ["cifar_mobilenetv2", "cifar_wrn_16_2", "cifar_shufflenetv2"])
def test_round_trip(tmp_path, name):
    torch.manual_seed(0)
    model = image_classifier(name, 3, label_names=["cat", "dog", "emu"])
    x = torch.randn(2, 3, 32, 32)
    model.train()(pixel_values=x)  # moves the running statistics
    model.eval().save_pretrained(tmp_path)
    for loaded in (AutoModelForImageClassification.from_pretrained(tmp_path), image_classifier(tmp_path, 3)):
        assert same(loaded.state_dict(), model.state_dict())
        torch.testing.assert_close(loaded(pixel_values=x).logits, model(pixel_values=x).logits, rtol=1e-6, atol=1e-6)
        assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
        assert loaded.config.label2id == {"cat": 0, "dog": 1, "emu": 2}
        assert input_spec(loaded) == input_spec(model)


@pytest.fixture
def trained(tmp_path):
    """The folder of a run whose images were normalised by 0.5, with its classes in another order than the alphabet."""
    model = image_classifier("cifar_resnet8", 3, label_names=["emu", "cat", "dog"])
    model.config.pretrained_cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_weights_from_a_saved_folder_keep_their_normalisation_and_class_names(trained):
    """An architecture's own are those of its published weights."""
    by_file = image_teacher("cifar_resnet8", 3, trained / "model.safetensors", ["cat", "dog", "emu"])
    by_folder = image_teacher(trained, 3)
    assert input_spec(by_file) == input_spec(by_folder)
    assert input_spec(by_file).mean == (0.5,) * 3
    assert label_names_of(by_file) == label_names_of(by_folder) == ("emu", "cat", "dog")
    assert label_names_of(image_teacher("cifar_resnet8", 3, trained / "model.safetensors")) == ("emu", "cat", "dog")


def test_weights_of_a_student_get_the_names_of_the_data(trained, caplog):
    model = image_classifier("cifar_resnet8", 3, trained / "model.safetensors", ["cat", "dog", "emu"])
    assert label_names_of(model) == ("cat", "dog", "emu")
    assert "has a stored head for the data's classes in another order" in caplog.text


def test_weights_beside_no_config_or_of_another_name_say_nothing(trained, tmp_path):
    for file, left_out in (("model.safetensors", "config.json"), ("best.safetensors", None)):
        folder = tmp_path / file
        folder.mkdir()
        for source in trained.iterdir():
            name = file if source.suffix == ".safetensors" else source.name
            if name != left_out:
                (folder / name).write_bytes(source.read_bytes())
        model = image_teacher("cifar_resnet8", 3, folder / file, ["cat", "dog", "emu"])
        assert input_spec(model) == input_spec(image_classifier("cifar_resnet8", 3))
        assert label_names_of(model) == ("cat", "dog", "emu")


def test_weights_of_a_transformers_folder_keep_its_image_processor(saved_vit, tmp_path):
    model = image_classifier(saved_vit, 4)
    model.save_pretrained(tmp_path)
    image_processor((0.1,) * 3, (0.2,) * 3, (30, 30)).save_pretrained(tmp_path)
    assert input_spec(image_teacher(str(saved_vit), 4, tmp_path / "model.safetensors")).mean == (0.1,) * 3


@pytest.mark.parametrize("load", [partial(image_teacher, num_labels=3), causal_lm, load_tokenizer])
def test_the_folder_of_a_run_that_has_not_ended_is_named_with_what_is_in_it(tmp_path, load):
    """Or of peers; transformers would say that its config.json has no model_type."""
    image_classifier("cifar_resnet8", 3).save_pretrained(tmp_path / "run" / "checkpoint-8")
    with pytest.raises(ValueError, match=r"run has no config.json, .* pass one of the models in it \(checkpoint-8\)"):
        load(str(tmp_path / "run"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json, .*: pass a saved model$"):
        image_teacher(tmp_path, 3, label_names=["cat", "dog", "emu"])


def test_outputs_are_those_of_a_transformers_model():
    model = image_classifier("cifar_wrn_16_2", 10)
    out = model(pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([1, 2]), output_hidden_states=True)
    assert out.logits.shape == (2, 10)
    assert out.loss.ndim == 0
    assert [h.shape[1] for h in out.hidden_states] == [16, 32, 64, 128]


def test_saved_folder_with_another_number_of_labels(saved_vit):
    assert image_classifier(str(saved_vit), 4).num_labels == 4
    with pytest.raises(ValueError, match="has 4 labels, not 5: pass num_labels=4, or new_head=True"):
        image_classifier(saved_vit, 5)
    model = image_classifier(saved_vit, 5, label_names=list("abcde"), new_head=True)
    assert model.classifier.out_features == 5
    assert model.config.id2label[4] == "e"


def test_the_form_of_timms_hub_ids(tmp_path):
    net = timm.create_model("resnet18", num_classes=10).eval()
    config = {"architecture": "resnet18", "num_classes": 10, "num_features": 512, "pretrained_cfg": net.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(net.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = image_classifier(tmp_path, 10)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(pixel_values=x).logits, net(x))
    assert input_spec(model) == input_spec(net)


def test_timm_folder_gets_a_new_head_with_names(tmp_path):
    image_classifier("cifar_resnet20", 5).save_pretrained(tmp_path)
    new = image_classifier(tmp_path, 2, label_names=["a", "b"], new_head=True)
    assert new.config.id2label == {0: "a", 1: "b"}
    assert new(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)
    new.save_pretrained(tmp_path / "two")
    assert image_classifier(tmp_path / "two", 2).config.id2label == {0: "a", 1: "b"}


def test_timm_folder_gets_a_new_head(tmp_path):
    old = image_classifier("cifar_wrn_16_2", 4)
    old.save_pretrained(tmp_path)
    new = image_classifier(tmp_path, 6, new_head=True)
    assert new.timm_model.fc.out_features == 6
    assert torch.equal(new.timm_model.block3.layer[0].conv1.weight, old.timm_model.block3.layer[0].conv1.weight)


def test_a_new_head_for_as_many_classes_is_fresh_too(saved_vit, tmp_path):
    image_classifier("cifar_wrn_16_2", 4, label_names=list("wxyz")).save_pretrained(tmp_path / "wrn")
    for folder, head in ((tmp_path / "wrn", "timm_model.fc."), (saved_vit, "classifier.")):
        old = image_classifier(folder, 4).state_dict()
        new = image_classifier(folder, 4, label_names=list("abcd"), new_head=True)
        changed = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, old[name])}
        assert f"{head}weight" in changed  # a fresh bias may be zero, as the old one is
        assert changed <= {f"{head}weight", f"{head}bias"}
        assert new.config.id2label[3] == "d"


@pytest.mark.parametrize("kind", [CLIPForImageClassification, SiglipForImageClassification])
def test_a_new_head_of_a_model_that_is_its_own_base(tmp_path, kind):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = kind.config_class(vision_config=sizes | {"image_size": 8, "patch_size": 4}, num_labels=3)
    old = kind(config)
    old.save_pretrained(tmp_path)
    new = image_classifier(tmp_path, 3, new_head=True).state_dict()
    changed = {name for name, tensor in old.state_dict().items() if not torch.equal(tensor, new[name])}
    assert "classifier.weight" in changed
    assert changed <= {"classifier.weight", "classifier.bias"}


def test_a_new_head_without_effect_is_refused(saved_vit):
    with pytest.raises(ValueError, match="replaces the head of a stored network, and 'cifar_resnet8' is not one"):
        image_classifier("cifar_resnet8", 4, new_head=True)
    with pytest.raises(ValueError, match="checkpoint='weights.pth' has the weights of the head: leave one of them out"):
        image_classifier(saved_vit, 4, "weights.pth", new_head=True)


def test_unknown_names_are_answered_with_close_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown model 'cifar_resent20': close names are .*'cifar_resnet20'"):
        image_classifier("cifar_resent20", 100)
    with pytest.raises(ValueError, match=r"pass 'timm/resnet18.a1_in1k' for these weights, or 'resnet18' for new ones"):
        image_classifier("resnet18.a1_in1k", 100)
    with pytest.raises(OSError, match="nothing"):
        image_classifier(f"{tmp_path}/nothing", 100)


def test_labels_are_checked():
    with pytest.raises(ValueError, match="num_labels=0 must be at least 1"):
        image_classifier("cifar_resnet20", 0)
    with pytest.raises(ValueError, match="2 label_names for num_labels=3"):
        image_classifier("cifar_resnet20", 3, label_names=["a", "b"])
