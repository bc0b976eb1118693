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


def over_classes(label, of_target):
    """What mixed and smoothed labels make of a loss that has one target class: sum_c label_c of_target(c)."""
    return sum(float(share) * of_target(c) for c, share in enumerate(label))


def standardize(z):
    mean = sum(map(float, z)) / len(z)
    std = math.sqrt(sum((float(x) - mean) ** 2 for x in z) / (len(z) - 1))
    return [(float(x) - mean) / (std + 1e-7) for x in z]


def energy_thresholds(energies, ratio):
    """Midway between the last energy outside and the first inside, on each side."""
    ordered = sorted(float(e) for e in energies)
    n = int(len(ordered) * ratio)
    return (ordered[n - 1] + ordered[n]) / 2, (ordered[-(n + 1)] + ordered[-n]) / 2


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


# ---- MLD: zw, zs teacher logits of the weak and strong view, vw, vs the student's, each [B, C]; Ts[k][n] -----------


def median(values):
    ordered, n = sorted(float(v) for v in values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def mld_masks(zw):
    """1 where the teacher's confidence is at most the batch's median, and the same of the classes' summed mass."""
    p = torch.stack([torch.softmax(z, 0) for z in zw])
    confidence, mass = [row.max() for row in p], [p[:, c].sum() for c in range(p.shape[1])]
    return [float(x <= median(confidence) + 1e-12) for x in confidence], [
        float(x <= median(mass) + 1e-12) for x in mass
    ]


def mld_instance(z, v, Ts):
    """T² KL at each temperature of one image."""
    return [T**2 * kl_of(torch.softmax(z / T, 0), torch.softmax(v / T, 0)) for T in Ts]


def mld_batch(z, v, T):
    """The squared rows of Pt Pt' - Ps Ps': [B]."""
    p, q = (torch.stack([torch.softmax(x / t, 0) for x, t in zip(u, T, strict=True)]) for u in (z, v))
    return [sum((p[n] @ p[m] - q[n] @ q[m]) ** 2 for m in range(len(p))) for n in range(len(p))]


def mld_class(z, v, T):
    """The squared rows of Pt' Pt - Ps' Ps: [C]."""
    p, q = (torch.stack([torch.softmax(x / t, 0) for x, t in zip(u, T, strict=True)]) for u in (z, v))
    C = p.shape[1]
    return [sum((p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2 for d in range(C)) for c in range(C)]


def mld(zw, vw, Ts, zs=None, vs=None, variant="paper", ww=None, ws=None):
    """The loss as published: means over the batch; ww, ws are EA-KD's weights of the instance terms."""
    B, C, K = len(zw), zw.shape[1], len(Ts)
    two = zs is not None
    ww, ws = ww or [1.0] * B, ws or [1.0] * B
    m_n, m_c = mld_masks(zw)
    at = [[Ts[k][n] for k in range(K)] for n in range(B)]
    weak = [mld_instance(zw[n], vw[n], at[n]) for n in range(B)]
    strong = [mld_instance(zs[n], vs[n], at[n]) for n in range(B)] if two else [[0.0] * K] * B
    total = 0.0
    if variant == "released":
        total = total + sum(0.5 * w * sum(row) for w, row in zip(ww, weak, strict=True)) / B
        if two:
            total = total + sum(w * sum(row[:-2]) for w, row in zip(ws, strong, strict=True)) / B
            total = total + sum(w * sum(row[-2:]) for w, row in zip(ww, weak, strict=True)) / B
        for T in Ts:
            total = total + 0.5 * sum(mld_batch(zw, vw, T)) / B + 0.5 * sum(mld_class(zw, vw, T)) / C
        return total
    total = total + sum(w * m * sum(row) for w, m, row in zip(ww, m_n, weak, strict=True)) / B
    total = total + sum(w * sum(row) for w, row in zip(ws, strong, strict=True)) / B
    for T in Ts:
        total = total + sum(m * x for m, x in zip(m_n, mld_batch(zw, vw, T), strict=True)) / B
        total = total + sum(m * x for m, x in zip(m_c, mld_class(zw, vw, T), strict=True)) / C
        if two:
            total = total + sum(mld_batch(zs, vs, T)) / B + sum(mld_class(zs, vs, T)) / C
    return total


def nkd(z, v, y, T, gamma=1.5):
    """- p_y log q_y - gamma T² sum over the other classes of p' log q'."""
    others = [c for c in range(len(z)) if c != int(y)]
    p, q = torch.softmax(z[others] / T, 0), torch.softmax(v[others] / T, 0)
    target = torch.softmax(z, 0)[int(y)] * torch.log(torch.softmax(v, 0)[int(y)])
    return -target - gamma * T**2 * (p * q.log()).sum()


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def dist(z, v, T, beta=1.0, gamma=1.0):
    """DIST at one temperature: means over images and over classes."""
    p, q = (torch.stack([torch.softmax(x / T, 0) for x in u]) for u in (z, v))
    B, C = p.shape
    inter = sum(1 - pearson(p[n], q[n]) for n in range(B)) / B
    intra = sum(1 - pearson(p[:, c], q[:, c]) for c in range(C)) / C
    return T**2 * (beta * inter + gamma * intra)


def merged(z, tokens, group, T, last):
    """GOLD: the probabilities of a group of tokens, each predicted one place before, of logits z [L, V] of a row."""
    chosen = group[-1] if last else group[0]
    p = softmax(z[chosen - 1], T)
    for place in group:
        if place != chosen:
            p = [x * max(softmax(z[place - 1], T)[int(tokens[place])], 1e-8) for x in p]
    return p


def uld(p, q):
    """ULD, Eq. 4: sum_k |p_(k) - q_(k)| of sorted probabilities, zeros where there are none."""
    size = max(len(p), len(q))
    p, q = (sorted(map(float, x), reverse=True) + [0.0] * (size - len(x)) for x in (p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


def gold(p, q, pairs, beta, matched=None, unmatched=None):
    """GOLD: entries (teacher's, student's) of the same text by JSD, the others sorted."""
    a = [max(p[i], 1e-8) for i, _ in pairs]
    b = [max(q[j], 1e-8) for _, j in pairs]
    if beta in (0, 1):
        jsd = kl(b, a) if beta else kl(a, b)
    else:
        m = [beta * x + (1 - beta) * y for x, y in zip(a, b, strict=True)]
        jsd = beta * kl(a, m) + (1 - beta) * kl(b, m)
    rest = uld(
        [x for i, x in enumerate(p) if i not in {i for i, _ in pairs}],
        [x for j, x in enumerate(q) if j not in {j for _, j in pairs}],
    )
    share = len(pairs) / len(p)
    return (share if matched is None else matched) * jsd + (1 - share if unmatched is None else unmatched) * rest
