"""Each method from its slot's string, through hooks of real networks: the term is not 0 and moves the first layer."""

import pytest
import timm
import torch
import torchvision
from feature_toys import ON_MAPS
from task_toys import KINDS
from toys import CLASSES, Rows, arguments

from hfkd import DistillationTrainer
from hfkd.models import image_classifier, with_projector

METHODS = {name: name for name in (*ON_MAPS, "fcfd", "sakd") if name != "cwd"}  # CWD reads logits that are maps
METHODS |= {"crd": "crd(negatives=8, sampling='other_images')"}
TEACHER = "cifar_wrn_16_2"


class Indexed(Rows):
    def __init__(self, n=8):
        super().__init__(n, size=32)

    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": i}


def make(folder, objective, **keywords):
    torch.manual_seed(0)
    student = image_classifier("cifar_resnet8", CLASSES)
    teacher = timm.create_model(TEACHER, num_classes=CLASSES)
    if objective == "lsh":
        student = with_projector(student, 128)
        keywords |= {"objective": "lsh(correct_only=False)"}
    args = arguments(folder, **({"per_device_train_batch_size": 4, "max_steps": 1, "ce_weight": 0.0} | keywords))
    slots = {"objective": keywords.get("objective", METHODS[objective])}
    return DistillationTrainer(student, teacher, args, train_dataset=Indexed(), **slots)


def objective_of(trainer):
    """The only term; one that softens is by itself."""
    objective = trainer.distillation_loss.objective
    return getattr(objective, "objectives", [objective])[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_the_students_first_layer_and_its_connectors(tmp_path, name):
    trainer = make(tmp_path, name, kd_weight=1.0, max_grad_norm=1.0)
    first = trainer.model.timm_model.conv1.weight
    objective = objective_of(trainer)
    before, connectors = first.clone(), {key: p.clone() for key, p in objective.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0].get(name, trainer.state.log_history[0]["loss"]) != 0
    assert not torch.equal(first, before)
    moved = {key for key, p in objective.named_parameters() if not torch.equal(p, connectors[key])}
    # What stands before a batch norm has no gradient but by rounding; a bridge that no path went over has none.
    assert moved or not connectors
    assert len(moved) >= len(connectors) / 3


def test_maps_before_the_activation_have_negative_entries_and_those_after_it_have_none(tmp_path):
    trainer = make(tmp_path, "ofd", kd_weight=1.0)
    seen = []
    objective = objective_of(trainer)
    forward = objective.forward

    def see(items, temperature):
        seen.append(items)
        return forward(items, temperature)

    objective.forward = see
    trainer.train()
    for features in (seen[0].student.features, seen[0].teacher.features):
        for key in ("pre:1", "pre:2", "pre:3"):
            assert (features[key] < 0).float().mean() > 0.1


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vid", "reviewkd", "fcfd")]


@pytest.mark.parametrize("name", ["crd", *SLOW])
def test_a_resumed_run_is_bit_for_bit_the_whole_one(tmp_path, name):
    whole = make(tmp_path / "whole", name, max_steps=4)
    whole.train()
    make(tmp_path / "parts", name, max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = make(tmp_path / "parts", name, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for a, b in ((whole.model, resumed.model), (whole.distillation_loss, resumed.distillation_loss)):
        for key, value in a.state_dict().items():
            assert torch.equal(b.state_dict()[key], value), key


def test_crd_moves_its_memories_once_an_optimizer_step(tmp_path):
    trainer = make(tmp_path, "crd", per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2)
    bank = objective_of(trainer).bank
    before = bank.student.clone()
    trainer.train()
    assert bank.step == 1
    assert (bank.student.cpu() != before).any(1).sum() == 4  # of the first step
    assert len(bank.pending_rows) == 4  # of the second
    assert not torch.equal(bank.pending_rows[:2], bank.pending_rows[2:])


TIMM = {"timm": ("resnet10t", "resnet18"), "timm, MobileNet": ("mobilenetv3_small_050", "resnet18")}


@pytest.mark.parametrize("name", ["reviewkd", "kd + fcfd", "sakd"])
@pytest.mark.parametrize("pair", ["timm", "timm, MobileNet", "torchvision"])
def test_networks_of_others(tmp_path, pair, name):
    """Those that objectives run stage by stage, and maps before the last activation."""
    torch.manual_seed(0)
    if pair == "torchvision":
        student, teacher = (
            torchvision.models.resnet18(num_classes=CLASSES),
            torchvision.models.resnet34(num_classes=CLASSES),
        )
        name = name.replace("reviewkd", "reviewkd(teacher_layers=('1:', 'pooled'))")
    else:
        student, teacher = (timm.create_model(one, num_classes=CLASSES) for one in TIMM[pair])
    if "MobileNet" in pair:
        name = name.replace("sakd", "sakd(image_layer='conv_stem:in', teacher_image_layer='conv1:in')")
    args = arguments(tmp_path, per_device_train_batch_size=4, max_steps=1, ce_weight=0.0, kd_weight=1.0)
    trainer = DistillationTrainer(student, teacher, args, train_dataset=Indexed(), objective=name, weighting="entropy")
    first = next(trainer.model.parameters())
    before = first.clone()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    assert not torch.equal(first, before)


# ---- transformers --------------------------------------------------------------------------------------------------

STATES = {
    "hidden_mse": "hidden_mse",
    "hidden_cosine": "hidden_cosine",
    "pkd": "pkd(layers=1, teacher_layers=1)",
    "attention_scores": "attention_scores",
    "minilm": "minilm(heads=4)",
}
TRANSFORMERS = ("BERT, masked", "BERT, a label a row", "ViT", "Llama")


def transformer(folder, kind, objective, **keywords):
    same_width = objective in ("hidden_cosine", "pkd")
    student, teacher = (KINDS[kind].network(width, seed) for width, seed in ((8, 0), (8 if same_width else 16, 1)))
    args = arguments(folder, **({"ce_weight": 0.0, "kd_weight": 1.0, "max_steps": 1} | keywords))
    data = KINDS[kind].keywords()
    return DistillationTrainer(student, teacher, args, objective=STATES[objective], **data)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("objective", STATES)
def test_a_method_trains_the_embeddings_of_a_transformer(tmp_path, kind, objective):
    trainer = transformer(tmp_path, kind, objective)
    name, first = next((n, p) for n, p in trainer.model.named_parameters() if "embed" in n and p.ndim > 1)
    before = first.clone()
    trainer.train()
    assert next(row for row in trainer.state.log_history if "loss" in row)[objective] > 0
    assert not torch.equal(first, before), name


@pytest.mark.parametrize("kind", ["BART", "T5", "Whisper"])
@pytest.mark.parametrize("objective", ["hidden_mse({})", "hidden_cosine({}, projection=True)"])
def test_states_of_a_decoder_are_compared_without_its_own_padding(tmp_path, kind, objective):
    """Of the encoder's tokens there are others; the same rows, more padded, give the same value."""
    path = "decoder.block.0" if kind == "T5" else "model.decoder.layers.0"
    values = []
    for more in (0, 3):
        network, given = KINDS[kind], KINDS[kind].keywords(4)
        rows = given["train_dataset"]
        longest = max(len(row["labels"]) for row in rows) + more
        for row in rows:
            labels = torch.as_tensor(row["labels"])
            row["labels"] = torch.cat([labels, labels.new_full((longest - len(labels),), -100)]).tolist()
        args = arguments(tmp_path / str(more), max_steps=1, per_device_train_batch_size=4)
        slots = {"objective": objective.format(f"layers={path!r}"), "ce_weight": 0.0, "kd_weight": 1.0}
        trainer = DistillationTrainer(*network.pair(), args, **slots, **given)
        trainer.train()
        values.append(next(row for row in trainer.state.log_history if "loss" in row)["loss"])
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def sounds(rows):
    """A collator of a user's own, for sounds of 80, 30, 40 and 50 samples."""
    lengths = torch.tensor([80, 30, 40, 50])[: len(rows), None]
    mask = (torch.arange(80) < lengths).long()
    values = torch.stack([row["input_values"] for row in rows]) * mask
    return {"input_values": values, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.parametrize("objective", ["hidden_mse", "attention_scores(layers='attention:1')", "minilm(heads=2)"])
def test_states_of_sounds_are_compared_without_the_frames_of_padding(tmp_path, objective):
    """Two convolutions of kernel 3 and stride 2 make (n - 3) // 2 + 1 frames each; the mask is over samples."""
    kind = KINDS["Wav2Vec2"]
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=4)
    given = kind.keywords(4) | {"data_collator": sounds}
    trainer = DistillationTrainer(*kind.pair(), args, objective=objective, **given)
    method, seen = objective_of(trainer), []
    method.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mask))
    trainer.train()
    assert sorted(seen[0].sum(1).tolist()) == [6, 9, 11, 19]
    assert seen[0].shape == (4, 19)
