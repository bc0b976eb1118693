from functools import partial

import pytest
import torch
import torch.nn.functional as F
from feature_toys import oracle
from torch import nn

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.features.sakd import SAKD
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.models.cifar.resnet import CifarResNet
from hfkd.models.running import stage_runner

GROUPS = {"1:": ("1", "2", "3")}


def networks():
    torch.manual_seed(0)
    student, teacher = CifarResNet(8, (3, 3, 4, 6), num_classes=10), CifarResNet(8, (4, 4, 6, 8), num_classes=10)
    return student.double(), teacher.double().eval().requires_grad_(False)


def run(network, images):
    found = {"conv1:in": images, "0": network.stage(0, images)}
    for k in (1, 2, 3):
        found[str(k)] = network.stage(k, found[str(k - 1)])
    found["pooled"] = network.global_pool(network.tail(found["3"]))
    return Outputs(network.fc(found["pooled"]), found)


def built(objective, student, teacher, images):
    contexts = []
    for network in (student, teacher):
        training = network.training
        with torch.no_grad():
            shapes = {key: tuple(x.shape[1:]) for key, x in run(network.eval(), images).features.items()}
        network.train(training)
        contexts.append(NetworkContext(shapes, {}, network, GROUPS, stages=stage_runner(network)))
    objective.build(BuildContext(*contexts, 10, None, None, lambda visit: None, seed=0))
    return objective.double()


def items_of(student, teacher, images, labels):
    rows = torch.arange(len(images))
    return Items(run(student, images), run(teacher, images).detach(), labels, rows, len(rows), own_sample=True)


CASES = {"at": ("at", (0, 1, 2)), "fitnet": ("fitnet", ("",))}


def loaded(case):
    """The published networks and agent, and every parameter under its published name."""
    z = oracle(f"more/sakd_{case}")
    student, teacher = networks()
    for name, network in (("student", student), ("teacher", teacher)):
        state = {key.removeprefix(f"{name}."): v for key, v in z.items() if key.startswith(f"{name}.")}
        network.load_state_dict({k: v for k, v in state.items() if "grad__" not in k}, strict=False)
    method, places = CASES[case]
    settings = {name: z[name].item() for name in ("alpha", "beta", "gamma")}
    objective = built(SAKD(method, **settings), student, teacher, z["images"])
    objective.uniform = lambda items: z["uniform"]
    parameters = {f"student.{name}": p for name, p in student.named_parameters()}
    modules = {"policy.net": objective.policy}
    for k, place in enumerate(places):
        end = f"_{place}" if place != "" else ""
        modules |= {f"hint{end}": objective.hints[k], f"anti_hint{end}": objective.anti_hints[k]}
    if case == "fitnet":
        modules["loss_hint"] = objective.inner.regressor
    for name, module in modules.items():
        own = {key: z[f"{name}.{key}"] for key in module.state_dict() if f"{name}.{key}" in z}
        assert own
        module.load_state_dict(own, strict=False)
        parameters |= {f"{name}.{key}": p for key, p in module.named_parameters()}
    return z, student, teacher, objective, parameters


@pytest.mark.parametrize("case", CASES)
def test_published_numbers(case):
    z, student, teacher, objective, parameters = loaded(case)
    items = items_of(student, teacher, z["images"], z["labels"])
    T = torch.full((6,), 4.0, dtype=torch.float64)
    gates = objective.gates(items)
    torch.testing.assert_close(gates.detach(), z["gates"])
    loss = DistillationLoss(objective, 4.0, ce_weight=1.0, kd_weight=1.0)
    own = objective.own_loss(items, T)
    torch.testing.assert_close(own, z["loss_agent"])
    total = loss(items)[0]
    torch.testing.assert_close(total - own, z["loss_student"])
    total.backward()
    for name, p in parameters.items():
        part = "student" if name.startswith(("student.", "loss_hint.")) else "agent"
        expected = z[f"{part}.grad__{name}"]
        close = {"rtol": 1e-6, "atol": 1e-6 * expected.abs().max().item() + 1e-11}
        torch.testing.assert_close(p.grad, expected, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_the_networks_are_left_as_they_are_and_the_agent_gives_the_student_no_gradient():
    student, teacher = networks()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    objective = built(SAKD(), student, teacher, images)
    items = items_of(student, teacher, images, torch.arange(6))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    objective.own_loss(items, torch.ones(6)).backward()
    assert all(p.grad is None for net in (student, teacher) for p in net.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert student.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is not None for group in objective.parameter_groups() for p in group["params"])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_gates_are_the_same_under_autocast(half):
    """Both of these noises are of numbers that half precision rounds to 1, whose noise would be infinite."""
    student, teacher = (network.float() for network in networks())
    images = torch.randn(6, 3, 16, 16)
    objective = built(SAKD(), student, teacher, images).float()
    objective.uniform = lambda items: torch.tensor([0.9998, 0.99999], dtype=torch.float64).expand(6, 4, 2)
    items = items_of(student, teacher, images, torch.arange(6))
    loss = DistillationLoss(objective, 4.0, ce_weight=1.0, kd_weight=1.0)
    plain, parts = loss(items)
    loss.autocast = partial(torch.autocast, "cpu", half)
    found, found_parts = loss(items)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(found_parts, parts)


def test_gates_of_one_weigh_the_grafted_teacher_alone():
    student, teacher = networks()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    objective = built(SAKD(), student, teacher, images)
    items = items_of(student, teacher, images, torch.arange(6))
    ones = torch.ones(6, 4, dtype=torch.float64)
    torch.testing.assert_close(objective.grafted(items, ones), items.teacher.logits)
    with torch.no_grad():
        logits = student.eval()(images)
    torch.testing.assert_close(objective.grafted(items, 0 * ones), logits)


def test_an_image_counts_where_its_gates_are_open():
    student, teacher = networks()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    objective = built(SAKD(beta=7.0, alpha=2.0), student, teacher, images)
    items = items_of(student, teacher, images, torch.arange(6))
    gates = objective.gates(items).detach()
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    values = objective(items, torch.full((6,), 4.0, dtype=torch.float64))
    for i in range(6):
        expected = torch.zeros((), dtype=torch.float64)
        for k in (1, 2, 3):
            q = [
                x[i].square().mean(0).flatten()
                for x in (items.student.features[str(k)], items.teacher.features[str(k)])
            ]
            a, b = (x / x.norm() for x in q)
            expected = expected + 7.0 * gates[i, k - 1] * (a - b).square().mean()
        p, r = (x.logits[i].div(4).log_softmax(0) for x in (items.teacher, items.student))
        expected = expected + 2.0 * gates[i, 3] * 16 * F.kl_div(r, p, log_target=True, reduction="sum")
        torch.testing.assert_close(values[i], expected)


def test_what_it_cannot_wrap_is_refused():
    for wrong in ("kd", "rkd", "reviewkd"):
        with pytest.raises(ValueError, match="at, nst, vid or fitnet"):
            SAKD(wrong)
    assert isinstance(SAKD("nst"), nn.Module)


def test_a_policy_may_begin_as_ordinary_distillation():
    student, teacher = networks()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    objective = built(SAKD(teacher_first=True), student, teacher, images)
    assert objective.gates(items_of(student, teacher, images, torch.arange(6))).mean() > 0.7
