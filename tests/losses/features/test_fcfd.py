from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from feature_toys import oracle
from torch import nn

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.features.fcfd import FCFD, Bridge, Path
from hfkd.losses.features.running_stages import RunningStages
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.models import image_classifier
from hfkd.models.cifar.resnet import CifarResNet
from hfkd.models.running import stage_runner

STAGES = ("1", "2", "3")


def features(network, images):
    """Logits, and the outputs of stages 1 to 3."""
    maps, x = {}, network.stage(0, images)
    for k in (1, 2, 3):
        x = maps[str(k)] = network.stage(k, x)
    return network.forward_head(network.tail(x)), maps


def context_of(student, teacher, images):
    contexts = []
    for network in (student, teacher):
        training = network.training
        with torch.no_grad():
            maps = features(network.eval(), images)[1]
        network.train(training)
        shapes = {key: tuple(value.shape[1:]) for key, value in maps.items()}
        contexts.append(NetworkContext(shapes, {}, network, {"1:": STAGES}, stages=stage_runner(network)))
    return BuildContext(*contexts, num_classes=10, num_rows=None, labels=None, scan=lambda visit: None, seed=0)


def items_of(student, teacher, images, labels, **known):
    (logits, maps), (its_logits, its_maps) = features(student, images), features(teacher, images)
    rows = torch.arange(len(images))
    outputs = Outputs(logits, maps), Outputs(its_logits.detach(), {k: v.detach() for k, v in its_maps.items()})
    return Items(*outputs, labels, rows, len(images), own_sample=True, **({"progress": 30.0} | known))


def naive(objective, student, teacher, items, T, paths):
    """Image by image, each path written out; `paths` are (stages of its own, "teacher" or "student")."""
    s, t = items.student.features, items.teacher.features
    bridged = {k: objective.to_teacher[k - 1](s[k]) for k in (1, 2, 3)}
    found = {k: [bridged[k]] for k in (1, 2, 3)}
    logits = []
    for own, to in paths:
        x = bridged[own] if to == "teacher" else objective.to_student[own - 1](t[own])
        network = teacher if to == "teacher" else student
        for k in range(own + 1, 4):
            x = network.stage(k, x)
            if to == "teacher":
                found[k].append(x)
        logits.append(network.forward_head(network.tail(x)))
    rows = []
    for i in range(len(items)):
        squares = sum((x[i] - t[k][i]).square().mean() for k, several in found.items() for x in several)
        pooled = [(x[i].relu().mean((1, 2)) - t[3][i].relu().mean((1, 2))).square().mean() for x in found[3]]
        p = torch.log_softmax(items.teacher.logits[i] / T, 0)
        divergences = [T**2 * (p.exp() * (p - torch.log_softmax(z[i] / T, 0))).sum() for z in logits]
        rows.append(objective.feature_weight * (squares + sum(pooled)) + objective.mixture_weight * sum(divergences))
    return torch.stack(rows)


def networks(seed=0):
    torch.manual_seed(seed)
    student, teacher = CifarResNet(8, (3, 3, 4, 6), num_classes=10), CifarResNet(8, (4, 4, 6, 8), num_classes=10)
    return student.double(), teacher.double().eval().requires_grad_(False)


def test_the_paper_image_by_image():
    student, teacher = networks()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    objective = FCFD(mixture_weight=0.7)
    objective.build(context_of(student, teacher, images))
    objective.double()
    items = items_of(student, teacher, images, torch.arange(5))
    drawn = objective.drawn(items.seed, items.step)
    paths = [(path.start, "teacher" if path.to_teacher else "student") for path in drawn]
    values = objective(items, torch.full((5,), 4.0))
    expected = naive(objective, student, teacher, items, 4.0, paths)
    torch.testing.assert_close(values, expected)
    leaves = [*student.parameters(), *objective.parameters()]
    weights = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((v * weights).sum(), leaves, retain_graph=True, allow_unused=True)
        for v in (values, expected)
    )
    for p, a, b in zip(leaves, ours, theirs, strict=True):
        if any(p is q for q in objective.parameters()):
            assert a is not None  # also of a bridge that was not drawn
        torch.testing.assert_close(
            a if a is not None else torch.zeros_like(p), b if b is not None else torch.zeros_like(p)
        )


def loaded(z):
    """The published networks and bridges."""
    student, teacher = networks()
    for name, network in (("student", student), ("teacher", teacher)):
        state = {key.removeprefix(f"{name}."): v for key, v in z.items() if key.startswith(f"{name}.")}
        assert not [k for k in network.load_state_dict(state, strict=False).missing_keys if "num_batches" not in k]
    objective = FCFD()
    objective.build(context_of(student, teacher, z["images"]))
    objective.double()
    bridges = {"student_to_teacher": objective.to_teacher, "teacher_to_student": objective.to_student}
    parameters = {f"student.{name}": p for name, p in student.named_parameters()}
    for way, several in bridges.items():
        for k, bridge in enumerate(several, 1):
            state = {n: z[f"bridge{k}_{way}.{n}"] for n in ("conv.weight", "bn.weight", "bn.bias")}
            bridge.load_state_dict(state, strict=False)
            parameters |= {f"bridge{k}_{way}.{name}": p for name, p in bridge.named_parameters()}
    return student, teacher, objective, parameters


def test_published_numbers_with_a_frozen_teacher():
    z = oracle("features/fcfd_a")
    student, teacher, objective, parameters = loaded(z)
    objective.drawn = lambda seed, step: [Path(1, True), Path(1, False)]  # those of the published numbers
    items = items_of(student, teacher, z["images"], z["labels"])
    T = torch.full((6,), 4.0, dtype=torch.float64)
    torch.testing.assert_close(items.student.logits, z["eval.logits_student"])
    objective.mixture_weight, objective.feature_weight = 0.0, 1.0
    torch.testing.assert_close(objective(items, T).mean(), z["eval.l2_stages"].sum())
    weighted = (z["eval.er_weight"] * objective(items, T)).mean()
    torch.testing.assert_close(weighted, z["eval.l2_stages_er_per_sample"].sum())
    objective.mixture_weight, objective.feature_weight = 1.0, 5.0
    loss = DistillationLoss([(1.0, "kd"), (1.0, objective)], 4.0, ce_weight=1.0, kd_weight=1.0)(items)[0]
    torch.testing.assert_close(loss, z["eval.loss"])
    loss.backward()
    for name, p in parameters.items():
        expected = z.get(f"eval.grad__{name}", torch.zeros_like(p))
        torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item() + 1e-12)


def test_the_networks_are_left_as_they_are():
    student, teacher = networks()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    objective = FCFD()
    objective.build(context_of(student, teacher, images))
    objective.double()
    assert student.training
    items = items_of(student, teacher, images, torch.arange(5))
    before = {k: v.clone() for net in (student, teacher) for k, v in net.state_dict(prefix=f"{id(net)}.").items()}
    objective(items, torch.ones(5)).sum().backward()
    after = {k: v for net in (student, teacher) for k, v in net.state_dict(prefix=f"{id(net)}.").items()}
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(m.track_running_stats for m in student.modules() if isinstance(m, nn.BatchNorm2d))
    assert len(list(objective.modules())) == 1 + 2 + 5 * 3  # two lists, and five bridges of a convolution and a norm
    assert all(p.grad is None for p in teacher.parameters())


def test_a_path_to_the_teacher_gives_classes_in_the_order_of_the_data():
    student, teacher = networks()
    images, order = torch.randn(5, 3, 16, 16, dtype=torch.float64), (3, 1, 2, 0, 4, 9, 8, 7, 6, 5)
    context = context_of(student, teacher, images)
    stages = RunningStages("fcfd", "teacher", replace(context.teacher, class_order=order))
    logits, maps = features(teacher, images)
    torch.testing.assert_close(stages.head(maps["3"]), logits[:, list(order)])


def test_paths_are_drawn_from_seed_and_step():
    student, teacher = networks()
    objective = FCFD()
    objective.build(context_of(student, teacher, torch.randn(2, 3, 16, 16, dtype=torch.float64)))
    drawn = [objective.drawn(0, step) for step in range(40)]
    assert drawn == [objective.drawn(0, step) for step in range(40)]
    assert all(len(set(paths)) == 2 for paths in drawn)
    assert {path for paths in drawn for path in paths} == {Path(k, to) for k in (1, 2) for to in (True, False)}


def test_it_grows_over_its_first_epochs_and_softens():
    student, teacher = networks()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    objective = FCFD(mixture_weight=0.0)
    objective.build(context_of(student, teacher, images))
    objective.double()
    late, early = (
        objective(items_of(student, teacher, images, torch.arange(5), progress=p), torch.ones(5)) for p in (19.0, 0.0)
    )
    torch.testing.assert_close(20 * early, late)
    assert objective.softens


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [((3, 8, 8), (4, 3, 3), "cannot be bridged"), ((3, 8, 8), (4, 8, 4), "cannot be bridged")],
)
def test_sizes_that_no_bridge_joins_are_refused(source, target, message):
    with pytest.raises(ValueError, match=message):
        Bridge(source, target, True)


@pytest.mark.parametrize(("source", "target"), [((3, 8, 8), (4, 8, 8)), ((3, 8, 8), (4, 4, 4)), ((3, 4, 4), (4, 8, 8))])
def test_a_bridge_gives_the_shape_that_is_wanted(source, target):
    assert Bridge(source, target, True)(torch.randn(2, *source)).shape[1:] == target
    negative = Bridge(source, target, False)(torch.randn(2, *source)).min()
    assert F.leaky_relu(negative, 0.1) != negative


def test_other_networks_and_too_many_paths_are_refused():
    student, teacher = networks()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    context = context_of(student, teacher, images)
    with pytest.raises(ValueError, match=r"3 stages have 4 mixed paths: set paths to"):
        FCFD(paths=5).build(context)
    other = NetworkContext(context.teacher.shapes, {}, nn.Linear(2, 2), context.teacher.groups)
    with pytest.raises(ValueError, match="stages of the teacher one by one, but those of Linear are not known"):
        FCFD().build(BuildContext(context.student, other, 10, None, None, lambda visit: None, 0))


@pytest.mark.parametrize(
    "name", ["cifar_wrn_16_2", "cifar_vgg8", "cifar_mobilenetv2", "cifar_shufflenetv1", "cifar_resnet8"]
)
def test_every_family_says_whether_its_stages_are_rectified(name):
    network = image_classifier(name, num_labels=10)
    inner = getattr(network, "timm_model", network)
    x = inner.stage(1, inner.stage(0, torch.randn(2, 3, 32, 32)))
    stages = RunningStages("fcfd", "student", NetworkContext({}, {}, network, stages=stage_runner(network)))
    assert stages.gives_rectified(2, tuple(x.shape[1:])) == (name not in ("cifar_wrn_16_2", "cifar_mobilenetv2"))
