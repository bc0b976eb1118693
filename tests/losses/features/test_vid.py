import math

import torch
from feature_toys import as_published, built, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.vid import VID, Gaussian


def naive(gaussian, student, teacher):
    """-log q(t | s) of a Gaussian with mean mu(s) and a variance a channel, without log(2 pi) / 2, per value."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        mean, total = gaussian.mu(s[None])[0], 0.0
        for c in range(len(t)):
            v = torch.log(1 + torch.exp(gaussian.log_scale[c])) + 1e-5
            for m, x in zip(mean[c].flatten(), t[c].flatten(), strict=True):
                total = total + ((m - x) ** 2 / v + torch.log(v)) / 2
        rows.append(total / t.numel())
    return torch.stack(rows)


def test_the_paper_image_by_image():
    gaussian = Gaussian(3, 4).double()
    s, t = random_pair((2, 3, 3, 3), (2, 4, 3, 3))
    same_value_and_gradient(gaussian(s, t), naive(gaussian, s, t), s, *gaussian.parameters())


def test_published_numbers():
    z = oracle("features/vid")
    for case in ("stages", "sizes_differ"):
        gaussians, values, gradients = [], [], {}
        for k in (1, 2, 3):
            s, t = leaf(z[f"{case}.student{k}"]), z[f"{case}.teacher{k}"]
            gaussian = Gaussian(s.shape[1], t.shape[1]).double()
            state = {f"mu.{i}.weight": z[f"{case}.regressor{k}.{i}.weight"] for i in (0, 2, 4)}
            gaussian.load_state_dict(state | {"log_scale": z[f"{case}.log_scale{k}"]})
            gaussians.append(gaussian)
            values.append(gaussian(s, t))
            torch.testing.assert_close(values[-1].mean(), z[f"{case}.loss{k}"])
            gradients[f"student{k}"] = (s, z[f"{case}.grad_student{k}"])
        as_published(sum(values), z[f"{case}.loss"], **gradients)
    assert math.isclose(Gaussian(2, 2).log_scale[0].item(), z["log_scale_initial"].item(), rel_tol=1e-6)


def test_the_variance_trains_starts_at_5_and_stands_large_arguments():
    gaussian = Gaussian(2, 2)
    assert "log_scale" in dict(gaussian.named_parameters())
    torch.testing.assert_close(torch.nn.functional.softplus(gaussian.log_scale) + 1e-5, torch.full((2,), 5.0))
    with torch.no_grad():
        gaussian.log_scale.fill_(1e3)
    gaussian(torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)).sum().backward()
    assert gaussian.log_scale.grad.isfinite().all()


def test_as_in_mdistiller_the_variance_does_not_train():
    objective, items = built(VID(train_variance=False), dtype=torch.float64)
    objective(items, torch.full((len(items),), 4.0)).sum().backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in objective.named_parameters() if ".mu." in name}
