"""Run by every rank of a test: train under FSDP or DeepSpeed, save, and take a run up again in its middle."""

import json
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from rank_job_text import build
from torch.distributed.tensor import DTensor
from toys import arguments

STOPPED = 3  # the step whose checkpoint the last run goes on from


def sharded(out, answers, **keywords):
    args = arguments(out, **keywords)
    if args.device.type == "cpu":
        say_that_it_is_a_gpu()
    return build(args, answers)


def say_that_it_is_a_gpu():
    """On CPUs Accelerate leaves FSDP and DeepSpeed out, without a word."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        from deepspeed import comm

        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        PartialState().distributed_type = DistributedType.DEEPSPEED
    else:
        PartialState().distributed_type = DistributedType.MULTI_GPU


def weights_of(trainer):
    """Whole on the first rank; what the others get is not looked at."""
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)


def resume(folder, **keywords):
    """A run and the same one taken up from its checkpoint: largest difference in the weights, both gradient norms.

    AdamW, for PyTorch cannot load the empty state of plain SGD into a sharded optimizer.
    """
    keywords |= {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps", "save_steps": STOPPED}
    weights, norms = [], []
    for checkpoint in (None, f"{folder}/checkpoint-{STOPPED}"):
        trainer = sharded(folder, **keywords)
        trainer.train(resume_from_checkpoint=checkpoint)
        weights.append({name: value.clone() for name, value in weights_of(trainer).items()})
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    differences = [(weights[1][name] - value).abs().max().item() for name, value in weights[0].items()]
    return {"weights": max(differences, default=None), "norms": norms}


def held(parameter):
    """What this rank has of it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def parameters(network):
    return {
        "kinds": sorted({type(parameter).__name__ for parameter in network.parameters()}),
        "numbers": sum(held(parameter).numel() for parameter in network.parameters()),
        "training": any(module.training for module in network.modules()),
    }


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    trainer = sharded(out, **keywords)
    trainer.train()
    score = trainer.evaluate()
    trainer.save_model(f"{out}/saved")
    weights = weights_of(trainer)
    with trainer.teacher.frozen():  # as it teaches; afterwards it is as its owner had it
        teacher = parameters(trainer.teacher)
    record = {
        "wrapped": [trainer.accelerator.distributed_type.value, type(trainer.model_wrapped).__name__],
        "student": parameters(trainer.model),
        "teacher": teacher,
        "thresholds": trainer.distillation_loss.temperature.thresholds,
        "log": trainer.state.log_history,
        "scores": score,
        "resumed": resume(f"{out}/resumed", **keywords),
    }
    if trainer.is_world_process_zero():
        torch.save(weights, f"{out}/student.pt")
        with open(f"{out}/record.json", "w") as file:
            json.dump(record, file)
