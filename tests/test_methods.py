"""The formulas of five papers, worked by hand, through the whole path: responses, terms, hooks, rewards, advantages.

The configurations are the shipped recipes; only the engine is a fake that says what a test wants it to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import FAKE_MODEL, FakeEngine, FakeRenderer, FakeTokenizer
from makers import make_media, make_rendered, make_rollout

from videorl.algorithms.losses import LossInputs, compute_policy_loss
from videorl.config import Config, load_config
from videorl.data.batch import make_batch
from videorl.rewards.rubric import Rubric
from videorl.rollout.passes import Passes
from videorl.rollout.runner import Runner, Training
from videorl.train import assign_credit
from videorl.types import Request, RolloutGroup

RIGHT, WRONG = "<think>t</think><answer>B</answer>", "<think>t</think><answer>A</answer>"
ROW = {
    "id": "p", "task": "mc", "prompt": "which?", "choices": ["red", "green"], "answer": "B", "spans": None,
    "videos": [], "meta": {"problem_type": "multiple choice"},
}  # fmt: skip


def recipe(name: str) -> Config:
    return load_config("train", [f"recipe={name}", "data.path=rows.jsonl", "data.media_root=."])


def roll(
    config: Config,
    first: Sequence[str],
    second: Sequence[str] = (),
    *,
    is_second: Callable[[Request], bool] = lambda request: False,
    row: dict[str, Any] = ROW,
    done: float = 0.0,
) -> RolloutGroup:
    """One group whose responses are these; `second` are those of a second pass, from where they go on."""
    answers = {False: iter(first), True: iter(second)}
    engine = FakeEngine(lambda request: [ord(letter) for letter in next(answers[is_second(request)])])
    renderer = FakeRenderer()
    passes = Passes(config.rollout.passes, renderer, FakeTokenizer(), 0, lambda media: {})  # type: ignore[arg-type]
    runner = Runner(config, FAKE_MODEL, engine, Rubric(config.rewards))
    prompt = renderer.prompt(row)
    media = make_media()
    prompt = renderer.render(replace(prompt, clips=(media.clip,)))
    (group,) = runner.collect(
        [prompt], group_size=len(first), temperature=1.0, label="step 1", progress=lambda done: None,
        training=Training(done, passes),
    )  # fmt: skip
    assert group.lost == ()
    return group


def advantages(config: Config, group: RolloutGroup) -> list[float]:
    """One for each rollout: they are the same on all its tokens."""
    batch = make_batch([group])
    log = SimpleNamespace(metrics=lambda area, numbers: None)
    credit = assign_credit(config, batch, log).need("advantages")  # type: ignore[arg-type]
    for values, mask in zip(credit, batch.response_mask, strict=True):
        assert values[mask].unique().numel() == 1 and not values[~mask].any()
    return credit[:, 0].tolist()


def padded(response: str, length: int) -> str:
    """The response with a longer reasoning: `length` tokens, of one character each."""
    return response.replace("<think>t", "<think>" + "t" * (length - len(response) + 1))


def test_t_grpo_of_video_r1():
    """Format 1 each. Right: 4 of 8 in order, 2 of 4 shuffled: 0.5 >= 0.8 * 0.5, so 0.3 to each right one. Length: two
    and more are right, and one of them has 320 to 512 tokens: 0.2."""
    config = recipe("video_r1")
    first = [padded(RIGHT, 400), RIGHT, RIGHT, padded(RIGHT, 513), WRONG, WRONG, WRONG, padded(WRONG, 400)]
    shuffled = [RIGHT, WRONG, RIGHT, WRONG]
    group = roll(config, first, shuffled, is_second=lambda request: request.media[0].clip.shuffle is not None)
    assert group.rewards == pytest.approx((2.5, 2.3, 2.3, 2.3, 1.0, 1.0, 1.0, 1.0))
    # mean 1.675; squared deviations 0.825^2 + 3 * 0.625^2 + 4 * 0.675^2 = 3.675; std sqrt(3.675 / 7) = 0.724569
    wanted = [1.138608] + [0.862582] * 3 + [-0.931588] * 4
    assert advantages(config, group) == pytest.approx(wanted, abs=1e-5)


def test_t_grpo_gives_nothing_where_the_order_does_not_matter():
    config = recipe("video_r1")
    group = roll(
        config, [RIGHT, WRONG, WRONG, WRONG], [RIGHT, RIGHT],
        is_second=lambda request: request.media[0].clip.shuffle is not None,
    )  # fmt: skip
    assert group.rewards == pytest.approx((2.0, 1.0, 1.0, 1.0))  # 0.25 < 0.8 * 1
    # mean 1.25; squared deviations 0.75^2 + 3 * 0.25^2 = 0.75; std 0.5
    assert advantages(config, group) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)


def test_acre():
    """Two options, so the other order swaps the letters: after it A is right. The table gives 0.5 where both are."""
    config = recipe("acre")
    second = ["<answer>A</answer>", "<answer>B</answer>", "<answer>A</answer>", "<answer>B</answer>"]
    group = roll(config, [RIGHT, RIGHT, WRONG, WRONG], second, is_second=lambda request: bool(request.start))
    assert group.rewards == pytest.approx((2.5, 2.0, 1.0, 1.0))
    # mean 1.625; squared deviations 0.875^2 + 0.375^2 + 2 * 0.625^2 = 1.6875; std 0.75
    assert advantages(config, group) == pytest.approx([1.166667, 0.5, -0.833333, -0.833333], abs=1e-5)


def test_harmo():
    """Right responses of 40 and 60 tokens: mean 50. 60 is 0.2 over it, 70 is 0.4, 100 is 1, capped at 0.5."""
    config = recipe("harmo")
    group = roll(config, [padded(RIGHT, 40), padded(RIGHT, 60), padded(WRONG, 70), padded(WRONG, 100)])
    assert group.rewards == pytest.approx((2.0, 1.8, 0.6, 0.5))
    # mean 1.225, and no division by the deviation
    assert advantages(config, group) == pytest.approx([0.775, 0.575, -0.625, -0.725], abs=1e-6)


def boxes(*found: Sequence[float]) -> str:
    return "[" + ", ".join(f'{{"bbox_2d": {list(box)}, "label": "cup"}}' for box in found) + "]"


@pytest.mark.parametrize(
    ("done", "rewards", "wanted"),
    [
        # Format 1; recall f(share found at IoU >= 0.5): f(1) = 1, f(0.5) = 0.5, f(1) = 1; precision f(0.8) = 1, 1,
        # f(0.6) = 0.6. Mean 2.7, squared deviations 0.09 + 0.04 + 0.01, std sqrt(0.07) = 0.264575.
        (0.0, (3.0, 2.5, 2.6), [1.133893, -0.755929, -0.377964]),
        (0.499, (3.0, 2.5, 2.6), [1.133893, -0.755929, -0.377964]),
        # Found at IoU >= 0.75: f(1) = 1, f(0.5) = 0, f(0) = 0; precision f(0.8) = 0.8, 1, f(0.6) = 0.
        # Mean 1.933333, squared deviations 0.751111 + 0.004444 + 0.871111, std sqrt(0.813333) = 0.901850.
        (0.5, (2.8, 2.0, 1.0), [0.960988, 0.073922, -1.034910]),
    ],
)
def test_vision_r1_is_stricter_in_the_second_half(done, rewards, wanted):
    config = recipe("vision_r1")
    row = ROW | {"task": "custom", "meta": {"boxes": [[0, 0, 10, 10], [20, 0, 30, 10]]}}
    responses = [
        boxes([0, 0, 10, 8], [20, 0, 30, 8]),  # both, with IoU 0.8
        boxes([0, 0, 10, 10]),  # one, exactly
        boxes([0, 0, 10, 6], [20, 0, 30, 6]),  # both, with IoU 0.6
    ]
    group = roll(config, responses, row=row, done=done)
    assert group.rewards == pytest.approx(rewards)
    assert advantages(config, group) == pytest.approx(wanted, abs=1e-5)


def test_gspo_of_keye():
    """Rewards 1 and 0: advantages +-0.5 / 0.707107. The sequence ratios e^0.1 and e^-0.1 leave the clip range on the
    side where the bound holds: 1.0004 A for the first row, 0.9997 A for the second."""
    config = recipe("keye_gspo")
    group = roll(config, [RIGHT, WRONG])
    assert group.rewards == (1.0, 0.0)
    credit = advantages(config, group)
    assert credit == pytest.approx([0.707106, -0.707106], abs=1e-5)

    batch = make_batch([group])
    mask = batch.response_mask
    old = torch.full(mask.shape, -1.0)
    new = old + torch.tensor([[0.1], [-0.1]])
    inputs = LossInputs(
        log_probs=new.requires_grad_(), old_log_probs=old, advantages=torch.tensor(credit)[:, None].expand(mask.shape),
        response_mask=mask, num_tokens=int(mask.sum()), num_sequences=2, max_response_tokens=64,
    )  # fmt: skip
    loss = compute_policy_loss(inputs, config.algorithm).loss
    assert loss.item() == pytest.approx(-0.707106 * (1.0004 - 0.9997) / 2, abs=1e-6)
    loss.backward()
    assert new.grad is None or not new.grad.any()  # both rows are clipped: no gradient


def test_the_hint_ladder_of_keye_replaces_what_teaches_nothing():
    """All wrong without a hint: zero advantages. With the second hint one of two is right, and that group trains."""
    config = recipe("keye_gspo")
    row = ROW | {"meta": {"hints": ["think of plants", "it is the colour of grass"]}}
    group = roll(
        config, [WRONG, WRONG], [WRONG, WRONG, RIGHT, WRONG], row=row,
        is_second=lambda request: "Hint" in "".join(map(chr, request.token_ids)),
    )  # fmt: skip
    assert advantages(config, group) == [0.0, 0.0]
    side = group.sides["hints"]
    assert "grass" in side.prompt.prompt.row["prompt"]
    assert advantages(config, side) == pytest.approx([0.707106, -0.707106], abs=1e-5)


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_a_turn_that_is_left_out_of_the_loss_earns_credit_all_the_same():
    """Two turns of one token, one of an environment's between: GRPO over returns 1 and 0 gives +-1/sqrt(2) (unbiased
    deviation), on both turns; the loss sees the first alone."""
    config = load_config("train", ["recipe=earl_cpu"])
    shown = make_rendered("bikes", (1, 9, 2), [make_media("a", grid=(1, 2, 2))])
    rollouts = [
        replace(
            make_rollout(shown, (5, 6, 7), mask=(1, 0, 1), log_probs=(-1.0, 0.0, -2.0), reward=reward),
            trained=(True, False),
        )
        for reward in (1.0, 0.0)
    ]
    batch = make_batch([RolloutGroup(prompt=shown, rollouts=tuple(rollouts))])
    batch = batch.with_(old_log_probs=batch.rollout_log_probs)
    credited = assign_credit(config, batch, SimpleNamespace(metrics=lambda area, numbers: None))  # type: ignore[arg-type]
    half = 0.5**0.5
    assert credited.need("advantages").tolist() == [pytest.approx([s * half, 0, s * half], abs=1e-5) for s in (1, -1)]
    assert credited.response_mask.tolist() == [[True, False, False]] * 2
