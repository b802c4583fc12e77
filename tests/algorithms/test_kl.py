import pytest
import torch

from videorl.algorithms.kl import apply_kl_to_rewards, compute_kl
from videorl.config import KLConfig

NAN = float("nan")


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.1065307)])
def test_value_of_one_token(estimator, expected):
    # d = -1 - (-1.5) = 0.5; k2 = 0.125; k3 = e^-0.5 - 1 + 0.5
    value = compute_kl(torch.tensor(-1.0), torch.tensor(-1.5), estimator)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def distributions():
    """Logits of a policy p over three tokens, and log-probs of a reference q."""
    logits = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(distributions, estimator):
    logits, ref = distributions
    log_p = logits.log_softmax(-1)
    exact = (log_p.exp() * (log_p - ref)).sum()
    expectation = (log_p.exp() * compute_kl(log_p, ref, estimator)).sum()
    assert expectation.item() == pytest.approx(exact.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        ("k1", lambda log_p, ref: log_p.sum() * 0),
        ("k2", lambda log_p, ref: (log_p.exp() * (log_p - ref)).sum()),
        ("k3", lambda log_p, ref: (ref.exp() * (ref - log_p)).sum()),
    ],
)
def test_expected_gradient_in_the_loss(distributions, estimator, divergence):
    # The samples' probabilities carry no gradient in a loss; only the estimate does.
    logits, ref = distributions
    log_p = logits.log_softmax(-1)
    (estimated,) = torch.autograd.grad((log_p.exp().detach() * compute_kl(log_p, ref, estimator)).sum(), logits)
    (exact,) = torch.autograd.grad(divergence(logits.log_softmax(-1), ref), logits)
    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=0)


def test_a_huge_gap_stays_finite():
    log_probs = torch.tensor([-500.0], requires_grad=True)
    value = compute_kl(log_probs, torch.tensor([0.0]), "k3")
    value.sum().backward()
    assert value.isfinite().all()
    assert log_probs.grad is not None and log_probs.grad.isfinite().all()


def test_kl_is_taken_from_rewards_of_response_tokens_only():
    rewards, metrics = apply_kl_to_rewards(
        token_rewards=torch.tensor([[0.0, NAN, 1.0]]),
        old_log_probs=torch.tensor([[-1.0, NAN, -2.0]]),
        ref_log_probs=torch.tensor([[-1.5, NAN, -1.0]]),
        response_mask=torch.tensor([[1, 0, 1]]),
        kl=KLConfig(where="reward", estimator="k1", coef=0.1),
    )
    # k1 = 0.5 and -1
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.0, 1.1]]), atol=1e-6, rtol=0)
    assert metrics == pytest.approx({"kl": -0.25}, abs=1e-6)
