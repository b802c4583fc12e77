from types import SimpleNamespace

import pytest
import torch

from videorl.algorithms.losses import LossInputs, compute_policy_loss, merge_metrics
from videorl.config import AlgorithmConfig

DEFAULTS = {
    "advantage": "grpo",
    "norm_by_std": True,
    "gamma": 1.0,
    "lam": 1.0,
    "loss": "vanilla",
    "loss_options": {},
    "advantage_options": {},
    "loss_agg": "token-mean",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "clip_dual": 3.0,
    "entropy_coef": 0.0,
    "kl": None,
    "importance_cap": None,
    "dynamic_sampling": None,
    "overlong": None,
}


@pytest.fixture(scope="session")
def make_algorithm():
    return lambda **changes: AlgorithmConfig(**DEFAULTS | changes)


def random_mini_batch(seed):
    """Six rows of up to five response tokens with holes; one row is padding alone. Masked entries are NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(6, 5, generator=generator, dtype=torch.float64)

    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[:5, 0] = True
    mask[5] = False
    old_log_probs = -normal(1.0).abs() - 0.5
    tensors = {
        "log_probs": old_log_probs + normal(0.4),
        "old_log_probs": old_log_probs,
        "advantages": normal(1.0),
        "importance_weights": normal(1.0).abs(),
        "rollout_log_probs": old_log_probs + normal(0.1),
        "ref_log_probs": old_log_probs + normal(0.3),
        "entropy": normal(1.0).abs(),
    }
    tensors = {name: tensor.masked_fill(~mask, torch.nan) for name, tensor in tensors.items()}
    counts = {"num_tokens": int(mask.sum()), "num_sequences": 5, "max_response_tokens": 7}
    return SimpleNamespace(tensors=tensors, mask=mask, counts=counts)


def loss_and_gradients(batch, parts, algorithm):
    """The summed loss over `parts` (lists of rows), the gradients of log_probs and entropy, and the merged metrics.

    Each part is padded by its own number of NaN columns, since micro-batches differ in width.
    """
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in batch.tensors.items()}
    total, metrics = 0.0, []
    for columns, rows in enumerate(parts):

        def part(tensor, rows=rows, columns=columns):
            return torch.nn.functional.pad(tensor[rows], (0, columns), value=torch.nan)

        output = compute_policy_loss(
            LossInputs(
                **{name: part(leaf) for name, leaf in leaves.items()},
                response_mask=torch.nn.functional.pad(batch.mask[rows], (0, columns)),
                **batch.counts,
            ),
            algorithm,
        )
        output.loss.backward()
        total += output.loss.item()
        metrics.append(output.metrics)
    gradients = [leaves[name].grad for name in ("log_probs", "entropy") if leaves[name].grad is not None]
    return total, gradients, merge_metrics(metrics)


@pytest.fixture(scope="session")
def mini_batches():
    return SimpleNamespace(random=random_mini_batch, loss_and_gradients=loss_and_gradients)


@pytest.fixture(scope="session")
def assert_split_invariant():
    def check(algorithm, seed, parts):
        batch = random_mini_batch(seed)
        whole_loss, whole_gradients, whole_metrics = loss_and_gradients(batch, [list(range(6))], algorithm)
        loss, gradients, metrics = loss_and_gradients(batch, parts, algorithm)
        assert loss == pytest.approx(whole_loss, abs=1e-9)
        assert metrics == pytest.approx(whole_metrics, abs=1e-9)
        for gradient, whole in zip(gradients, whole_gradients, strict=True):
            torch.testing.assert_close(gradient, whole, atol=1e-9, rtol=0)
            assert (gradient[~batch.mask] == 0).all()

    return check
