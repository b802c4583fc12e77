"""Numbers worked by hand, the split property, and TRL's own losses on the same tensors."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from videorl.algorithms.losses import merge_metrics
from videorl.algorithms.names import PREFERENCE_LOSSES
from videorl.algorithms.preference import Pairs, compute_bradley_terry_loss, compute_preference_loss
from videorl.imports import fix_imports

NAN = float("nan")


def softplus(x):
    return math.log1p(math.exp(x))


def one_pair(chosen, rejected, **others):
    """A pair of log-ratios, with a poisoned token behind the longer response."""
    width = max(len(chosen), len(rejected)) + 1

    def row(values, fill):
        return torch.tensor([[*values, *[fill] * (width - len(values))]])

    return Pairs(
        chosen_log_ratios=row(chosen, NAN),
        rejected_log_ratios=row(rejected, NAN),
        chosen_mask=row([1] * len(chosen), 0),
        rejected_mask=row([1] * len(rejected), 0),
        **{name: row(values, NAN if isinstance(values[0], float) else 9) for name, values in others.items()},
    )


def losses_of(name, pairs, **options):
    output = compute_preference_loss(name, options, pairs, len(pairs.chosen_mask))
    return output.loss.item(), merge_metrics([output.metrics])


def test_dpo():
    pairs = one_pair([0.5, 0.3], [-0.2, 0.1, 0.2])  # sums 0.8 and 0.1
    loss, metrics = losses_of("dpo", pairs, beta=0.5)
    assert loss == pytest.approx(softplus(-0.35), abs=1e-6)
    expected = {"loss": loss, "reward_chosen": 0.4, "reward_rejected": 0.05, "margin": 0.35, "pair_accuracy": 1.0}
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_dpo_with_smoothed_labels():
    loss, _ = losses_of("dpo", one_pair([0.5, 0.3], [-0.2, 0.1, 0.2]), beta=0.5, label_smoothing=0.1)
    assert loss == pytest.approx(0.9 * softplus(-0.35) + 0.1 * softplus(0.35), abs=1e-6)


def test_dpo_normalised_by_length():
    pairs = one_pair([0.5, 0.3], [-0.3, 0.3, 0.6])  # means 0.4 and 0.2
    loss, metrics = losses_of("dpo", pairs, beta=0.5, length_normalised=True)
    assert loss == pytest.approx(softplus(-0.1), abs=1e-6)
    assert metrics["margin"] == pytest.approx(0.1, abs=1e-6)


def test_ipo():
    loss, metrics = losses_of("ipo", one_pair([0.5, 0.3], [-0.3, 0.3, 0.6]), beta=0.5)
    assert loss == pytest.approx((0.2 - 1.0) ** 2, abs=1e-6)
    assert metrics["margin"] == pytest.approx(0.1, abs=1e-6)


def test_rrpo_prefers_phrases_alone_and_holds_every_chosen_token():
    pairs = one_pair(
        [9.0, 0.5, 0.3, 9.0, 1.0],
        [-9.0, -0.2, -9.0, 0.1],
        chosen_phrases=[0, 1, 1, 0, 2],
        rejected_phrases=[0, 1, 0, 2],
        token_kl=[0.1, 0.0, 0.3, 0.0, 0.1],
    )
    loss, metrics = losses_of("rrpo", pairs, beta=0.5, alpha=0.2)  # phrases: 0.8 + 1.0 against -0.2 + 0.1
    assert loss == pytest.approx(softplus(-0.95) + 0.2 * 0.5, abs=1e-6)
    assert metrics["margin"] == pytest.approx(0.95, abs=1e-6)
    assert metrics["kl"] == pytest.approx(0.1, abs=1e-6)


def test_rrpo_of_one_phrase_without_a_kl_is_dpo():
    values = [0.5, 0.3], [-0.2, 0.1, 0.2]
    refined = one_pair(*values, chosen_phrases=[1, 1], rejected_phrases=[1, 1, 1], token_kl=[0.7, 0.1])
    loss, metrics = losses_of("rrpo", refined, beta=0.5, alpha=0.0)
    assert loss == pytest.approx(losses_of("dpo", one_pair(*values), beta=0.5)[0], abs=1e-7)
    assert metrics["kl"] == pytest.approx(0.4, abs=1e-6)  # mean over two tokens


def test_phrases_without_another_are_refused():
    with pytest.raises(ValueError, match="pair 0 has 2 chosen phrases and 1 rejected"):
        one_pair([0.0, 0.0], [0.0, 0.0], chosen_phrases=[1, 2], rejected_phrases=[1, 1])


def test_rrpo_needs_its_inputs():
    with pytest.raises(ValueError, match="token_kl"):
        losses_of("rrpo", one_pair([0.0], [0.0]), beta=0.5, alpha=0.1)


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="did you mean dpo"):
        losses_of("dpoo", one_pair([0.0], [0.0]), beta=0.5)


def test_bradley_terry():
    output = compute_bradley_terry_loss(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]), 2, 0.1)
    expected = (softplus(-1.5) + 0.1 * 2.5**2 + softplus(2.0)) / 2
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.metrics["pair_accuracy"].item() == 0.5


def random_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 7)
    lengths = torch.randint(1, 7, (2, 5), generator=generator)
    chosen_mask, rejected_mask = (torch.arange(7)[None] < length[:, None] for length in lengths)
    chosen, rejected = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return {
        "chosen_log_ratios": chosen.masked_fill(~chosen_mask, NAN).requires_grad_(),
        "rejected_log_ratios": rejected.masked_fill(~rejected_mask, NAN).requires_grad_(),
        "chosen_mask": chosen_mask,
        "rejected_mask": rejected_mask,
        "chosen_phrases": (torch.arange(7)[None] < 1).long().expand(shape),
        "rejected_phrases": (torch.arange(7)[None] < 1).long().expand(shape),
        "token_kl": torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_(),
    }


OPTIONS = {"dpo": {"beta": 0.3, "label_smoothing": 0.1}, "ipo": {"beta": 0.3}, "rrpo": {"beta": 0.3, "alpha": 0.5}}


def test_every_loss_has_its_options_listed():
    assert OPTIONS.keys() == PREFERENCE_LOSSES.keys()
    for name, (needed, further) in PREFERENCE_LOSSES.items():
        assert needed <= OPTIONS[name].keys() <= needed | further


@pytest.mark.parametrize("name", OPTIONS)
def test_the_cut_into_micro_batches_changes_nothing(name):
    tensors = random_pairs(0)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]

    def run(parts):
        shares = [
            compute_preference_loss(name, OPTIONS[name], Pairs(**{k: v[part] for k, v in tensors.items()}), 5)
            for part in parts
        ]
        loss = sum(share.loss for share in shares)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        return loss.item(), gradients, merge_metrics(share.metrics for share in shares)

    whole, parts = run([[0, 1, 2, 3, 4]]), run([[3, 1], [0], [4, 2]])
    assert parts[0] == pytest.approx(whole[0], abs=1e-9)
    assert parts[2] == pytest.approx(whole[2], abs=1e-9)
    for one, other in zip(parts[1], whole[1], strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def same(value):
    return value


class FakePolicy:
    """Answers with given log-probs, where TRL asks a model for them. What it only logs is zero."""

    training = True

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def __call__(self, **_):
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.mark.parametrize(
    "theirs, name, options",
    [
        ("sigmoid", "dpo", {"beta": 0.3}),
        ("sigmoid_norm", "dpo", {"beta": 0.3, "length_normalised": True}),
        ("ipo", "ipo", {"beta": 0.3}),
    ],
)
def test_trl_agrees(theirs, name, options):
    fix_imports()
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    tensors = random_pairs(1)
    reference = torch.randn(10, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ratios = torch.cat([tensors["chosen_log_ratios"], tensors["rejected_log_ratios"]]).detach()
    mask = torch.cat([tensors["chosen_mask"], tensors["rejected_mask"]])
    log_probs = ((ratios.nan_to_num() + reference) * mask).requires_grad_()
    ref = (reference * mask).sum(1)
    fields = {
        "model": SimpleNamespace(training=True),
        "accelerator": SimpleNamespace(device="cpu", gather_for_metrics=same, gather=same),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": [theirs],
        "loss_weights": [1.0],
        "beta": options["beta"],
        "label_smoothing": 0.0,
        "use_weighting": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    ids = torch.zeros(10, 8, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": torch.cat([torch.zeros(10, 1, dtype=torch.long), mask.long()], 1),
        "ref_chosen_logps": ref[:5],
        "ref_rejected_logps": ref[5:],
    }
    loss = trainer._compute_loss(SimpleNamespace(**fields), FakePolicy(log_probs), inputs, return_outputs=False)
    ours = compute_preference_loss(name, options, Pairs(**{k: v for k, v in tensors.items() if k != "token_kl"}), 5)
    assert ours.loss.item() == pytest.approx(loss.item(), abs=1e-9)
