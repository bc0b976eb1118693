"""Objectives on inner features in the trainer: built from real networks, trained with the student, saved beside it."""

from functools import partial

import pytest
import timm
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from scan_job import packed
from text_toys import TokenRows, language_model, taught_model, tokenizer
from torch import nn
from toys import CHECKPOINTING, CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer, Objective
from hfkd.losses.base import Requirements
from hfkd.losses.features import AT, LSH, FitNet
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.functional import upcast
from hfkd.models import Peers, image_classifier
from hfkd.training.loss_parameters import FILE

HINT = "kd + 100 * fitnet(layer=2)"
Images = partial(Rows, size=32)


def networks(student="cifar_resnet8", taught="cifar_wrn_16_2"):
    made = []
    for seed, name in enumerate((student, taught)):
        torch.manual_seed(seed)
        made.append(timm.create_model(name, num_classes=CLASSES))
    return made


def make(
    folder, objective=HINT, student=None, taught=None, rows=None, optimizers=(None, None), temperature=None, **keywords
):
    mine, its = networks()
    args = arguments(folder, **({"per_device_train_batch_size": 4, "max_steps": 1} | keywords))
    slots = {"objective": objective, "temperature": temperature}
    data = {"train_dataset": rows or Images(8)}
    return DistillationTrainer(student or mine, taught or its, args, optimizers=optimizers, **slots, **data)


# ---- from the slot's string through hooks of real networks ---------------------------------------------------------


def test_fitnet_compares_the_feats_of_the_literature_and_moves_the_students_first_layer(tmp_path):
    student, taught = networks()
    objective = FitNet(layer=2)
    trainer = make(tmp_path, [(100, objective)], student, taught, ce_weight=0.0, kd_weight=1.0)
    seen = {}

    def see(items, temperature):
        seen["items"], seen["value"] = items, FitNet.forward(objective, items, temperature)
        return seen["value"]

    objective.forward = see
    before = {name: p.clone() for name, p in student.named_parameters()}
    frozen = [p.clone() for p in taught.parameters()]
    trainer.train()
    mine, its = (seen["items"].__getattribute__(who).features["2"] for who in ("student", "teacher"))
    images = torch.stack([trainer.train_dataset[int(i)]["pixel_values"] for i in _order(trainer, seen["items"])])
    with torch.no_grad():
        feats = taught.eval().forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(its, feats[2], rtol=1e-4, atol=1e-5)
    assert mine.shape == (4, 32, 16, 16)
    assert not its.requires_grad
    assert (seen["value"] > 0).all()
    for name in ("conv1.weight", "layer1.0.conv1.weight"):
        assert not torch.equal(dict(student.named_parameters())[name], before[name])
    for name in ("layer3.0.conv1.weight", "fc.weight"):  # behind the hint
        assert torch.equal(dict(student.named_parameters())[name], before[name])
    assert all(torch.equal(a, b) for a, b in zip(frozen, taught.parameters(), strict=True))


def _order(trainer, items):
    """Which rows a batch was made of, by their labels and logits: the dataset has no index."""
    generator_order = [i for batch in trainer.get_train_dataloader().batch_sampler for i in batch]
    return generator_order[: len(items)]


def test_at_reads_every_stage_but_the_stem(tmp_path):
    trainer = make(tmp_path, "1000 * at")
    assert trainer.step.inner.student.keys == trainer.step.inner.teacher.keys == ("1", "2", "3")
    trainer.train()
    assert trainer.state.log_history[0]["at"] > 0


class Mirror(Objective):
    """l_s = mean (F_s - F_t)^2 at stage 2, of networks alike; counts how often it is built."""

    level = "sample"
    softens = False
    contexts = ()

    def requirements(self):
        return Requirements(student=(2, "pooled", "logits"), teacher=("2", "pooled", "logits"))

    def build(self, context):
        self.contexts = (*self.contexts, context)

    def __call__(self, items, temperature):
        torch.testing.assert_close(items.student.features["logits"], items.student.logits)
        torch.testing.assert_close(items.teacher.features["logits"], items.teacher.logits)
        s, t = items.student.features[2], items.teacher.features[2]
        return (upcast(s) - upcast(t)).square().flatten(1).mean(1)


def test_an_objective_is_built_once_from_shapes_modules_and_rows(tmp_path):
    objective = Mirror()
    trainer = make(tmp_path, [objective, "kd"], image_classifier("cifar_resnet8", CLASSES), seed=7)
    (context,) = objective.contexts
    assert context.student.shapes == {"2": (32, 16, 16), "pooled": (64,), "logits": (CLASSES,)}
    assert context.teacher.shapes == {"2": (64, 16, 16), "pooled": (128,), "logits": (CLASSES,)}
    assert context.student.modules["2"] is trainer.model.timm_model.layer2
    assert context.student.network is trainer.model
    assert (context.num_classes, context.num_rows, context.labels, context.seed) == (CLASSES, 8, None, 7)
    seen = []
    context.scan(seen.append)
    assert sum(len(outputs.logits) for outputs in seen) == 8
    assert seen[0].features["2"].shape[1:] == (64, 16, 16)


def test_medians_of_very_many_rows_are_those_of_evenly_spread_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("hfkd.losses.features.lsh.MOST_ROWS", 3)
    (student, taught), rows, objective = networks("cifar_resnet8", "cifar_resnet8"), Images(8), LSH(functions=5)
    make(tmp_path, [objective], student, taught, rows, per_device_eval_batch_size=2, dataloader_num_workers=1)
    with torch.no_grad():
        features = taught.eval().forward_head(taught.forward_features(rows.images[::3]), pre_logits=True)
    expected = -torch.median(features @ objective.hash_weight.T, dim=0).values
    torch.testing.assert_close(objective.hash_bias, expected)


def test_one_step_is_the_plain_pytorch_step(tmp_path):
    """Networks alike but for their weights, so that the loss is written by hand: on the real modules' maps."""
    student, taught = networks("cifar_resnet8", "cifar_resnet8")
    copy, _ = networks("cifar_resnet8", "cifar_resnet8")
    rows = Images(4)
    trainer = make(tmp_path, [Mirror()], student, taught, rows, ce_weight=0.5, kd_weight=2.0, weighting="entropy")
    trainer.train()
    copy.train()
    with torch.no_grad():
        z = taught.eval()(rows.images)
        target = taught.layer2(taught.layer1(taught.stage(0, rows.images)))
    v = copy(rows.images)
    maps = copy.layer2(copy.layer1(copy.relu(nn.functional.batch_norm(
        copy.conv1(rows.images), None, None, copy.bn1.weight, copy.bn1.bias, training=True))))  # fmt: skip
    h_t, h_s = (-(p.softmax(-1) * p.log_softmax(-1)).sum(-1) for p in (z / 3, v.detach() / 3))
    w = h_t * (1 + h_s / torch.tensor(float(CLASSES)).log()) / 2
    loss = (
        0.5 * nn.functional.cross_entropy(v, rows.labels) + 2 * (w * (maps - target).square().flatten(1).mean(1)).mean()
    )
    loss.backward()
    for (name, p), (_, mine) in zip(copy.named_parameters(), student.named_parameters(), strict=True):
        torch.testing.assert_close(mine, p - 0.1 * p.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "how", [pytest.param("torch_compile", marks=pytest.mark.slow), "bf16", "channels_last=False", "accumulated"]
)
def test_features_come_however_the_student_is_wrapped(tmp_path, how):
    """The same first loss as without, but for rounding."""
    settings = {"torch_compile": {"torch_compile": True, "torch_compile_backend": "aot_eager"}, "bf16": {"bf16": True}}
    settings |= {"channels_last=False": {"channels_last": False}}
    settings |= {"accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}
    losses = []
    for folder, keywords in (("plain", {}), ("wrapped", settings[how])):
        trainer = make(tmp_path / folder, "kd + 100 * at", max_steps=1, **keywords)
        trainer.train()
        losses.append(trainer.state.log_history[0])
    rtol = {"bf16": 0.05, "accumulated": 0.2}.get(how, 1e-3)  # in parts, batch norms see parts
    assert losses[1]["at"] == pytest.approx(losses[0]["at"], rel=rtol)
    assert losses[1]["loss"] == pytest.approx(losses[0]["loss"], rel=rtol)


def test_views_of_an_image_have_features_of_their_own(tmp_path):
    class Views(Images.func):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"pixel_values": torch.stack([self.images[i], self.images[i].flip(-1)])}

    trainer = make(tmp_path, HINT, rows=Views(8, size=32))
    trainer.train()
    assert trainer.state.log_history[0]["fitnet"] > 0


def test_nothing_is_kept_where_nobody_asks(tmp_path):
    for keywords in ({"objective": "kd"}, {"objective": HINT, "kd_weight": 0.0, "ce_weight": 1.0}):
        trainer = make(tmp_path / keywords["objective"][:2], **keywords)
        assert not trainer.step.inner.wanted
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_hooks_go_with_the_trainer(tmp_path):
    student, taught = networks()
    trainer = make(tmp_path, HINT, student, taught)
    assert student.layer2._forward_hooks
    trainer.step.inner.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (student, taught) for m in net.modules())


# ---- tokens ----------------------------------------------------------------------------------------------------------


class Projected(LayerPairs):
    """It keeps its layers by the base class, under no name of its own."""

    def __init__(self, layers=(1,), teacher_layers=(1,), scale=2.0):
        super().__init__(layers, teacher_layers)
        self.scale = scale

    def forward(self, items, temperature):
        return self.scale * sum(mine.mean((1, 2)) - its.mean((1, 2)) for mine, its in self.read(items)).square()


def test_an_objective_says_its_settings_by_whatever_attributes_it_has():
    assert repr(Projected()) == "Projected(student_keys=('1',), teacher_keys=('1',), scale=2.0)"
    assert repr(Projected(2, 3, 1.0)) == "Projected(student_keys=('2',), teacher_keys=('3',), scale=1.0)"


class HiddenMirror(Mirror):
    """The same for hidden states, over positions that are no padding."""

    def requirements(self):
        return Requirements(student=("1:", "pooled"), teacher=("1:", "pooled"))

    def __call__(self, items, temperature):
        assert items.mask is not None
        s, t = (upcast(one.features["1"]) for one in (items.student, items.teacher))
        return ((s.mean(-1) - t.mean(-1)).square() * items.mask).sum(1) / items.mask.sum(1)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("how", ["plain", "adapters", "checkpointed"])
def test_hidden_states_of_language_models(tmp_path, how):
    keywords = {"peft_config": LoraConfig(target_modules=["q_proj", "c_attn"])} if how == "adapters" else {}
    settings = {CHECKPOINTING: True} if how == "checkpointed" else {}
    trainer = DistillationTrainer(
        language_model(), taught_model(), arguments(tmp_path, max_steps=2, **settings), train_dataset=TokenRows(),
        processing_class=tokenizer(), objective=["kd", HiddenMirror()], **keywords,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["hiddenmirror"] > 0


@pytest.mark.parametrize(
    "objective",
    [
        "minilm(heads=2)",
        "minilm(compared=('qk', 'vv'), heads=2)",
        "attention_scores",
        "hidden_mse",
        "hidden_cosine(layers=0)",
        "hidden_cosine(layers={0: 0, 1: 1}, projection=True)",
    ],
)
def test_objectives_on_transformers_through_real_networks(tmp_path, objective):
    width = {"taught": taught_model(16)} if "layers=0" in objective else {"taught": taught_model()}
    student = language_model()
    before = {name: p.clone() for name, p in student.named_parameters()}
    args = arguments(tmp_path, max_steps=1, objective=f"5 * {objective}", ce_weight=0.0, kd_weight=1.0)
    trainer = DistillationTrainer(
        student, width["taught"], args, train_dataset=TokenRows(), processing_class=tokenizer()
    )
    trainer.train()
    name = objective.partition("(")[0]
    assert trainer.state.log_history[0][name] > 0
    assert not torch.equal(student.transformer.wte.weight, before["transformer.wte.weight"])
    assert student.config._attn_implementation.startswith("hfkd_keeps_") == (
        "attention" in str(trainer.step.inner.student.keys)
    )
    trainer.save_model()
    assert "hfkd" not in (tmp_path / "config.json").read_text()
    trainer.unhook()
    assert student.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("layers", ["layers={0: 0, 1: 3}", "layers='1:', teacher_layers='uniform'"])
def test_hidden_states_of_language_models_by_a_map(tmp_path, layers):
    """The value is that of transformers' own hidden states, whatever the chosen layers."""
    student, taught = language_model(16, layers=2), language_model(24, seed=1, layers=3)
    trainer = DistillationTrainer(
        student, taught, arguments(tmp_path, max_steps=1, ce_weight=0.0, kd_weight=1.0),
        train_dataset=TokenRows(), processing_class=tokenizer(), objective=f"hidden_mse({layers})",
    )  # fmt: skip
    (objective,), seen = trainer.distillation_loss.objective.objectives, {}
    batch = next(iter(trainer.get_train_dataloader()))
    original = type(objective).forward

    def see(items, temperature):
        seen["values"] = original(objective, items, temperature)
        return seen["values"]

    objective.forward = see
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=None)
    real = batch["attention_mask"]
    mine, its = (
        network.transformer(input_ids=batch["input_ids"], attention_mask=real, output_hidden_states=True).hidden_states
        for network in (student, taught)
    )
    pairs = [(0, 0), (1, 3)] if "{" in layers else [(1, 1), (2, 3)]
    assert [(int(a), int(b)) for a, b in objective.pairs] == pairs
    before_norm = {}  # GPT-2's own last state is after its last norm, a block's output before it
    for network in (student, taught):
        handle = network.transformer.h[-1].register_forward_hook(
            lambda m, a, out, n=network: before_norm.update({n: out})
        )
        network.transformer(input_ids=batch["input_ids"], attention_mask=real)
        handle.remove()
    mine, its = ([*states[:-1], before_norm[n]] for states, n in ((mine, student), (its, taught)))
    expected = sum(
        ((objective.project(mine[a]) - its[b]).square().mean(-1) * real).sum(1) / real.sum(1) for a, b in pairs
    )
    torch.testing.assert_close(seen["values"], expected)


# ---- connectors ------------------------------------------------------------------------------------------------------


def regressor_of(trainer):
    return trainer.distillation_loss.objective.objectives[1].regressor


def test_connectors_train_with_the_students_rate_and_decay_and_are_no_part_of_its_files(tmp_path):
    trainer = make(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, weight_decay=0.01)
    before = {k: v.clone() for k, v in regressor_of(trainer).state_dict().items()}
    trainer.train()
    after = regressor_of(trainer).state_dict()
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert set(moved) >= {"conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.num_batches_tracked"}
    groups = {id(p): g for g in trainer.optimizer.param_groups for p in g["params"]}
    assert {groups[id(p)]["lr"] for p in regressor_of(trainer).parameters()} == {0.1}
    assert groups[id(regressor_of(trainer).conv.weight)]["weight_decay"] == 0.01
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not any("regressor" in name or "distillation" in name for name in saved)
    assert any(name.endswith("bn.running_mean") for name in load_file(tmp_path / "checkpoint-2" / FILE))


def test_connectors_are_drawn_from_the_runs_seed_alone(tmp_path):
    weights = []
    for noise, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(noise)
        weights.append(regressor_of(make(tmp_path / f"{noise}{seed}", seed=seed)).conv.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_resumed_run_is_bit_for_bit_the_whole_one(tmp_path):
    whole = make(tmp_path / "whole", max_steps=4)
    whole.train()
    make(tmp_path / "parts", max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = make(tmp_path / "parts", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for a, b in ((whole.model, resumed.model), (whole.distillation_loss, resumed.distillation_loss)):
        for name, value in a.state_dict().items():
            assert torch.equal(b.state_dict()[name], value), name


def test_an_optimizer_of_ones_own_trains_them_too(tmp_path):
    student, _ = networks()
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = make(tmp_path, student=student, optimizers=(own, None))
    before = regressor_of(trainer).conv.weight.clone()
    trainer.train()
    assert not torch.equal(regressor_of(trainer).conv.weight, before)


def test_wrapped_ones_are_built_and_train(tmp_path):
    trainer = make(tmp_path, "kd + average(objective='fitnet(layer=2)')")
    before = {name: p.clone() for name, p in trainer.distillation_loss.named_parameters()}
    trainer.train()
    after = dict(trainer.distillation_loss.named_parameters())
    moved = [name.rpartition("regressor.")[2] for name in before if not torch.equal(before[name], after[name])]
    assert {"conv.weight", "bn.weight", "bn.bias"} <= set(moved)  # a bias before a batch norm has no gradient
    assert trainer.state.log_history[0]["average"] > 0


def test_each_training_of_model_init_builds_its_own(tmp_path):
    _, taught = networks()
    args = arguments(tmp_path, objective=HINT, max_steps=2, per_device_train_batch_size=4)
    trainer = DistillationTrainer(None, taught, args, train_dataset=Images(8), model_init=lambda: networks()[0])
    found = []
    for _ in range(2):
        trainer.train()
        found.append(regressor_of(trainer).conv.weight.clone())
    torch.testing.assert_close(*found)
    assert len(taught.block2._forward_hooks) == 1


def test_what_is_found_in_the_rows_is_of_the_first_epoch(tmp_path):
    """The same rows as in a new process, which resumes the run, where another training has read them already."""
    rows, found = packed(), []
    for number in range(2):
        parts = {"student": Net(16), "taught": teacher(), "rows": rows, "max_steps": 13}
        trainer = make(tmp_path / str(number), "kd + lsh(layer='head:in', std=1.0)", **parts)
        found.append({name: buffer.clone() for name, buffer in trainer.distillation_loss.named_buffers()})
        trainer.train()
        assert rows.format["format_kwargs"]["transform"].epoch > 0
    assert any(name.endswith("hash_bias") for name in found[0])
    assert all(torch.equal(buffer, found[1][name]) for name, buffer in found[0].items())


# ---- refused when the trainer is built -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"objective": "fitnet(layer=7)"}, r"layer '7': CifarResNet has the stages 0, 1, 2, 3"),
        (
            {"objective": "fitnet(layer='layer9')"},
            r"layer 'layer9': CifarResNet has no such module: name one of \['bn1'",
        ),
        ({"objective": "fitnet(layer='pooled')"}, r"has the shape \(64,\), but maps \(channels"),
        ({"objective": "fitnet(layer=0, teacher_layer=3)"}, None),  # 32 wide to 8: a convolution of 25
        (
            {"objective": "fitnet(layer=3, teacher_layer=1)"},
            "map is 8x8 and the teacher's 32x32: a smaller student map",
        ),
        ({"objective": "fitnet(layer='1:')"}, "stands for 3 layers, but one is compared"),
        ({"objective": "catkd(layer='1:')"}, "stands for 3 layers, but one is compared"),
        ({"objective": "sp(layer='1:')"}, "stands for 3 layers, but one is compared"),
        ({"objective": "at(layers=(1, 2), teacher_layers=3)"}, r"\['1', '2'\] and the teacher's \['3'\]"),
        ({"objective": "fitnet", "temperature": "energy"}, "no term of FitNet.* uses a temperature"),
        ({"teacher_cache_dir": "cache"}, "teacher_cache_dir stores only the teacher's logits: leave it out"),
        ({"fsdp": "full_shard"}, "FSDP shards them"),
        ({CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}, "reentrant"),
        ({"student": Net(), "taught": teacher()}, "layer '2': the stages of a Net are not known"),
        ({"taught": [teacher(), teacher()]}, "with several teachers it is ambiguous whose layers are meant"),
    ],
)
def test_what_cannot_be_built(tmp_path, keywords, message):
    keywords = keywords | ({"teacher_cache_dir": str(tmp_path / "cache")} if "teacher_cache_dir" in keywords else {})
    if message is None:
        make(tmp_path, **keywords)
        return
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "run", **keywords)
    assert not (tmp_path / "run").exists()


def test_peers_have_no_teachers_layers(tmp_path):
    mine, its = networks("cifar_resnet8", "cifar_resnet8")
    args = arguments(tmp_path / "run", objective=HINT)
    with pytest.raises(ValueError, match="Peers teach each other and have no fixed teacher: train one student"):
        DistillationTrainer(Peers([mine, its]), None, args, train_dataset=Images(8))


def test_a_layer_that_a_step_leaves_out_is_an_error(tmp_path):
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES)
            self.extra = nn.Conv2d(4, 4, 1)

        def forward(self, pixel_values):
            x = self.conv(pixel_values)
            x = x if self.training else self.extra(x)
            return self.head(x.mean((2, 3)))

    trainer = make(tmp_path, [AT("extra")], Skipping(), Skipping())
    with pytest.raises(ValueError, match="the forward pass of the student did not call extra for layer 'extra'"):
        trainer.train()


def test_a_layer_that_nothing_trains_is_an_error(tmp_path):
    student, _ = networks()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    with pytest.raises(ValueError, match="layer '2' of the student has no gradient"):
        make(tmp_path, "kd + 100 * at(layers=2)", student).train()
