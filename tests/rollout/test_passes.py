"""Second passes: what is asked again, and what never is."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import FakeRenderer, FakeTokenizer
from makers import make_clip, make_group

from videorl.config import PassConfig
from videorl.rollout.passes import HintLadder, Passes, ReducedFrames, ShuffledFrames, ShuffledOptions, Start, load_pass
from videorl.types import DataError, RolloutGroup

CHOICES = ["red", "green", "blue", "yellow"]


RENDERER = FakeRenderer()


def make_row(**fields):
    return {"id": "p", "task": "mc", "prompt": "which?", "choices": CHOICES, "answer": "B", "meta": {}, **fields}


def rendered(clips=(), **fields):
    prompt = RENDERER.prompt(make_row(**fields))
    return RENDERER.render(replace(prompt, clips=tuple(clips)))


def answered(prompt, *texts, accuracy=0.0):
    group = make_group("p", [0.0] * len(texts))
    rollouts = tuple(
        replace(
            rollout, prompt=prompt, index=i, text=text, terms={"accuracy": accuracy},
            response_ids=tuple(map(ord, text)), response_mask=(1,) * len(text), rollout_log_probs=(-0.5,) * len(text),
        )
        for i, (rollout, text) in enumerate(zip(group.rollouts, texts, strict=True))
    )  # fmt: skip
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


class FakeRoll:
    """Remembers what was asked; answers with as many rollouts, right where `right(prompt)` says so."""

    def __init__(self, right=lambda prompt: False):
        self.right, self.asked = right, []

    async def __call__(self, name, prompt, starts):
        self.asked.append((name, prompt, starts))
        return answered(prompt, *["x"] * len(starts), accuracy=float(self.right(prompt)))


def run(one, group, roll):
    return asyncio.run(one.run(group, roll))


# --- shuffled frames --------------------------------------------------------------------------------------------------


def test_shuffled_frames_ask_the_same_question_about_clips_in_another_order():
    prompt = rendered([make_clip("a.mp4"), make_clip("b.mp4")])
    roll = FakeRoll()
    side = run(ShuffledFrames(RENDERER, None, 7), answered(prompt, *"abcdefgh"), roll)
    ((_, changed, starts),) = roll.asked
    assert starts == [Start()] * 4 and len(side.rollouts) == 4  # half of eight
    assert changed.token_ids == prompt.token_ids
    seeds = [media.clip.shuffle for media in changed.media]
    assert None not in seeds and seeds[0] != seeds[1]
    assert [replace(media.clip, shuffle=None) for media in changed.media] == [media.clip for media in prompt.media]


def test_shuffled_frames_are_the_same_again_and_others_for_another_seed():
    prompt = rendered([make_clip()])
    keys = [ShuffledFrames(RENDERER, None, seed).prepare(prompt).media[0].key for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_a_text_only_prompt_has_no_frames_to_shuffle():
    assert run(ShuffledFrames(RENDERER, None, 7), answered(rendered(), "a"), FakeRoll()) is None


# --- reduced frames ---------------------------------------------------------------------------------------------------


def test_reduced_frames_ask_the_same_question_about_few_frames():
    class FakeSource(FakeRenderer):
        """Every clip has eight frames."""

        source = SimpleNamespace(plan=lambda clip: (SimpleNamespace(pts=range(8)), None))

    prompt, roll = rendered([make_clip("a.mp4")]), FakeRoll()
    side = run(
        ReducedFrames(FakeSource(), None, 7, frames=2, rule="last", share=0.25), answered(prompt, *"abcdefgh"), roll
    )
    ((name, changed, starts),) = roll.asked
    assert (name, len(starts), len(side.rollouts)) == ("reduced", 2, 2)
    (media,) = changed.media
    assert media.clip == replace(prompt.media[0].clip, pick=(6, 7))


@pytest.mark.parametrize(
    "params, problem",
    [
        ({"rule": "frist"}, "params.rule: 'frist'.*first"),
        ({"frames": 0}, "params.frames: 0"),
        ({"share": 0}, "share: 0"),
    ],
)
def test_what_reduces_nothing_is_refused(params, problem):
    with pytest.raises(ValueError, match=problem):
        ReducedFrames(RENDERER, None, 7, **params)


# --- shuffled options -------------------------------------------------------------------------------------------------

TRACE = "<think>it is green</think>"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("choices", [CHOICES, ["yes", "no"]])
def test_shuffled_options_keep_the_answer_by_content_and_never_the_order(seed, choices):
    roll = FakeRoll()
    run(
        ShuffledOptions(RENDERER, FakeTokenizer(), seed),
        answered(rendered(choices=choices), f"{TRACE}<answer>B</answer>"),
        roll,
    )
    ((_, changed, _),) = roll.asked
    row = changed.prompt.row
    assert sorted(row["choices"]) == sorted(choices) and row["choices"] != choices
    assert row["choices"]["ABCD".index(row["answer"])] == choices[1]


def test_the_reasoning_stands_already_token_by_token_and_the_rollout_it_is_from_is_named():
    roll = FakeRoll()
    texts = (f"{TRACE}<answer>B</answer>", "<think>never closed", f"<think>no</think>{TRACE}")
    run(ShuffledOptions(RENDERER, FakeTokenizer(), 0), answered(rendered(), *texts), roll)
    ((_, _, starts),) = roll.asked
    assert ["".join(map(chr, start.token_ids)) for start in starts] == [TRACE, f"<think>no</think>{TRACE}"]
    assert [start.parent for start in starts] == [0, 2]


def test_letters_in_the_reasoning_may_follow_their_options():
    roll = FakeRoll()
    trace = "<think>A car. So (B), not option C</think>"
    run(ShuffledOptions(RENDERER, FakeTokenizer(), 0, remap=True), answered(rendered(), trace), roll)
    ((_, changed, (start,)),) = roll.asked
    new = {
        old: "ABCD"[changed.prompt.row["choices"].index(choice)] for old, choice in zip("ABCD", CHOICES, strict=True)
    }
    assert "".join(map(chr, start.token_ids)) == f"<think>A car. So ({new['B']}), not option {new['C']}</think>"


@pytest.mark.parametrize("group", [answered(rendered(choices=None), TRACE), answered(rendered(), "<think>never")])
def test_without_options_or_reasoning_there_is_nothing_to_ask(group):
    roll = FakeRoll()
    assert run(ShuffledOptions(RENDERER, FakeTokenizer(), 0), group, roll) is None
    assert roll.asked == []


# --- hints ------------------------------------------------------------------------------------------------------------


def ladder(prompt, right, accuracy=0.0):
    roll = FakeRoll(right)
    side = run(HintLadder(RENDERER, None, 0), answered(prompt, "a", "b", "c", accuracy=accuracy), roll)
    return side, [asked.prompt.row["prompt"] for _, asked, _ in roll.asked]


def test_the_lowest_hint_with_a_right_response_is_taken():
    prompt = rendered(meta={"hints": ["think of colours", "it is not red", "it is green"]})
    side, asked = ladder(prompt, lambda prompt: "not red" in prompt.prompt.row["prompt"])
    assert asked == ["which?\nHint: think of colours", "which?\nHint: it is not red"]
    assert side.prompt.prompt.row["prompt"] == asked[-1] and len(side.rollouts) == 3


def test_no_hint_for_a_prompt_that_is_solved_has_none_or_is_beyond_help():
    hints = {"hints": ["a", "b"]}
    assert ladder(rendered(meta=hints), lambda prompt: True, accuracy=1.0) == (None, [])
    assert ladder(rendered(), lambda prompt: True) == (None, [])
    side, asked = ladder(rendered(meta=hints), lambda prompt: False)
    assert side is None and len(asked) == 2


def test_no_hint_where_nobody_can_say_that_all_are_wrong():
    roll = FakeRoll(lambda prompt: True)
    group = answered(rendered(meta={"hints": ["h"]}), "a", "b")
    unknown = replace(group.rollouts[1], terms={}, abstained={"accuracy": "timeout: slow"})
    group = replace(group, rollouts=(group.rollouts[0],), lost=(unknown,))
    assert run(HintLadder(RENDERER, None, 0), group, roll) is None and roll.asked == []


@pytest.mark.parametrize(("reason", "passes"), [("too_long", True), ("special_token", False)])
def test_a_hint_that_does_not_fit_ends_the_ladder_and_other_faults_do_not_hide(reason, passes):
    def render(prompt):
        raise DataError(reason, "no")

    renderer = SimpleNamespace(prompt=RENDERER.prompt, render=render)
    ladder = HintLadder(renderer, None, 0)
    group = answered(rendered(meta={"hints": ["h"]}), "a")
    if passes:
        assert run(ladder, group, FakeRoll()) is None
    else:
        with pytest.raises(DataError, match="no"):
            run(ladder, group, FakeRoll())


def test_a_hint_goes_into_the_last_message_of_a_conversation():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "which?"}]
    shown = []
    renderer = SimpleNamespace(prompt=lambda row: shown.append(row["prompt"]) or row, render=lambda row: rendered())
    run(HintLadder(renderer, None, 0), answered(rendered(prompt="?", meta={"hints": ["h"]}), "a"), FakeRoll())
    prompt = rendered(meta={"hints": ["h"]})
    prompt = replace(prompt, prompt=replace(prompt.prompt, row=prompt.prompt.row | {"prompt": messages}))
    run(HintLadder(renderer, None, 0), answered(prompt, "a"), FakeRoll())
    assert shown[0] == "?\nHint: h"
    assert shown[1][0] == messages[0]
    assert shown[1][1]["content"] == [{"type": "text", "text": "which?"}, {"type": "text", "text": "\nHint: h"}]


# --- all of them ------------------------------------------------------------------------------------------------------


def passes(ensure=lambda media: {}, **configs):
    return Passes({n: PassConfig.model_validate(c) for n, c in configs.items()}, RENDERER, FakeTokenizer(), 0, ensure)


def test_the_media_of_changed_prompts_are_made_available_at_once():
    asked = []
    prompts = [rendered([make_clip("a.mp4")], id="p"), rendered([make_clip("b.mp4")], id="q"), rendered()]
    passes(lambda media: asked.append(media) or {}, s={"target": "shuffled_frames"}).prepare(prompts)
    ((first, second),) = asked
    assert (first.clip.path, second.clip.path) == ("a.mp4", "b.mp4") and first.clip.shuffle != second.clip.shuffle


def test_a_clip_that_fails_in_a_second_pass_stops_with_its_reason():
    with pytest.raises(DataError, match="second pass: broken"):
        passes(lambda media: {"k": DataError("corrupt", "broken")}, s={"target": "shuffled_frames"}).prepare(
            [rendered([make_clip()])]
        )


def test_sides_are_named_and_joined_where_asked():
    both = passes(s={"target": "shuffled_options"}, h={"target": "hint_ladder", "join": True})
    prompt = rendered(meta={"hints": ["it is green"]})
    group = asyncio.run(
        both.run(answered(prompt, TRACE), FakeRoll(lambda prompt: "Hint" in prompt.prompt.row["prompt"]))
    )
    assert list(group.sides) == ["s", "h"]
    assert both.joined(group) == [group.sides["h"]]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target": "shuffled_frame"}, "'shuffled_frame' is not a second pass; did you mean 'shuffled_frames'"),
        ({"target": "shuffled_frames", "params": {"shar": 1}}, "params: .*'shar'"),
        ({"target": "shuffled_frames", "params": {"share": "many"}}, "params.share: 'many'"),
    ],
)
def test_passes_that_do_not_fit_are_refused(config, says):
    with pytest.raises(ValueError, match=says):
        load_pass(PassConfig.model_validate(config))
