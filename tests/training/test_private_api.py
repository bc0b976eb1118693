"""What is relied on of others' private names is still there, and nothing of Trainer's is overridden unlisted."""

import ast
import inspect

import pytest
import transformers
from accelerate import Accelerator, dispatch_model
from accelerate.state import AcceleratorState
from packaging.version import Version
from text_toys import language_model
from toys import Net, Rows, arguments, teacher
from transformers import GPT2Config, Trainer, TrainerCallback
from transformers.trainer_jit_checkpoint import CheckpointManager

from hfkd import DistillationTrainer
from hfkd.training import private_api
from hfkd.utils.devices import device_of


@pytest.mark.parametrize("name", [*private_api.TRAINER_METHODS, *private_api.TRAINER_CALLED])
def test_trainer_still_has_it(name):
    assert inspect.isfunction(getattr(Trainer, name))


def test_every_private_override_is_listed_and_the_trainer_is_one_class_deep():
    assert DistillationTrainer.__bases__ == (Trainer,)
    overridden = {n for n in vars(DistillationTrainer) if n.startswith("_") and not n.startswith("__")}
    assert overridden & set(dir(Trainer)) == set(private_api.TRAINER_METHODS)
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(DistillationTrainer))))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in vars(DistillationTrainer)
    }
    ours = {"__init__", "__new__"}
    assert used - ours <= {*private_api.TRAINER_ATTRIBUTES, *private_api.TRAINER_METHODS, *private_api.TRAINER_CALLED}


def test_the_attributes_are_there(tmp_path):
    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            seen.append({name: hasattr(trainer, name) for name in attributes})

    later = Version(transformers.__version__) >= Version("5.23")
    seen, attributes = [], [*private_api.TRAINER_ATTRIBUTES, *([private_api.FIRST_STEP] if later else [])]
    trainer = DistillationTrainer(
        Net(), teacher(), arguments(tmp_path, max_steps=1), train_dataset=Rows(8), callbacks=[Look()]
    )
    trainer.train()
    assert all(seen[0].values()), seen
    assert all(hasattr(trainer.accelerator, name) for name in private_api.ACCELERATOR_ATTRIBUTES)


def test_what_was_called_on_a_signal_is_kept():
    kept = vars(CheckpointManager(None))
    assert all(name in kept for name in private_api.CHECKPOINT_MANAGER_ATTRIBUTES)


def test_a_loaded_model_can_be_told_from_a_new_one(tmp_path):
    new = language_model()
    new.save_pretrained(tmp_path)
    names = private_api.LOADED_MODEL_ATTRIBUTES
    assert all(hasattr(type(new).from_pretrained(tmp_path), name) and not hasattr(new, name) for name in names)


def test_a_layer_that_is_spread_over_devices_says_where_it_computes(tmp_path):
    model = dispatch_model(Net(), {"conv": "disk", "head": "cpu"}, offload_dir=str(tmp_path))
    assert all(getattr(model, name).execution_device == "cpu" for name in private_api.SPREAD_LAYER_ATTRIBUTES)
    assert device_of(model).type == "cpu"
    assert next(model.parameters()).is_meta


def test_configs_name_the_attention_function():
    assert all(hasattr(GPT2Config(), name) for name in private_api.CONFIG_ATTRIBUTES)


def test_autocast_is_put_around_a_forward_that_can_be_found():
    source = inspect.getsource(Accelerator.prepare_model)
    assert all(name in source for name in private_api.PREPARED_MODEL_ATTRIBUTES)


def test_an_upload_asks_for_no_more_than_it_was_asked_for(tmp_path, monkeypatch):
    """`init_hf_repo` has got arguments that earlier versions do not have."""
    asked = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: asked.append(token))
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path, push_to_hub=True), train_dataset=Rows(8))
    trainer.init_hf_repo("hf_given")
    assert asked == [None, "hf_given"]


def test_the_state_of_accelerate_is_a_dict_of_its_class():
    assert all(isinstance(getattr(AcceleratorState, name), dict) for name in private_api.STATE_ATTRIBUTES)
