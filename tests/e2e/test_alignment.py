"""The trainer sees what the rollout saw: log-probs agree, and whatever differs is refused by name."""

from __future__ import annotations

import dataclasses

import pytest
import ray
import torch

from videorl.contract import AlignmentError, check_log_probs
from videorl.data.batch import Batch, make_batch

TOLERANCE = 1e-4  # float32, different kernels and batch shapes; 2e-6 is typical


def test_log_probs_agree_with_embeddings(stack):
    groups = stack.collect(stack.prompts(stack.workspace.rows()[:4]))
    assert stack.parity(groups) < TOLERANCE


def test_log_probs_agree_for_several_videos_and_text_alone(stack):
    rows = stack.workspace.rows()[:3]
    rows[0]["videos"] = [*rows[0]["videos"], *rows[1]["videos"]]
    rows[1]["videos"] = []
    groups = stack.collect(stack.prompts(rows))
    assert [len(group.prompt.media) for group in groups] == [2, 0, 1]
    assert stack.parity(groups) < TOLERANCE


@pytest.mark.parametrize("fps", [1.0, 3.0, 4.0])
def test_log_probs_agree_at_other_rates(stack, fps):
    config = stack.workspace.config(
        f"data.sampling.fps={fps}", "data.sampling.max_frames=32", "data.max_prompt_tokens=512"
    )
    prompts = stack.prompts(stack.workspace.rows()[:3], config)
    times = prompts[0].frame_times[0]
    assert len(times) == 8 * fps  # the clips last 8 s
    assert prompts[0].media[0].seconds_per_grid == pytest.approx(2 * (times[-1] - times[0]) / (len(times) - 1))
    assert stack.parity(stack.collect(prompts)) < TOLERANCE


def test_positions_depend_on_the_time_step(stack):
    """The same frames with another time step give other log-probs, so that the agreement above means something."""
    groups = stack.collect(stack.prompts(stack.workspace.rows()[:2]))
    batch = make_batch(groups)
    slower = tuple(
        dataclasses.replace(
            row,
            seen="",
            media=tuple(dataclasses.replace(m, seconds_per_grid=3 * m.seconds_per_grid) for m in row.media),
        )
        for row in batch.rows
    )
    changed = stack.policy.compute_log_probs(dataclasses.replace(batch, rows=slower))
    assert (changed - batch.need("rollout_log_probs")).abs()[batch.response_mask].max() > 10 * TOLERANCE


# --- injected faults -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled_out(stack):
    """Three prompts, the first of which shows two clips, with two rollouts each."""
    rows = stack.workspace.rows()[:3]
    rows[0]["videos"] = [*rows[0]["videos"], *rows[1]["videos"]]
    return make_batch(stack.collect(stack.prompts(rows), group_size=2, label="faults"))


def with_row(batch: Batch, index: int, **changes) -> Batch:
    rows = list(batch.rows)
    rows[index] = dataclasses.replace(rows[index], **changes)
    return dataclasses.replace(batch, rows=tuple(rows))


def swapped_videos(batch: Batch) -> Batch:
    return with_row(batch, 2, media=batch.rows[4].media)


def exchanged_clips(batch: Batch) -> Batch:
    return with_row(batch, 0, media=batch.rows[0].media[::-1])


def reordered_responses(batch: Batch) -> Batch:
    """The rows stay, the tensors move: what a balanced shuffle does where it forgets one of the two."""
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    return batch.with_(response_ids=batch.response_ids[order], lengths=batch.lengths[order])


def wrong_fps(batch: Batch) -> Batch:
    (item,) = batch.rows[3].media
    return with_row(batch, 3, media=(dataclasses.replace(item, seconds_per_grid=item.seconds_per_grid / 2),))


def two_tokens_off(batch: Batch) -> Batch:
    return with_row(batch, 5, token_ids=batch.rows[5].token_ids[:-2])


def two_response_tokens_off(batch: Batch) -> Batch:
    ids = batch.response_ids.clone()
    ids[1, : int(batch.lengths[1])] = ids[1, : int(batch.lengths[1])].roll(2)
    return batch.with_(response_ids=ids)


def truncated_clip(batch: Batch) -> Batch:
    """One temporal step less than the engine saw."""
    (item,) = batch.rows[2].media
    t, h, w = item.grid
    shorter = dataclasses.replace(item, grid=(t - 1, h, w), num_tokens=item.num_tokens - h * w // 4)
    return with_row(batch, 2, media=(shorter,))


FAULTS = {
    swapped_videos: 2,
    exchanged_clips: 0,
    reordered_responses: 0,
    wrong_fps: 3,
    two_tokens_off: 5,
    two_response_tokens_off: 1,
    truncated_clip: 2,
}


@pytest.mark.parametrize("inject", FAULTS, ids=lambda inject: inject.__name__)
def test_a_misaligned_row_is_refused_by_name(stack, rolled_out, inject):
    stack.policy.compute_log_probs(rolled_out)  # as it is, it passes
    sample = rolled_out.rows[FAULTS[inject]].id
    with pytest.raises(ray.exceptions.RayTaskError, match=rf"AlignmentError: sample {sample}: .*nothing was trained"):
        stack.policy.compute_log_probs(inject(rolled_out))


def test_features_of_other_weights_are_refused_by_name(stack, rolled_out):
    """The checkpoint at model.path was replaced after the handles were made."""
    item = dataclasses.replace(rolled_out.rows[4].media[0], tower="0123456789abcdef")
    with pytest.raises(ray.exceptions.RayTaskError, match="its features are of vision tower 01234567"):
        stack.policy.compute_log_probs(with_row(with_row(rolled_out, 4, media=(item,)), 5, media=(item,)))


def test_a_corrupt_entry_of_the_store_is_a_miss_and_named(stack, rolled_out):
    item = rolled_out.rows[4].media[0]
    entry = stack.source.store._path(item.key)
    intact = entry.read_bytes()
    entry.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(ray.exceptions.RayTaskError, match=f"{item.clip.path}: no embedding {item.key[:12]}"):
        stack.policy.compute_log_probs(rolled_out)
    assert item.key not in stack.source.store  # so that the next step encodes the clip anew
    stack.encoders.ensure([item])
    stack.policy.compute_log_probs(rolled_out)


def test_what_only_the_log_probs_can_show_raises_the_alarm(stack):
    """The trainer computes with the features of another video than it says: both sides' fingerprints agree."""
    groups = stack.collect(stack.prompts(stack.workspace.rows()[:3]), group_size=2, label="alarm")
    batch = make_batch(groups)
    ours = stack.policy.compute_log_probs(batch)
    blank = stack.policy.compute_blank_log_probs(batch)
    other = stack.policy.compute_log_probs(with_row(batch, 2, media=batch.rows[4].media, seen=""))
    ids, tolerance = [row.id for row in batch.rows], 1e-5
    found = check_log_probs(ids, batch.need("rollout_log_probs"), ours, batch.response_mask, tolerance, blank)
    assert found["mean_log_prob_diff"] < tolerance < found["blank_video_diff"]
    with pytest.raises(AlignmentError, match=f"farthest apart: {ids[2]} "):
        check_log_probs(ids, batch.need("rollout_log_probs"), other, batch.response_mask, tolerance)


# --- the engine ------------------------------------------------------------------------------------------------------


def test_log_probs_agree_after_updates_and_caches_are_fresh(stack):
    """A stale prefix or encoder cache in the engine would show as a difference here: the prompts are the same."""
    prompts = stack.prompts(stack.workspace.rows()[:4])
    before = stack.collect(prompts, label="before")
    batch = make_batch(before)
    batch = batch.with_(
        old_log_probs=stack.policy.compute_log_probs(batch),
        advantages=torch.randn(batch.response_ids.shape, generator=torch.Generator().manual_seed(0)),
    )
    metrics = stack.policy.update(batch)
    assert metrics["grad_norm"] > 0 and metrics["skipped_steps"] == 0
    moved = stack.policy.compute_log_probs(batch)
    assert (moved - batch.old_log_probs).abs()[batch.response_mask].max() > 10 * TOLERANCE

    stack.engines.load_weights(stack.policy.publish(version=1))
    after = stack.collect(prompts, label="after")
    assert {rollout.weight_version for group in after for rollout in group.rollouts} == {1}
    assert stack.parity(after) < TOLERANCE


def test_requests_are_reproducible_by_seed(stack):
    prompts = stack.prompts(stack.workspace.rows()[:4])
    texts = [[r.response_ids for r in g.rollouts] for g in stack.collect(prompts, label="same")]
    again = [[r.response_ids for r in g.rollouts] for g in stack.collect(prompts[::-1], label="same")][::-1]
    other = [[r.response_ids for r in g.rollouts] for g in stack.collect(prompts, label="other")]
    assert texts == again != other


def test_siblings_share_the_prompt_in_the_engine(stack):
    groups = stack.collect(stack.prompts(stack.workspace.rows()[8:9]), group_size=8, label="siblings")
    assert sum(rollout.cached_tokens > 0 for rollout in groups[0].rollouts) >= 1


def test_vision_tokens_are_never_sampled(stack):
    groups = stack.collect(stack.prompts(stack.workspace.rows()[:8]), group_size=8, label="banned")
    sampled = {token for group in groups for rollout in group.rollouts for token in rollout.response_ids}
    assert len(sampled) > 50  # a random model samples nearly everything
    assert not sampled & set(stack.model.banned_ids)


def test_what_travels_does_not_grow_with_frames(stack):
    """Driver bytes of the same work over 4 and over 32 frames of each clip: equal but for the digits of numbers."""
    shipped = []
    for frames in (4, 32):
        config = stack.workspace.config(
            "data.sampling.fps=null", f"data.sampling.num_frames={frames}", "data.sampling.max_frames=32",
            "data.max_prompt_tokens=512",
        )  # fmt: skip
        prompts = stack.prompts(stack.workspace.rows()[:3], config)
        stack.cluster.take_counts()
        stack.parity(stack.collect(prompts))
        shipped.append((prompts[0].num_tokens, stack.cluster.take_counts()["bytes"]))
    (few_tokens, few_bytes), (many_tokens, many_bytes) = shipped
    assert many_tokens > few_tokens + 50
    assert many_bytes == pytest.approx(few_bytes, rel=0.05)
