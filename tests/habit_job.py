"""Run by every rank of a test: what scripts bring that only several ranks meet."""

import sys

import torch
from text_toys import TokenRows, language_model, taught_model
from torch.utils.data import default_collate
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


class Stream(torch.utils.data.IterableDataset):
    """Rows of unequal lengths, in order."""

    def __iter__(self):
        yield from TokenRows().rows


class Idle(Net):
    """A parameter that no forward reads, as DINOv2's mask token when nothing is masked."""

    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Parameter(torch.ones(3))


def stream(args):
    return DistillationTrainer(language_model(), taught_model(), args, train_dataset=Stream())


def idle(args):
    args.ddp_find_unused_parameters = True
    return DistillationTrainer(Idle(), teacher(), args, train_dataset=Rows(), temperature="learned")


class Loaded(DistillationTrainer):
    """A loader of its own: of each 8 rows this rank's 4, or both halves; batch norm sees 4 either way."""

    def get_train_dataloader(self):
        rows, step = Rows(), 4 * self.args.world_size
        for start in range(4 * self.args.process_index, len(rows), step):
            yield default_collate([rows[i] for i in range(start, start + 4)])


def loader(args):
    args.gradient_accumulation_steps = 2 // args.world_size
    return Loaded(Idle(), teacher(), args, objective="kd + fitnet(layer='conv')")


if __name__ == "__main__":
    out, name, size = sys.argv[1:]
    args = arguments(out, per_device_train_batch_size=int(size), max_steps=3)
    trainer = {"stream": stream, "idle": idle, "loader": loader}[name](args)
    trainer.train()
    if trainer.is_world_process_zero():
        learned = {f"loss.{k}": v for k, v in trainer.distillation_loss.state_dict().items()}
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict() | learned, f"{out}/student.pt")
