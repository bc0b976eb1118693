"""Networks and rows that are split over processes, as `from_pretrained` and accelerate leave them."""

from types import SimpleNamespace

import pytest
from accelerate import ParallelismConfig
from text_toys import TokenRows, language_model, taught_model, tokenizer
from torch.distributed.fsdp import FSDPModule
from toys import arguments

from hfkd import DistillationTrainer

OVER_TWO = r"the teacher, a GPT2LMHeadModel, was loaded over 2 processes .*shard_teacher=True"


def trainer(folder, student=None, teacher=None, **keywords):
    networks = student or language_model(), teacher or taught_model()
    rows = {"train_dataset": TokenRows(8), "eval_dataset": TokenRows(8)}
    return DistillationTrainer(*networks, arguments(folder, **keywords), processing_class=tokenizer(), **rows)


def split(network, **sizes):
    """As it is after `from_pretrained(distributed_config=DistributedConfig(...))`; its layers are as before."""
    sizes = {"tp_size": 1, "pp_size": 1} | sizes
    network.config.distributed_config = SimpleNamespace(**sizes)
    network._tp_size = sizes["tp_size"]
    return network


@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"pp_size": 2}])
def test_a_teacher_that_all_processes_have_to_run_on_the_same_rows_is_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match=OVER_TWO):
        trainer(tmp_path, teacher=split(taught_model(), **sizes))


def test_a_teacher_within_an_ensemble_too(tmp_path):
    with pytest.raises(ValueError, match=OVER_TWO):
        trainer(tmp_path, teacher=[taught_model(), split(taught_model(), tp_size=2)])


def test_a_teacher_over_one_process_is_whole(tmp_path):
    trainer(tmp_path, teacher=split(taught_model(), tp_size=1)).train()


def test_a_student_that_was_sharded_when_it_was_loaded_is_refused(tmp_path):
    student = language_model()
    student.__class__ = type("FSDPGPT2LMHeadModel", (FSDPModule, type(student)), {})  # as `fully_shard` does
    with pytest.raises(ValueError, match=r"the student, a FSDPGPT2LMHeadModel, was sharded when it was loaded"):
        trainer(tmp_path, student)


@pytest.mark.parametrize("name", ["cp_size", "sp_size"])
@pytest.mark.parametrize("by", ["arguments", "launcher"])
def test_rows_that_are_split_over_processes_are_refused(tmp_path, monkeypatch, name, by):
    config = None
    if by == "arguments":
        config = ParallelismConfig(**{name: 2})
    else:
        monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}", "2")
    with pytest.raises(ValueError, match=f"{name}=2 splits each row over 2 processes"):
        trainer(tmp_path, parallelism_config=config)
