"""The two per-item quantities that every sample-wise choice is made of: energy and entropy.

N items, C classes (or vocabulary entries).
"""

import torch
from torch import Tensor


def upcast(logits: Tensor) -> Tensor:
    """bf16 and fp16 become float32, anything wider stays: softmax statistics in half precision lose the tail."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def energy(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Energy score E_n = -T_E logsumexp_c(z_nc / T_E)  (Energy KD, Eq. 4; Liu et al., NeurIPS 2020).

    Low energy = a confident teacher. The Energy KD paper does not state T_E; its released code uses 4.
    [N, C] -> [N], in the unit of the logits.
    """
    return -temperature * torch.logsumexp(upcast(logits) / temperature, dim=-1)


def entropy(logits: Tensor, temperature: float = 3.0) -> Tensor:
    """Shannon entropy H_n = -sum_c p_nc log p_nc of p = softmax(z / T')  (EA-KD, Eq. 2-3, T' = 3).

    [N, C] -> [N], in nats, within [0, log C].
    """
    log_p = torch.log_softmax(upcast(logits) / temperature, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)
