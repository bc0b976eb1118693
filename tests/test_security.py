"""Nobody's file runs code here: pickles, YAML, slot strings, model and data set repositories with programs in them."""

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from text_toys import language_model
from toys import Net, Rows, arguments, teacher

import hfkd
from hfkd import DistillationLoss, DistillationTrainer
from hfkd.arguments import DistillationArguments
from hfkd.data.images import load_images
from hfkd.models import image_classifier, load_checkpoint
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.training.checkpoints.manifest import MANIFEST, write_manifest
from hfkd.utils.parsing import parse
from hfkd.utils.setting_types import TextLoader

RUN_CODE = {"eval", "exec", "compile", "os.system", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"} | {
    f"{module}.{name}"
    for module in ("pickle", "cloudpickle", "dill", "joblib", "marshal")
    for name in ("load", "loads")
}


class Trap:
    """What an attacker pickles: unpickling it makes the folder `target`."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def sprung(tmp_path):
    """The folder that a trap makes; the test has failed when it is there."""
    target = tmp_path / "sprung"
    yield target
    assert not target.exists()


def planted(how, target):
    if how == "pickle":
        return pickle.dumps(Trap(target), protocol=2)  # torch warns of others, and warnings are errors here
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(2), "more": Trap(target)}, buffer)
    return buffer.getvalue()


def test_the_trap_works(tmp_path):
    pickle.loads(planted("pickle", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with one checkpoint, to resume from."""
    folder = tmp_path_factory.mktemp("run")
    resumed(folder, max_steps=2)
    return folder


def resumed(folder, **keywords):
    args = arguments(folder, save_strategy="steps", save_steps=2, optim="adamw_torch", **keywords)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if keywords["max_steps"] > 2 else None)
    return trainer


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_checkpoint_folder(tmp_path, run, sprung, name, how):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / name).write_bytes(planted(how, sprung))
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    # an attacker who can write the files can write the list of their sizes too
    sizes = {p.name: p.stat().st_size for p in checkpoint.iterdir() if p.name != MANIFEST}
    (checkpoint / MANIFEST).write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match=rf"checkpoint-2/{name} is not a file of tensors.*never run"):
        resumed(tmp_path / "run", max_steps=4)


def test_the_pickled_arguments_of_a_checkpoint_are_not_read(tmp_path, run, sprung):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-2" / "training_args.bin"
    trap = planted("pickle", sprung)
    path.write_bytes(trap + b"\0" * (path.stat().st_size - len(trap)))
    write_manifest(path.parent)  # an attacker can write the list of checksums too
    assert resumed(tmp_path / "run", max_steps=4).state.global_step == 4


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_published_weights(tmp_path, sprung, how):
    (tmp_path / "wrn.pth").write_bytes(planted(how, sprung))
    with pytest.raises(ValueError, match=r"wrn\.pth is not a file of tensors.*never run"):
        load_checkpoint(Net(), tmp_path / "wrn.pth")


def images(folder):
    image_classifier("cifar_resnet20", 3).save_pretrained(folder)
    return lambda: image_classifier(folder, 3)


def language(folder):
    language_model().save_pretrained(folder)
    return lambda: causal_lm(folder)


def adapter(folder):
    base = language_model()
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder)
    return lambda: causal_lm(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's use of transformers
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
@pytest.mark.parametrize(
    ("make", "name"), [(images, "pytorch_model.bin"), (language, "pytorch_model.bin"), (adapter, "adapter_model.bin")]
)
def test_a_model_repository(tmp_path, sprung, make, name, how):
    load = make(tmp_path / "model")
    next((tmp_path / "model").glob("*.safetensors")).unlink()
    (tmp_path / "model" / name).write_bytes(planted(how, sprung))
    with pytest.raises(ValueError, match=rf"model/{name} is not a file of tensors.*never run"):
        load()


@pytest.mark.parametrize("make", [images, language])
def test_damaged_weights_of_a_repository_are_named(tmp_path, make):
    load = make(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model/model\.safetensors is not a file of tensors"):
        load()


@pytest.mark.parametrize("load", [lambda f: image_classifier(f, 2), causal_lm, load_tokenizer])
def test_a_model_repository_with_a_program(tmp_path, sprung, load):
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageClassification")
    config = {"model_type": "mine", "auto_map": dict.fromkeys(names, "program.Mine")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["program.Mine", None]}}))
    (tmp_path / "program.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\nclass Mine: pass\n")
    with pytest.raises(ValueError, match=r"(?s)custom code.*trust_remote_code"):
        load(tmp_path)


def test_a_data_set_with_a_program(tmp_path, sprung):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    (folder / "train.pkl").write_bytes(planted("pickle", sprung))
    with pytest.raises(ValueError, match=rf"{folder}"):
        load_images(str(folder))
    (folder / "data.py").unlink()
    with pytest.raises(ValueError, match=rf"{folder}"):
        load_images(str(folder))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{target}']",
        "seed: !!python/object/apply:os.mkdir ['{target}']",
        "objective: !!python/object/new:os.mkdir [['{target}']]",
        "seed: !!python/name:os.mkdir",
    ],
)
def test_yaml(tmp_path, sprung, text):
    path = tmp_path / "run.yaml"
    path.write_text(text.format(target=sprung))
    with pytest.raises(ValueError, match=rf"{path} is not a YAML file of settings: .*python/"):
        parse((DistillationArguments,), ["--output_dir", str(tmp_path), "--config", str(path)])


@pytest.mark.parametrize("slot", ["objective", "temperature", "weighting"])
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('{target}')",
        "kd(scale=__import__('os').mkdir('{target}'))",
        "kd(**__import__('os').mkdir('{target}'))",
        "(lambda: __import__('os').mkdir('{target}'))()",
        "[__import__('os').mkdir('{target}') for _ in [0]]",
        'kd(scale=f\'{{__import__("os").mkdir("{target}")}}\')',
    ],
)
def test_slots(sprung, slot, text):
    text = text.format(target=sprung)
    with pytest.raises(ValueError, match=rf"{slot} .*cannot be read"):
        DistillationLoss(**{slot: text})


def test_the_loader_of_settings_is_the_safe_one():
    assert issubclass(TextLoader, yaml.SafeLoader)
    assert TextLoader.yaml_constructors == yaml.SafeLoader.yaml_constructors
    assert TextLoader.yaml_multi_constructors == yaml.SafeLoader.yaml_multi_constructors


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", sorted(Path(hfkd.__file__).parent.rglob("*.py")), ids=str)
def test_no_file_of_hfkd_has_another_way_in(path):
    for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if ast.unparse(call.func) == "yaml.load":
            assert ast.unparse(call.args[1]) == "TextLoader", ast.unparse(call)
        else:
            assert ast.unparse(call.func) not in RUN_CODE, ast.unparse(call)
        assert keywords.get("shell", "False") == "False", ast.unparse(call)
        assert keywords.get("trust_remote_code", "False") == "False", ast.unparse(call)
        if ast.unparse(call.func) == "torch.load":
            assert keywords["weights_only"] == "True"
