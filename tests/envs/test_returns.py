"""What oracle, lazy and adversarial policies earn in each environment: the numbers are worked by hand."""

from __future__ import annotations

import pytest
from env_policies import GARBAGE, make_task, make_video, perfect, play

from videorl.envs.earl import Earl, write_selection
from videorl.envs.framethinker import FrameThinker
from videorl.envs.records import Action, Episode, Evidence, Task
from videorl.envs.video_com import VideoCoM
from videorl.envs.video_mtr import VideoMTR
from videorl.envs.vr_thinker import VRThinker


def total(env, episode: Episode, progress: float = 1.0) -> float:
    return env.score(episode, progress).total


def test_the_oracle_earns_it_wherever_the_evidence_is():
    for start in (0.0, 1.0, 30.0, 61.0, 63.0):
        task = make_task(spans=((start, start + 0.5),))
        for env in (VideoMTR(), FrameThinker(), Earl()):
            episode = play(env, task, perfect)
            assert episode.status == "done" and env.score(episode).parts["accuracy"] == 1.0
            assert all(turn.action.error is None for turn in episode.turns)


# --- Video-MTR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "earned"), [("paper", 1.7), ("release", 1.6)])
def test_mtr_oracle(variant, earned):
    env = VideoMTR(variant=variant)
    assert total(env, play(env, make_task(), perfect)) == pytest.approx(earned)


def retrieve(first: int, last: int) -> str:
    return f"<think>look</think><retrieve>{first},{last}</retrieve>"


def test_mtr_endless_retrieving_is_gated():
    responses = [retrieve(40, 43), retrieve(41, 42), retrieve(40, 41)]
    env = VideoMTR()
    episode = play(env, make_task(), responses)
    assert episode.status == "truncated"
    assert total(env, episode) == pytest.approx(0.1)  # the format of the last turn
    free = VideoMTR(gated=False)
    assert total(free, play(free, make_task(), responses[:1])) >= 0.1
    assert total(free, play(free, make_task(), responses)) >= 0.3 - 0.5  # what it costs to do worse than the best


def test_mtr_a_wrong_answer_earns_its_format_alone():
    env = VideoMTR()
    assert total(env, play(env, make_task(), [retrieve(40, 43), "<think>x</think><answer>A</answer>"])) == 0.1


def test_mtr_a_retrieve_that_is_no_better_than_the_best_costs():
    """IoU of the 4 gold frames: 1 at first, then 2 of 4: a drop of half, of which half is the penalty."""
    env = VideoMTR(drop=0.5)
    answer = "<think>x</think><answer>B</answer>"
    score = env.score(play(env, make_task(), [retrieve(40, 43), retrieve(40, 41), answer]))
    assert score.turn == pytest.approx((0.6, 0.1 - 0.25, 0.1))
    assert score.rollout == 1.0


def test_mtr_release_gates_by_the_last_rewarded_turn():
    env = VideoMTR(variant="release")
    gain, wrong = retrieve(40, 43), "<think>x</think><answer>A</answer>"
    assert env.score(play(env, make_task(), [gain, wrong])).turn == pytest.approx((0.1, 0.1))
    # a turn that earns nothing is not the last rewarded one, which keeps its gain: so does the published code
    assert env.score(play(env, make_task(), [gain, "nothing", "nothing"])).turn == pytest.approx((0.6, 0.0, 0.0))
    right = env.score(play(env, make_task(), [gain, "<think>x</think><answer>B</answer>"]))
    assert (right.turn, right.rollout) == (pytest.approx((0.6, 0.1)), pytest.approx(0.9))


def test_mtr_release_bonus_counts_episodes_with_two_rewarded_turns():
    env = VideoMTR(variant="release")
    twice, once = play(env, make_task(), perfect), play(env, make_task(), [retrieve(40, 43), "nothing", "nothing"])
    scores = [(episode, env.score(episode)) for episode in [once] * 3 + [twice]]
    gained = [after.total - before.total for (_, before), after in zip(scores, env.shape(scores), strict=True)]
    assert gained == pytest.approx([0.5] * 4)  # a quarter has two, and all four retrieve
    assert env.shape(scores[-1:])[0].total == pytest.approx(1.6)


def test_mtr_bonus_of_a_batch_that_does_not_retrieve():
    env = VideoMTR()
    lazy = play(env, make_task(), ["<think>x</think><answer>B</answer>"])
    looking = play(env, make_task(), perfect)
    scores = [(episode, env.score(episode)) for episode in [lazy] * 3 + [looking]]
    shaped = env.shape(scores)  # a quarter retrieves: half a point
    gained = [after.total - before.total for (_, before), after in zip(scores, shaped, strict=True)]
    assert gained == pytest.approx([0, 0, 0, 0.5])
    rare = env.shape([(lazy, env.score(lazy))] * 19 + [(looking, env.score(looking))])
    assert rare[-1].total == pytest.approx(1.7 + 1.0)
    assert env.shape([(looking, env.score(looking))])[0].total == pytest.approx(1.7)


# --- FrameThinker -----------------------------------------------------------------------------------------------------


def long_task(question: str = "What happens at 00:41?") -> Task:
    return make_task().model_copy(update={"question": question})


@pytest.mark.parametrize(("variant", "earned"), [("paper", 1.2), ("release", 1.52)])
def test_framethinker_oracle(variant, earned):
    env = FrameThinker(variant=variant)
    episode = play(env, long_task(), perfect)
    assert [turn.action.name for turn in episode.turns] == ["time", "choose", "answer"]
    assert total(env, episode) == pytest.approx(earned)


def act(action: str, think: str = "hm") -> str:
    return f"<think>{think}</think><action>{action}</action>"


CHOOSE = act("choose frames between 30 and 50", "between 30 and 50")
ANSWER = act("output answer: B")


@pytest.mark.parametrize(
    ("responses", "earned"),
    [
        ([ANSWER], 1.0),
        ([CHOOSE, ANSWER], 1.0),
        ([CHOOSE, CHOOSE, ANSWER], 0.0),  # the same interval twice
        ([CHOOSE, act("choose frames between 31 and 49", "31 49"), ANSWER], 0.0),  # shrunk by one on each side
        ([act("choose frames between 0 and 63", "0 63"), ANSWER], 0.0),  # the whole video
        ([act("choose frames between 30 and 50", "somewhere"), ANSWER], 0.0),  # thought of something else
        ([act("get frame number at time 00:41"), ANSWER], 0.0),  # left dangling
        ([act("get frame number at time 00:41"), act("choose frames between 1 and 20", "1 20"), ANSWER], 0.0),
        ([act("get frame number at time 00:41"), CHOOSE, ANSWER], 1.2),
        ([act("get frame number at time 00:41") + CHOOSE + ANSWER], 0.0),  # a whole dialogue in one response
        (["<think>x</think><action>dance</action>", ANSWER], 0.0),  # malformed: it ends there
        ([act("choose frames between 50 and 52", "50 52"), ANSWER], 0.0),  # too narrow: refused
    ],
)
def test_framethinker_consistency(responses, earned):
    env = FrameThinker()
    assert total(env, play(env, long_task(), responses)) == pytest.approx(earned)


def test_framethinker_long_videos_get_more_frames():
    env = FrameThinker()
    episode = play(env, make_task(make_video(400.0)), [ANSWER])
    assert (episode.frames_used, episode.shown[0].max_pixels) == (12, 448 * 252)


# --- Video-CoM --------------------------------------------------------------------------------------------------------


def com_task() -> Task:
    """Two minutes, evidence at frame 41 of 121, which is among the 32 that are shown first."""
    return make_task(make_video(121.0), spans=((42.0, 43.0),), boxes={43.0: (0.2, 0.2, 0.6, 0.6)})


def test_video_com_oracle():
    env = VideoCoM()
    episode = play(env, com_task(), perfect)
    assert [turn.action.name for turn in episode.turns] == ["segment", "frame", "zoom", "answer"]
    assert total(env, episode) == pytest.approx(2.0)


def test_video_com_precision_is_not_gated_unless_asked():
    responses = ["FIND_SEGMENT(it) = [4]", "FINAL_ANSWER: A"]
    for gated, earned in ((False, 1.0), (True, 0.0)):
        env = VideoCoM(gated=gated)
        assert total(env, play(env, com_task(), responses)) == earned


def test_video_com_reads_one_grammar_for_episode_and_reward():
    env = VideoCoM()
    with_brackets = play(env, com_task(), ["FIND_SEGMENT(it) = [4]", "FINAL_ANSWER: B. green"])
    without = play(env, com_task(), ["FIND_SEGMENT(it) = 4", "FINAL_ANSWER: B"])
    assert total(env, with_brackets) == total(env, without) == 2.0


def test_video_com_half_the_hits():
    env = VideoCoM()
    assert total(env, play(env, com_task(), ["FIND_SEGMENT(it) = [1, 4]", "FINAL_ANSWER: B"])) == 1.5


def test_video_com_all_segments_show_nothing():
    env = VideoCoM()
    segments = ", ".join(str(k) for k in range(1, 11))
    episode = play(env, com_task(), [f"FIND_SEGMENT(it) = [{segments}]", "FINAL_ANSWER: B"])
    assert episode.frames_used == 32
    assert total(env, episode) == pytest.approx(1.1)


# --- EARL -------------------------------------------------------------------------------------------------------------


def earl_task() -> Task:
    """32 of 64 frames are shown; two of them lie in the evidence."""
    return make_task(spans=((40.0, 43.0),))


def select(*frames: int) -> str:
    return f"<think>look</think><tool_call>{write_selection(frames)}</tool_call>"


RIGHT = "<think>x</think><answer>B</answer>"


def test_earl_oracle_late_in_training():
    env = Earl()
    assert total(env, play(env, earl_task(), perfect)) == pytest.approx(2.2)
    assert total(env, play(env, earl_task(), perfect), progress=0.1) == pytest.approx(1 + 1.0 + 0.2)


def test_earl_lazy_and_greedy():
    env = Earl()
    assert total(env, play(env, earl_task(), [RIGHT])) == 0.5
    everything = total(env, play(env, earl_task(), [select(*range(1, 33)), RIGHT]))
    assert everything == pytest.approx(0.5 + 0.2 + 2 / 32)
    assert total(env, play(env, earl_task(), ["<think>x</think><answer>A</answer>"])) == -1.0


def test_earl_replaces_the_view_by_frames_around_the_selected():
    env = Earl()
    episode = play(env, earl_task(), [select(20), select(1), RIGHT])
    first, second = (turn.info for turn in episode.turns[:2])
    view = [ref.index for ref in episode.shown[:32]]
    assert first["selected"] == [view[19]]
    assert first["frames"] == list(range(view[18], view[20] + 1))
    assert second["selected"] == [first["frames"][0]]


def test_earl_two_selections_are_all():
    env = Earl(budget=Earl().budget.model_copy(update={"max_turns": 5, "total": None}))
    episode = play(env, earl_task(), [select(1), select(1), select(1), RIGHT])
    assert episode.turns[2].action.error == "2 selections are all there are"
    assert episode.status == "done"


# --- VR-Thinker -------------------------------------------------------------------------------------------------------

GOLD = {"TA": 1, "VQ": 2, "MQ": 1, "OA": 1}


def pair_task() -> Task:
    return Task(
        id="pair",
        videos=(make_video(64, id="a"), make_video(64, id="b")),
        question="A cat jumps.",
        answer="1",
        evidence=Evidence(labels=GOLD),
    )


def verdict(**labels: int) -> str:
    said = ", ".join(f"{name}={value}" for name, value in (GOLD | labels).items())
    return f"<Snapshot>s</Snapshot><Think>t</Think><Answer>{said}</Answer>"


def test_vr_thinker_oracle():
    env = VRThinker()
    assert total(env, play(env, pair_task(), perfect)) == pytest.approx(2 + 0.2)


def test_vr_thinker_gains_telescope():
    """From a wrong recommendation to the right answer is worth k times the difference, however many rounds it takes."""
    env = VRThinker()
    half = {"TA": 1, "VQ": 2, "MQ": 1, "OA": 0, "CF": 1}

    def recommend(labels) -> str:
        said = {"snapshot": "s", "labels": labels, "frames": [1]}
        return env.render(Action(name="select", args=said, think="t"))

    neutral = dict.fromkeys(GOLD, 0) | {"CF": 1}
    episode = play(env, pair_task(), [recommend(neutral), recommend(half), verdict()])
    score = env.score(episode)
    assert score.turn == pytest.approx((0, 0.2 * 0.5, 0.2 * 0.5))
    assert score.rollout == 2.0


def test_vr_thinker_dimensions_and_overall():
    env = VRThinker()
    assert total(env, play(env, pair_task(), [verdict(OA=2)])) == pytest.approx(1 + 0.5)
    assert total(env, play(env, pair_task(), [verdict(TA=2)])) == pytest.approx(1 + 0.5 + 0.5 * 2 / 3)


def test_vr_thinker_bonus_for_the_few_that_look():
    env = VRThinker()
    looking, lazy = play(env, pair_task(), perfect), play(env, pair_task(), [verdict()])
    shaped = env.shape([(looking, env.score(looking))] + [(lazy, env.score(lazy))] * 9)
    assert shaped[0].total == pytest.approx(2.2 + 0.5 * (0.2 - 0.1))
    assert shaped[1].total == pytest.approx(2.0)
    even = env.shape([(looking, env.score(looking)), (lazy, env.score(lazy))])
    assert even[0].total == pytest.approx(2.2)  # half of them look: more than omega


def test_vr_thinker_numbers_run_over_both_videos():
    env = VRThinker()
    episode = play(env, pair_task(), perfect)
    assert [(ref.video, ref.index, ref.label) for ref in episode.shown[8:]] == [
        ("a", 0, "Frame 1: "),
        ("b", 0, "Frame 65: "),
    ]


# --- all of them ------------------------------------------------------------------------------------------------------

ENVS = {
    "video_mtr": (VideoMTR, make_task),
    "framethinker": (FrameThinker, long_task),
    "video_com": (VideoCoM, com_task),
    "earl": (Earl, earl_task),
    "vr_thinker": (VRThinker, pair_task),
}
NOTHING = {"video_mtr": 0.0, "framethinker": 0.0, "video_com": 0.0, "earl": -1.0, "vr_thinker": 0.0}


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("said", GARBAGE)
def test_garbage_never_raises_never_pays_and_ends(name, said):
    made, task = ENVS[name]
    env = made()
    episode = play(env, task(), [said] * 20)
    assert episode.status in ("done", "truncated")
    assert len(episode.turns) <= env.budget.max_turns
    assert total(env, episode) <= NOTHING[name]


@pytest.mark.parametrize("name", ENVS)
def test_a_recorded_episode_scores_the_same(name):
    made, task = ENVS[name]
    env = made()
    episode = play(env, task(), perfect)
    assert play(env, task(), perfect) == episode
    again = Episode.model_validate_json(episode.model_dump_json())
    assert again == episode
    assert made().score(again) == env.score(episode)


@pytest.mark.parametrize("name", ENVS)
def test_what_is_said_is_what_is_read(name):
    made, task = ENVS[name]
    env = made()
    for turn in play(env, task(), perfect).turns:
        assert env.parse(env.render(turn.action)) == turn.action
        assert env.render(turn.action) == turn.response


@pytest.mark.parametrize("name", ENVS)
def test_no_frame_is_granted_over_the_budget(name):
    made, task = ENVS[name]
    tight = made().budget.model_copy(update={"total": made().budget.initial + 1, "tokens": None})
    env = made(budget=tight)
    episode = play(env, task(), perfect)
    assert episode.frames_used <= tight.total
    by_tokens = made(budget=made().budget.model_copy(update={"tokens": env.tokens_used}))
    assert play(by_tokens, task(), perfect).tokens_used <= env.tokens_used
