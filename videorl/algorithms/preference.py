"""Losses on pairs: of two responses to one prompt, one was chosen and one rejected.

As in `losses`, a loss and every metric is a share of its mini-batch, divided by the number of its pairs. A loss of the
policy is a function (pairs, **options) -> `PairLoss`; `my_pkg.losses:my_loss` names the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from videorl.algorithms.losses import LossOutput
from videorl.algorithms.names import PREFERENCE_LOSSES, unknown_name
from videorl.imports import load_object


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs, one response a row. Ratios are log pi(token) - log pi_ref(token).

    Phrases are numbered from 1 within a response, 0 is outside of all; phrase i of the chosen response stands against
    phrase i of the rejected one. `token_kl` is KL(pi_ref || pi) of the whole distribution at each chosen token.

    The constructor sets masked entries to zero and refuses unequal shapes, and phrases of which one has no other.
    """

    chosen_log_ratios: Tensor  # [P, T], with gradient
    rejected_log_ratios: Tensor  # [P, T], with gradient
    chosen_mask: Tensor  # [P, T]
    rejected_mask: Tensor  # [P, T]
    chosen_phrases: Tensor | None = None  # [P, T] int64
    rejected_phrases: Tensor | None = None  # [P, T] int64
    token_kl: Tensor | None = None  # [P, T], with gradient

    def __post_init__(self):
        shape = self.chosen_mask.shape
        for name, tensor in vars(self).items():
            if tensor is None:
                continue
            if tensor.shape != shape:
                raise ValueError(f"Pairs: {name} has shape {tuple(tensor.shape)}, chosen_mask {tuple(shape)}")
            mask = self.rejected_mask if name.startswith("rejected") else self.chosen_mask
            object.__setattr__(self, name, torch.where(mask.bool(), tensor, torch.zeros_like(tensor)))
        for name in ("chosen_mask", "rejected_mask"):
            object.__setattr__(self, name, getattr(self, name).to(self.chosen_log_ratios.dtype))
        if self.chosen_phrases is not None and self.rejected_phrases is not None:
            counts = [_num_phrases(phrases) for phrases in (self.chosen_phrases, self.rejected_phrases)]
            for pair in torch.nonzero(counts[0] != counts[1]).flatten().tolist():
                raise ValueError(
                    f"Pairs: pair {pair} has {int(counts[0][pair])} chosen phrases and {int(counts[1][pair])} rejected "
                    "ones; each stands against one of the other response"
                )


def _num_phrases(phrases: Tensor) -> Tensor:  # [P, T] -> [P]
    return torch.tensor([len(set(row.tolist()) - {0}) for row in phrases])


@dataclass(frozen=True)
class PairLoss:
    """Of each pair: its loss, and what the loss takes for the rewards of its two responses. `[P]` each."""

    losses: Tensor
    chosen: Tensor
    rejected: Tensor


def dpo(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0, length_normalised: bool = False) -> PairLoss:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7), with z = r_chosen - r_rejected:

        -(1 - e) log sigmoid(z) - e log sigmoid(-z),  r = beta * sum over tokens of (log pi - log pi_ref)

    e is the chance that a label is wrong (conservative DPO, https://ericmitchell.ai/cdpo.pdf). With
    `length_normalised` the sum is a mean over the response's tokens.
    """
    chosen, rejected = (beta * score for score in _scores(pairs, length_normalised))
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return PairLoss(losses, chosen, rejected)


def ipo(pairs: Pairs, *, beta: float) -> PairLoss:
    """IPO (arXiv 2310.12036, eq. 17): (h - 1 / (2 beta))², h the difference of the responses' mean log-ratios.

    The paper sums over tokens; its results are of means, as its authors have said to the authors of TRL.
    """
    chosen, rejected = _scores(pairs, length_normalised=True)
    return PairLoss((chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected)


def rrpo(pairs: Pairs, *, beta: float, alpha: float) -> PairLoss:
    """Refined regularised preference optimisation (arXiv 2504.12083): only aligned phrases are preferred.

        -log sigmoid(sum over phrases i of (r_chosen_i - r_rejected_i)) + alpha * sum over chosen tokens of the KL

    with r_i = beta * sum over the tokens of phrase i of (log pi - log pi_ref), and KL(pi_ref || pi) of the whole
    distribution.
    """
    if pairs.chosen_phrases is None or pairs.rejected_phrases is None or pairs.token_kl is None:
        raise ValueError("rrpo needs the phrases of both responses and the token_kl of the chosen one")
    chosen = beta * (pairs.chosen_log_ratios * (pairs.chosen_phrases > 0)).sum(-1)
    rejected = beta * (pairs.rejected_log_ratios * (pairs.rejected_phrases > 0)).sum(-1)
    return PairLoss(-logsigmoid(chosen - rejected) + alpha * pairs.token_kl.sum(-1), chosen, rejected)


_LOSSES: dict[str, Callable[..., PairLoss]] = {"dpo": dpo, "ipo": ipo, "rrpo": rrpo}


def _scores(pairs: Pairs, length_normalised: bool) -> tuple[Tensor, Tensor]:  # [P] each
    chosen, rejected = pairs.chosen_log_ratios.sum(-1), pairs.rejected_log_ratios.sum(-1)
    if length_normalised:
        chosen = chosen / pairs.chosen_mask.sum(-1).clamp(min=1)
        rejected = rejected / pairs.rejected_mask.sum(-1).clamp(min=1)
    return chosen, rejected


def compute_preference_loss(name: str, options: Mapping[str, Any], pairs: Pairs, num_pairs: int) -> LossOutput:
    """A micro-batch's share of the mean loss over a mini-batch of `num_pairs`.

    Metrics, means over pairs: `loss`; `reward_chosen`, `reward_rejected`, `margin` between them, as the loss has them;
    `pair_accuracy`, the share of pairs with a positive margin; and, where it was given, `kl`, the mean over chosen
    tokens of a pair of KL(pi_ref || pi).

    Raises ValueError for an unknown loss, and where the pairs lack what it needs.
    """
    if ":" in name:
        loss = load_object(name)
    elif name in _LOSSES:
        loss = _LOSSES[name]
    else:
        raise unknown_name("algorithm.loss", name, PREFERENCE_LOSSES)
    result: PairLoss = loss(pairs, **options)
    metrics = _pair_metrics(result, num_pairs)
    if pairs.token_kl is not None:
        tokens = pairs.chosen_mask.sum(-1).clamp(min=1)
        metrics["kl"] = (pairs.token_kl.sum(-1) / tokens).sum() / num_pairs
    return LossOutput(metrics["loss"], {key: value.detach() for key, value in metrics.items()})


def compute_bradley_terry_loss(chosen: Tensor, rejected: Tensor, num_pairs: int, centering: float) -> LossOutput:
    """A reward model's scores of pairs, `[P]` each, to a share of the mean loss over a mini-batch of `num_pairs`.

        -log sigmoid(chosen - rejected) + centering * (chosen + rejected)²

    Bradley and Terry (1952); only differences count in it, so `centering` keeps the scores of a pair around zero
    (arXiv 2312.09244). Metrics as of `compute_preference_loss`.
    """
    losses = -logsigmoid(chosen - rejected) + centering * (chosen + rejected).square()
    metrics = _pair_metrics(PairLoss(losses, chosen, rejected), num_pairs)
    return LossOutput(metrics["loss"], {key: value.detach() for key, value in metrics.items()})


def _pair_metrics(result: PairLoss, num_pairs: int) -> dict[str, Tensor]:
    margin = result.chosen - result.rejected
    values = {
        "loss": result.losses,
        "reward_chosen": result.chosen,
        "reward_rejected": result.rejected,
        "margin": margin,
        "pair_accuracy": (margin > 0).to(margin.dtype),
    }
    return {name: value.sum() / num_pairs for name, value in values.items()}
