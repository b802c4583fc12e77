import math

import pytest
import torch

from videorl.algorithms.importance import compute_importance_weights

NAN = float("nan")


def test_weights_are_truncated_ratios_of_response_tokens():
    old = torch.tensor([[-1.0, -1.0 + math.log(4), NAN, -1.0 - math.log(2)]], requires_grad=True)
    weights, metrics = compute_importance_weights(
        old, torch.tensor([[-1.0, -1.0, NAN, -1.0]]), torch.tensor([[1, 1, 0, 1]]), cap=2.0
    )
    torch.testing.assert_close(weights, torch.tensor([[1.0, 2.0, 0.0, 0.5]]), atol=1e-6, rtol=0)
    assert not weights.requires_grad
    # k3 of ratio r is r - 1 - ln r: 0, 3 - ln 4, -0.5 + ln 2
    expected = {
        "weight_mean": 3.5 / 3,
        "capped_fraction": 1 / 3,
        "log_prob_gap_max": math.log(4),
        "kl": (2.5 - math.log(2)) / 3,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_an_absurd_gap_is_capped():
    weights, metrics = compute_importance_weights(
        torch.tensor([[0.0]]), torch.tensor([[-900.0]]), torch.tensor([[1]]), cap=5.0
    )
    assert weights.item() == 5.0
    assert metrics["log_prob_gap_max"] == 900.0
    assert math.isfinite(metrics["kl"])
