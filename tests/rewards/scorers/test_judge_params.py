"""Bad parameters are refused before a run starts, in words that say which and why, and that repeat no key."""

from __future__ import annotations

import pytest

from videorl.rewards.scorers.judge_params import EndpointParams, JudgeParams, PairwiseParams, read_params

URL = "http://127.0.0.1:8001/v1"
GOOD = {"kind": "open_ended", "base_url": URL, "model": "judge"}
KEY = "sk-planted-0123456789"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"kind": "critic", "reference": None, "tags": None},
        {"kind": "custom", "template": "Is it polite?", "scale": [1, 10], "reference": None},
        {"base_url": "https://judge.example.com/v1/", "api_key_env": "JUDGE_KEY"},
        {"temperature": None, "max_tokens": None, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"retries": 0, "retry_after_max": 0, "canary_max": 0},
    ],
)
def test_good_ones(more):
    assert read_params(JudgeParams, {**GOOD, **more}).model == "judge"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "next-event"}, "params.kind: 'next-event', input should be 'next_event', "),
        ({"model": " "}, "params.model: ' ', string should match"),
        ({"base_url": "localhost:8000"}, "params.base_url: must look like http://host:port/v1"),
        ({"base_url": "file:///etc/passwd"}, "params.base_url: must look like"),
        ({"timeout": 0}, "params.timeout: 0, input should be greater than 0"),
        ({"timeout": 200}, "params: timeout=200.0 must be at most deadline=180.0"),
        ({"deadline": float("inf")}, "params.deadline: inf, input should be a finite number"),
        ({"temperature": -1}, "params.temperature: -1, "),
        ({"retries": -1}, "params.retries: -1, "),
        ({"concurrency": 0}, "params.concurrency: 0, "),
        ({"breaker_failures": 0}, "params.breaker_failures: 0, "),
        ({"max_chars": 10}, "params.max_chars: 10, "),
        ({"canary_max": 1.5}, "params.canary_max: 1.5, "),
        ({"extra_body": {"stream": True}}, "params: extra_body.stream is set by the client"),
        ({"tags": "think"}, "params.tags: 'think', "),
        ({"reference": None}, "params: kind='open_ended' compares with a reference"),
        ({"kind": "custom"}, "params: kind='custom' needs both template and scale"),
        ({"kind": "custom", "template": "Is it polite?"}, "params: kind='custom' needs both"),
        ({"template": "Is it polite?"}, "params: kind='open_ended' has its own template and scale"),
        ({"kind": "custom", "template": "x", "scale": [5, 5]}, "params.scale: [5, 5], must be [lowest, highest]"),
        ({"kind": "custom", "template": "x", "scale": [0, float("nan")]}, "params.scale: [0, nan], must be"),
        ({"kind": "custom", "template": "x", "scale": [-1e308, 1e308]}, "params.scale: "),
        ({"max_token": 5}, "params.max_token is not a parameter"),
    ],
)
def test_bad_ones(more, message):
    with pytest.raises(ValueError) as error:
        read_params(JudgeParams, {**GOOD, **more})
    assert str(error.value).startswith(message)


def test_what_has_no_default_is_asked_for_all_at_once():
    with pytest.raises(ValueError) as error:
        read_params(JudgeParams, {})
    assert str(error.value).splitlines() == [
        f"params.{name} is missing and has no default" for name in ("base_url", "model", "kind")
    ]


def test_a_pairwise_judge_has_no_kind():
    assert read_params(PairwiseParams, {"base_url": URL, "model": "judge", "reference": None}).reference is None
    with pytest.raises(ValueError, match=r"params\.kind is not a parameter"):
        read_params(PairwiseParams, GOOD)


@pytest.mark.parametrize(
    "misplaced",
    [{"api_key": KEY}, {"api_key_env": KEY}, {"base_url": f"http://user:{KEY}@host/v1"}, {"base_url": KEY}],
)
def test_a_misplaced_key_is_refused_and_not_repeated(misplaced):
    for read in (
        lambda: read_params(JudgeParams, {**GOOD, **misplaced}),
        lambda: EndpointParams(**{**GOOD, **misplaced}),
    ):
        with pytest.raises(ValueError) as error:
            read()
        assert KEY not in str(error.value) + repr(error.value)
        assert error.value.__cause__ is None
