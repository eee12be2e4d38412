"""Losses over rewards: plain functions of tensors, one value a pair, so that any batch split sums to the same mean."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Return the negative log-likelihood, in nats, that each chosen answer wins by its margin; shape (num_pairs,).

    chosen, rejected: rewards, shape (num_pairs,). margin: how much better the chosen answer is known to be, in nats.
    Source: Bradley and Terry (1952), Biometrika 39; the margin term is Touvron et al. (2023), arXiv 2307.09288, eq. 2.
    """
    return -F.logsigmoid(chosen - rejected - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the squared sum of each pair's rewards, shape (num_pairs,), which pulls rewards towards mean zero.

    chosen, rejected: rewards, shape (num_pairs,).
    Source: Eisenstein et al. (2023), "Helping or Herding?", arXiv 2312.09244, eq. 2.
    """
    return (chosen + rejected).square()


def load_balancing(router_logits: Sequence[Tensor], top_k: int, token_weight: Tensor) -> Tensor:
    """Return the auxiliary loss, a scalar, that is smallest when all experts get equal work.

    router_logits: one tensor a layer, each shape (num_tokens, num_experts). top_k: experts that each token is sent to.
    token_weight: shape (num_tokens,), how many sequences pass through a token (0 for padding).
    Source: Fedus, Zoph and Shazeer (2021), "Switch Transformers", arXiv 2101.03961, eq. 4 to 6, over all layers at once.
    """
    logits = torch.cat([layer.to(token_weight.device).float() for layer in router_logits])
    weight = token_weight.float().reshape(-1).repeat(len(router_logits)).unsqueeze(-1)
    probabilities = logits.softmax(dim=-1)
    sent = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(top_k, dim=-1).indices, 1.0)
    total = weight.sum().clamp_min(1.0)
    share_of_tokens = (sent * weight).sum(0) / total
    share_of_probability = (probabilities * weight).sum(0) / total
    return logits.shape[-1] * (share_of_tokens * share_of_probability).sum()
