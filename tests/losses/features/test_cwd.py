import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient
from task_toys import CLASSES, Pixels, masks
from torch import nn
from torch.nn.functional import interpolate
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.features import CWD
from hfkd.losses.features.cwd import channelwise


def naive(student, teacher, T):
    """Of each channel of each image, T² KL of the softmax over its pixels."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        channels = []
        for a, b in zip(s, t, strict=True):
            p, q = (torch.softmax(x.flatten() / T, 0) for x in (b, a))
            channels.append(T**2 * sum(u * (u.log() - v.log()) for u, v in zip(p, q, strict=True)))
        rows.append(sum(channels) / len(channels))
    return torch.stack(rows)


def of_all(maps, T):
    return torch.full((len(maps),), float(T), dtype=maps.dtype)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_the_paper_image_by_image(T):
    s, t = random_pair((2, 3, 4, 5), (2, 3, 4, 5))
    same_value_and_gradient(channelwise(s, t, of_all(s, T)), naive(s, t, T), s)


def test_the_teachers_map_is_brought_to_the_students_size():
    s, t = random_pair((2, 3, 4, 5), (2, 3, 8, 11))
    whole = interpolate(t, (4, 5), mode="bilinear", align_corners=False)
    same_value_and_gradient(channelwise(s, t, of_all(s, 2)), naive(s, whole, 2.0), s)


@pytest.mark.parametrize("T", [1, 4])
def test_published_numbers(T):
    z = oracle("more/segmentation")
    s = leaf(z["student"])
    values = channelwise(s, z["teacher"], of_all(s, T))
    as_published(values, z[f"cwd.T{T}.loss"], student=(s, z[f"cwd.T{T}.grad_student"]))
    torch.testing.assert_close(z[f"cwd.T{T}.mmrazor_loss"], z[f"cwd.T{T}.loss"])


def test_published_numbers_on_features():
    """The authors' connector is convolution, batch norm, leaky ReLU and ReLU: the last makes the leak nothing."""
    z = oracle("more/segmentation")
    s, t = leaf(z["cwd_feature.student"]), z["cwd_feature.teacher"]
    objective = CWD("1")
    shapes = [NetworkContext({"1": tuple(x.shape[1:])}, {}, nn.Identity()) for x in (s, t)]
    objective.build(BuildContext(*shapes, CLASSES, 8, None, lambda visit: None, 0))
    connector = objective.connector.double()
    names = {"0.weight": "conv.weight", "1.weight": "bn.weight", "1.bias": "bn.bias"}
    state = {ours: z[f"cwd_feature.connector.{name}"] for ours, name in names.items()}
    connector.load_state_dict(state, strict=False)
    parameters = {
        ours: (connector.get_parameter(ours), z[f"cwd_feature.grad__connector.{name}"]) for ours, name in names.items()
    }
    found = channelwise(connector(s), t, of_all(s, 4))
    as_published(found, z["cwd_feature.loss"], student=(s, z["cwd_feature.grad_student"]), **parameters)


def test_it_is_finite_where_a_probability_of_the_student_underflows():
    s, t = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    s[..., 1], s = -200.0, s
    s.requires_grad_()
    value = channelwise(s, t, torch.ones(1))
    value.sum().backward()
    assert value.item() == pytest.approx(100 - 0.6931472, rel=1e-6)
    assert s.grad.isfinite().all()


class Coarse(Pixels):
    def forward(self, x):
        return super().forward(x)[:, :, ::2]


@pytest.mark.parametrize("temperature", [2.0, None])
def test_it_trains_on_the_logits_of_two_networks(tmp_path, temperature):
    """Each image's number takes the mean weight of its pixels; None: the mean temperature of these."""
    torch.manual_seed(0)
    student, teacher = Coarse(4), Pixels(8)
    data = [row for row in masks(4) if (row["labels"] != 255).any()]
    args = arguments(
        tmp_path, task="semantic_segmentation", objective=[(3.0, CWD(temperature=temperature))], ce_weight=0.0,
        kd_weight=1.0, temperature="energy(thresholds=(-1e9, -1e9), increase=0, level='item')", learning_rate=0.0,
        weighting="entropy(level='item')", max_steps=1, per_device_train_batch_size=3,
    ) if temperature is None else arguments(
        tmp_path, task="semantic_segmentation", objective="3 * cwd(temperature=2.0)", ce_weight=0.0, kd_weight=1.0,
        weighting="entropy", learning_rate=0.0, max_steps=1, per_device_train_batch_size=3,
    )  # fmt: skip
    made = DistillationTrainer(student, teacher, args, train_dataset=data)
    images = torch.stack([row["pixel_values"] for row in data])
    with torch.no_grad():
        expected = naive(
            student(images), interpolate(teacher(images), student(images).shape[-2:], mode="bilinear"), 2.0
        )
        weights = []
        for row, image in zip(data, images, strict=True):
            known = (row["labels"] != 255) & (row["labels"] != -100)
            p, q = (
                torch.softmax(interpolate(net(image[None]), known.shape, mode="bilinear")[0] / 3, 0)[:, known]
                for net in (teacher, student)
            )
            h_t, h_s = (-(x * x.log()).sum(0) for x in (p, q))
            if temperature is not None:
                h_t, h_s = h_t.mean(), h_s.mean()
            weights.append((h_t * (1 + h_s / torch.log(torch.tensor(float(CLASSES)))) / 2).mean())
    assert made.train().training_loss == pytest.approx(3 * float((torch.stack(weights) * expected).mean()), rel=1e-4)
