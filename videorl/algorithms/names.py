"""Which advantage estimators and policy losses there are, and what each needs.

Imports neither torch nor verl, so that a configuration can be checked at once. That the tables agree with the
registries of the installed verl is a test. Beside the names listed here, any estimator or loss can be given as an
import string, `my_pkg.credit:my_estimator`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

from videorl.imports import load_object

# Estimator -> what it needs beside rewards and mask, in the words of `compute_advantages`.
ADVANTAGES: dict[str, frozenset[str]] = {
    "gae": frozenset({"values"}),
    "grpo": frozenset({"groups"}),
    "dr_grpo": frozenset({"groups"}),
    "grpo_vectorized": frozenset({"groups"}),
    "grpo_passk": frozenset({"groups"}),
    "gdpo": frozenset({"groups", "term_rewards", "term_weights"}),
    "rloo": frozenset({"groups"}),
    "rloo_vectorized": frozenset({"groups"}),
    "opo": frozenset({"groups"}),
    "gpg": frozenset({"groups"}),
    "reinforce_plus_plus": frozenset(),
    "reinforce_plus_plus_baseline": frozenset({"groups"}),
    "remax": frozenset({"reward_baselines"}),
    "optimal_token_baseline": frozenset({"groups", "old_log_probs", "sum_pi_squared"}),
    "bilevel_gae": frozenset({"values", "turn_gamma", "turn_lam"}),
    "turn_gae": frozenset({"values", "turn_gamma", "turn_lam"}),
    "turn_grpo": frozenset({"groups", "turn_gamma"}),
    "tir_optimal_token_baseline": frozenset({"groups", "old_log_probs", "sum_pi_squared"}),
}

LOSSES = (
    "vanilla",
    "gspo",
    "cispo",
    "bypass_mode",
    "clip_cov",
    "dppo_kl",
    "dppo_tv",
    "dro",
    "geo_mean",
    "gpg",
    "kl_cov",
    "sapo",
)

# Losses that pick tokens by their rank within one micro-batch. Their loss, unlike that of all others, depends on how
# a mini-batch is cut into micro-batches and ranks.
SPLIT_DEPENDENT_LOSSES = frozenset({"clip_cov", "kl_cov"})

# Losses whose aggregation is part of their definition.
FIXED_LOSS_AGG = {"geo_mean": "seq-mean-token-mean", "sapo": "seq-mean-token-mean"}

# Numbers between 0 and 1 that some estimators need beside `gamma` and `lam`, in `algorithm.advantage_options`.
ADVANTAGE_OPTIONS = frozenset({"turn_gamma", "turn_lam"})

# Losses with one ratio for a whole response: an episode in several rows has no such thing.
SEQUENCE_LOSSES = frozenset({"gspo", "geo_mean"})

# Loss of the policy on pairs, of `videorl.prefer` -> the options it needs, and those it can do without.
PREFERENCE_LOSSES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "dpo": (frozenset({"beta"}), frozenset({"label_smoothing", "length_normalised"})),
    "ipo": (frozenset({"beta"}), frozenset()),
    "rrpo": (frozenset({"beta", "alpha"}), frozenset()),
}

# The same of a reward model, of `videorl.reward_model`.
REWARD_MODEL_LOSSES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "bradley_terry": (frozenset({"centering"}), frozenset()),
}

PAIR_LOSSES = PREFERENCE_LOSSES | REWARD_MODEL_LOSSES

# Losses on pairs that need the phrases in which the two responses differ.
PHRASE_LOSSES = frozenset({"rrpo"})

# Losses on pairs that need the whole distribution of the reference.
TOKEN_KL_LOSSES = frozenset({"rrpo"})

# verl's word -> ours, for parameters of an estimator.
VERL_PARAMETERS = {
    "token_level_rewards": "token_rewards",
    "index": "groups",
    "rollout_is_weights": "importance_weights",
    "norm_adv_by_std_in_grpo": "norm_by_std",
}

_ALWAYS_GIVEN = frozenset({"token_rewards", "response_mask", "gamma", "lam", "norm_by_std"})


def advantage_needs(name: str) -> frozenset[str]:
    """What the estimator needs beside rewards and mask. An imported function needs what its parameters require."""
    if ":" in name:
        required = (
            VERL_PARAMETERS.get(parameter.name, parameter.name)
            for parameter in inspect.signature(load_object(name)).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        )
        return frozenset(required) - _ALWAYS_GIVEN
    if name not in ADVANTAGES:
        raise unknown_name("algorithm.advantage", name, ADVANTAGES)
    return ADVANTAGES[name]


def needs_critic(name: str) -> bool:
    """Whether the estimator reads values, so that a critic has to be configured."""
    return "values" in advantage_needs(name)


def needs_group(name: str) -> bool:
    """Whether the estimator compares the rollouts of one prompt, so that `group_size` has to be at least 2."""
    return "groups" in advantage_needs(name)


def unknown_name(key: str, name: str, known: Iterable[str]) -> ValueError:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ValueError(f"{key}={name} is not known; {hint}choose one of {', '.join(known)}")
