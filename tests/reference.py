"""The formulas as the papers write them: one item at a time, in probabilities, float64. Slow on purpose.

z teacher logits, v student logits, y the target class, T the temperature.
"""

import math

import torch


def softmax(z, T):
    e = [math.exp(float(x) / T - max(float(u) for u in z) / T) for x in z]
    return [x / sum(e) for x in e]


def energy(z, T_E):
    """Energy KD, Eq. 4: E = -T_E log sum exp(z / T_E)."""
    return -T_E * math.log(sum(math.exp(float(x) / T_E) for x in z))


def entropy(z, T):
    """EA-KD, Eq. 2: H = -sum p log p."""
    return -sum(p * math.log(p) for p in softmax(z, T) if p > 0)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kd(z, v, y, T):
    return T**2 * kl(softmax(z, T), softmax(v, T))


def tckd(z, v, y, T):
    p, q = softmax(z, T)[y], softmax(v, T)[y]
    return kl([p, 1 - p], [q, 1 - q])


def nckd(z, v, y, T):
    p, q = softmax(z, T), softmax(v, T)
    p_hat = [x / (1 - p[y]) for c, x in enumerate(p) if c != y]
    q_hat = [x / (1 - q[y]) for c, x in enumerate(q) if c != y]
    return kl(p_hat, q_hat)


def dkd(z, v, y, T, alpha=1.0, beta=8.0, epoch=1, warmup=20):
    """DKD, Eq. 7, with the released code's ramp; epoch counts from 1."""
    ramp = min(epoch / warmup, 1.0) if warmup else 1.0
    return ramp * T**2 * (alpha * tckd(z, v, y, T) + beta * nckd(z, v, y, T))


def standardize(z):
    mean = sum(map(float, z)) / len(z)
    std = math.sqrt(sum((float(x) - mean) ** 2 for x in z) / (len(z) - 1))
    return [(float(x) - mean) / (std + 1e-7) for x in z]


def energy_thresholds(energies, ratio):
    ordered = sorted(float(e) for e in energies)
    n = int(len(ordered) * ratio)
    return ordered[n], ordered[-(n + 1)]


def energy_temperature(E, low, high, T=4.0, increase=2.0, decrease=2.0):
    """Energy KD, Eq. 9."""
    if E < low:
        return T + increase
    if E > high:
        return T - decrease
    return T


def ea_weight(z, v, T=3.0, bound=None):
    """EA-KD, Eq. 7: w = H_T (1 + H_S / log C) / 2."""
    bound = math.log(len(z)) if bound is None else bound
    return entropy(z, T) * (1 + entropy(v, T) / bound) / 2


# ---- two-distribution formulas in torch, so that autograd gives the gradient; p, q are probabilities [C], float64 --


def kl_of(p, q):
    return (p * (p / q).log()).sum()


def reverse_kl(p, q):
    return kl_of(q, p)


def jsd(p, q, beta=0.5):
    """GKD, Eq. 1, with TRL's ends."""
    if beta in (0, 1):
        return kl_of(q, p) if beta else kl_of(p, q)
    m = beta * p + (1 - beta) * q
    return beta * kl_of(p, m) + (1 - beta) * kl_of(q, m)


def skew_kl(p, q, alpha=0.1):
    """DistiLLM, Eq. 4."""
    return kl_of(p, alpha * p + (1 - alpha) * q)


def skew_reverse_kl(p, q, alpha=0.1):
    return kl_of(q, (1 - alpha) * p + alpha * q)


def adaptive_kl(p, q, mu=0.5):
    """AKL: take the teacher's classes from the top until they hold mu; the gaps weigh the two directions."""
    head, mass = [], 0.0
    for c in sorted(range(len(p)), key=lambda c: -float(p[c])):
        if head and mass >= mu:
            break
        head.append(c)
        mass += float(p[c])
    gaps = (p - q).abs().tolist()
    g_head = sum(gaps[c] for c in head)
    return g_head / sum(gaps) * kl_of(p, q) + (1 - g_head / sum(gaps)) * kl_of(q, p)


def total_variation(p, q):
    return (p - q).abs().sum() / 2


def rows(function, *tensors, **keywords):
    """Apply a reference to each row of the tensors: [N]."""
    return torch.tensor([function(*row, **keywords) for row in zip(*tensors, strict=True)], dtype=torch.float64)
