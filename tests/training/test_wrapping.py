"""How a student is saved that FSDP shards; tests/test_sharded.py trains one."""

from types import SimpleNamespace

import pytest
from torch.distributed.fsdp import StateDictType
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


def saved(folder, kind):
    """The weights files that `save_model` writes under FSDP, which one process alone does not have.

    In channels_last, as on a GPU, the weights of convolutions are not contiguous.
    """
    args = arguments(folder, channels_last=True)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(8))
    assert not trainer.model.conv.weight.is_contiguous()
    plugin = SimpleNamespace(state_dict_type=kind, fsdp_version=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "is_fsdp_enabled", True)
        patch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
        trainer.save_model()
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_that_no_weights_are_saved_is_said(tmp_path, caplog):
    assert saved(tmp_path / "sharded", StateDictType.SHARDED_STATE_DICT) == []
    assert "save_model writes no files of the student with FSDP's state_dict_type SHARDED_STATE_DICT" in caplog.text
    caplog.clear()
    assert saved(tmp_path / "whole", StateDictType.FULL_STATE_DICT) == ["model.safetensors"]
    assert "save_model" not in caplog.text
