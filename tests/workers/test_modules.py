"""Log-probs and values of micro-batches, against a plain forward of one unpadded row at a time."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from makers import make_media, make_model_config
from torch import nn

from videorl.contract import AlignmentError, fingerprint
from videorl.data.batch import Batch, Row, pad
from videorl.models.base import open_model
from videorl.models.prefix_tree import PrefixTree, build_prefix_tree
from videorl.types import Media, expand_placeholders
from videorl.workers import modules
from videorl.workers.modules import CriticModule, Inputs, PolicyModule, make_inputs

TEMPERATURE = 0.7
MEDIA = {
    "a": make_media("a", grid=(2, 4, 6), seconds_per_grid=1.0),
    "b": make_media("b", grid=(3, 4, 4), seconds_per_grid=0.5),
    "c": make_media("c", grid=(1, 8, 4), seconds_per_grid=2.0),
}
CPU = torch.device("cpu")


class FakeSource:
    """Random frames by key: their patches, or the features of a frozen tower."""

    def __init__(self, model):
        self.model = model
        self.pixels = model.config.train_vision
        self.tower = None if self.pixels else model.load_vision()

    def patches(self, media: list[Media]) -> list[torch.Tensor]:
        frames = []
        for item in media:
            t, h, w = item.grid
            generator = torch.Generator().manual_seed(ord(item.key))
            shape = (2 * t, 14 * h, 14 * w, 3)
            frames.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        return self.model.patches(frames) if frames else []

    def features(self, media: list[Media]) -> list[torch.Tensor]:
        patches = self.patches(media)
        if self.tower is None or not media:
            return patches
        with torch.no_grad():
            return self.model.encode(self.tower, patches, [item.grid for item in media])


@pytest.fixture(scope="module")
def source(tiny) -> FakeSource:
    return FakeSource(tiny)


@pytest.fixture
def policy(tiny) -> PolicyModule:
    return PolicyModule(tiny, tiny.load())


def make_batch(model, *rows: tuple[str, int]) -> Batch:
    """Rows given as (names of their videos, tokens of their response), of random words."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(0, 256, (count,), generator=generator).tolist()

    prompts, responses = [], []
    for number, (names, length) in enumerate(rows):
        media = tuple(MEDIA[name] for name in names)
        ids = (*(id for _ in media for id in (*words(2), model.placeholder_id, *words(1))), *words(3 + number))
        responses.append(words(length))
        expanded = expand_placeholders(ids, media, model.placeholder_id)
        positions = model.position_ids(expanded, media, length)
        seen = fingerprint([*expanded, *responses[-1]], positions, media)
        prompts.append(Row(id=f"p#{number}", group="p", token_ids=ids, media=media, seen=seen))
    return Batch(
        rows=tuple(prompts),
        response_ids=pad(responses, torch.long),
        response_mask=pad([[1] * len(response) for response in responses], torch.bool),
        lengths=torch.tensor([len(response) for response in responses]),
    )


MIXED = (("a", 4), ("bc", 3), ("", 6), ("ab", 1), ("c", 2))


def run(module: PolicyModule, source, batch: Batch, shared: bool = False) -> tuple[torch.Tensor, torch.Tensor, Inputs]:
    inputs = make_inputs(module.model, source, batch, CPU, shared)
    stats = module(inputs, TEMPERATURE)
    return stats.log_probs, stats.entropies, inputs


def plain_distributions(model, hf: nn.Module, source, batch: Batch) -> list[torch.Tensor]:
    """Of each row, the log-probabilities [R, vocab] before each response token: transformers does all but positions."""
    found = []
    for index, row in enumerate(batch.rows):
        prompt = expand_placeholders(row.token_ids, row.media, model.placeholder_id)
        response = batch.response_ids[index, : batch.lengths[index]]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        video = {}
        if row.media:
            video["pixel_values_videos"] = torch.cat(source.patches(list(row.media)))
            video["video_grid_thw"] = torch.tensor([item.grid for item in row.media])
        positions = model.position_ids(prompt, row.media, len(response))[:, None]
        logits = hf(input_ids=ids, position_ids=positions, **video).logits[0] / TEMPERATURE
        logits[:, list(model.banned_ids)] = -torch.inf
        found.append(logits.log_softmax(-1)[len(prompt) - 1 : -1])
    return found


def test_log_probs_and_entropies_are_those_of_a_plain_forward(tiny, source, policy):
    batch = make_batch(tiny, *MIXED)
    with torch.no_grad():
        log_probs, entropies, inputs = run(policy, source, batch)
        plain = torch.cat(plain_distributions(tiny, policy.hf, source, batch))
    targets = batch.response_ids[batch.response_mask]
    assert log_probs.shape == entropies.shape == (16,)
    assert torch.allclose(log_probs, plain.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=0)
    entropy = -(plain.exp() * plain.nan_to_num(neginf=0.0)).sum(-1)
    assert torch.allclose(entropies, entropy, atol=1e-5, rtol=0)
    assert inputs.owners.tolist() == batch.response_mask.flatten().nonzero().flatten().tolist()


def test_a_video_that_two_rows_show_is_read_once(tiny, source):
    inputs = make_inputs(tiny, source, make_batch(tiny, *MIXED), CPU, shared=False)
    assert inputs.grids == [MEDIA[name].grid for name in "abc"]
    a, b, c = (torch.arange(MEDIA[name].num_tokens) for name in "abc")
    b, c = b + len(a), c + len(a) + len(b)
    assert inputs.visual_rows.tolist() == torch.cat([a, b, c, a, b, c]).tolist()
    assert len(inputs.features) == 3


def test_padding_changes_nothing(tiny, source, policy):
    """Neither a longer row in the same micro-batch nor the tokens that fill up the responses."""
    batch = make_batch(tiny, ("bc", 9), *MIXED)
    with torch.no_grad():
        together = run(policy, source, batch)[0].split(batch.lengths.tolist())
        alone = [run(policy, source, batch.select([index]))[0] for index in range(len(batch))]
        filled = batch.with_(response_ids=batch.response_ids.masked_fill(~batch.response_mask, tiny.placeholder_id))
        poisoned = run(policy, source, filled)[0].split(batch.lengths.tolist())
    for one, other, third in zip(together, alone, poisoned, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0) and torch.equal(one, third)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_logits_in_chunks_give_the_same_log_probs_and_gradients(tiny, source, policy, monkeypatch):
    policy.model.vision(policy.hf).requires_grad_(False)
    batch = make_batch(tiny, *MIXED)
    found = []
    for rows in (4096, 5):
        monkeypatch.setattr(modules, "_LOGIT_ROWS", rows)
        policy.zero_grad()
        log_probs, entropies, _ = run(policy, source, batch)
        (log_probs.sum() + 0.1 * entropies.sum()).backward()
        found.append((log_probs.detach(), gradients(policy)))
    (whole, whole_gradients), *chunked = found
    assert whole_gradients["hf.lm_head.weight"].abs().max() > 1e-3
    for log_probs, grads in chunked:
        assert torch.allclose(log_probs, whole, atol=1e-6, rtol=0)
        assert grads.keys() == whole_gradients.keys()
        for name, grad in grads.items():
            # sums in another order; single precision keeps six digits of the largest
            assert torch.allclose(grad, whole_gradients[name], atol=1e-5 * float(grad.abs().max()), rtol=0), name


@pytest.mark.parametrize("shared", [False, True])
def test_a_video_that_the_environment_shows_stands_in_the_response(tiny, source, policy, shared):
    """A turn, a video from the environment, another turn: each turn's log-probs are those of a prompt that ends there,
    and of the environment's tokens there are none."""
    words = torch.randint(0, 256, (20,), generator=torch.Generator().manual_seed(4)).tolist()
    prompt = (*words[:2], tiny.placeholder_id, *words[2:5])
    first, shown, second = words[5:9], [*words[9:12], tiny.placeholder_id, *words[12:14]], words[14:17]
    other = words[17:20]  # a sibling that took another turn and ended
    rows = (
        Row(id="p#0", group="p", token_ids=prompt, media=(MEDIA["a"],), later=(MEDIA["b"],), seen=""),
        Row(id="p#1", group="p", token_ids=prompt, media=(MEDIA["a"],), seen=""),
    )
    batch = Batch(
        rows=rows,
        response_ids=pad([[*first, *shown, *second], other], torch.long),
        response_mask=pad([[1] * 4 + [0] * 6 + [1] * 3, [1] * 3], torch.bool),
        lengths=torch.tensor([13, 3]),
    )
    assert batch.row_tokens == [6 + 13 + 11 + 11, 6 + 3 + 11]  # videos of 12 tokens
    expected = []
    for ids, media, response in (
        (prompt, ("a",), first),
        ((*prompt, *first, *shown), ("a", "b"), second),
        (prompt, ("a",), other),
    ):
        alone = Row(id="x", group="x", token_ids=ids, media=tuple(MEDIA[name] for name in media), seen="")
        single = Batch(
            rows=(alone,),
            response_ids=torch.tensor([response]),
            response_mask=torch.ones(1, len(response), dtype=torch.bool),
            lengths=torch.tensor([len(response)]),
        )
        (log_probs,) = plain_distributions(tiny, policy.hf, source, single)
        expected.append(log_probs.gather(1, torch.tensor(response)[:, None])[:, 0])
    with torch.no_grad():
        log_probs, _, inputs = run(policy, source, batch, shared)
    assert torch.allclose(log_probs, torch.cat(expected), atol=1e-5, rtol=0)
    assert inputs.owners.tolist() == batch.response_mask.flatten().nonzero().flatten().tolist()


def test_banned_ids_have_no_probability(tiny, source, policy):
    with torch.no_grad():
        policy.hf.lm_head.weight[list(tiny.banned_ids)] = 100.0  # type: ignore[index]
        log_probs, entropies, _ = run(policy, source, make_batch(tiny, *MIXED))
    assert torch.isfinite(log_probs).all() and log_probs.min() > -50
    assert (entropies > 0).all()


def test_a_row_that_is_not_what_the_engine_saw_is_refused(tiny, source):
    batch = make_batch(tiny, *MIXED)
    swapped = dataclasses.replace(batch.rows[1], media=batch.rows[1].media[::-1])
    with pytest.raises(AlignmentError, match="sample p#1"):
        make_inputs(
            tiny, source, dataclasses.replace(batch, rows=(batch.rows[0], swapped, *batch.rows[2:])), CPU, shared=False
        )


# --- shared prefixes -------------------------------------------------------------------------------------------------


def make_groups(model, *groups: tuple[str, tuple[int, ...]]) -> Batch:
    """Groups given as (names of their videos, tokens of each response)."""
    batch = make_batch(model, *[(names, length) for names, lengths in groups for length in lengths])
    rows, first = [], 0
    for number, (_, lengths) in enumerate(groups):
        prompt = batch.rows[first]
        rows += [
            dataclasses.replace(prompt, id=f"{number}#{i}", group=str(number), seen="") for i in range(len(lengths))
        ]
        first += len(lengths)
    return dataclasses.replace(batch, rows=tuple(rows))


@pytest.fixture
def sharp(policy) -> PolicyModule:
    """A policy that looks where positions tell it to: with random weights it hardly does."""
    with torch.no_grad():
        for layer in policy.model.layers(policy.hf):
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= 4
    policy.model.vision(policy.hf).requires_grad_(False)
    return policy


GROUPS = (("ab", (5, 9, 1, 7)), ("", (3, 3, 6)), ("c", (4,)), ("ca", (2, 8)))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shared_rows_have_the_log_probs_and_gradients_of_separate_rows(
    tiny, source, sharp, monkeypatch, depth, checkpointing
):
    batch = make_groups(tiny, *GROUPS)
    ids = batch.response_ids.clone()
    if depth > 1:  # responses 0 and 1 begin alike, as after a common first turn
        ids[1, :4] = ids[0, :4]
    if depth > 2:
        ids[3, :6] = ids[1, :6]
    batch = batch.with_(response_ids=ids)
    monkeypatch.setattr(modules, "build_prefix_tree", functools.partial(build_prefix_tree, min_shared=2))
    if checkpointing:
        sharp.hf.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        sharp.train()
    weights = torch.randn(int(batch.lengths.sum()), generator=torch.Generator().manual_seed(1))  # of both signs

    log_probs, entropies, inputs = run(sharp, source, batch, shared=True)
    (weights * (log_probs + 0.1 * entropies)).sum().backward()
    shared = gradients(sharp)
    assert inputs.tree is not None and inputs.tree.num_tokens < sum(batch.row_tokens)
    assert max(len(set(ends_above(inputs.tree, path))) for path in inputs.tree.paths) == depth + 1

    sharp.zero_grad()
    alone = [run(sharp, source, batch.select([index])) for index in range(len(batch))]
    plain = torch.cat([row[0] for row in alone])
    (weights * (plain + 0.1 * torch.cat([row[1] for row in alone]))).sum().backward()
    assert float((log_probs - plain).detach().abs().max()) < 1e-5
    separate = gradients(sharp)
    assert shared.keys() == separate.keys()
    for name, grad in separate.items():
        assert float((shared[name] - grad).norm()) < 1e-5 * float(grad.norm()), name


def ends_above(tree: PrefixTree, path: torch.Tensor) -> list[int]:
    """Where the nodes on a row's path end."""
    return [node.stop for node in tree.nodes if node.start in path.tolist()]


def test_a_wrong_position_would_show(tiny, source, sharp):
    """The control of the test above: moving a response by one changes what it says by far more than rounding."""
    batch = make_groups(tiny, ("ab", (9, 9)))
    inputs = make_inputs(tiny, source, batch, CPU, shared=True)
    moved = inputs.position_ids.clone()
    moved[:, :, inputs.predictors[-9] + 1 :] += 1
    with torch.no_grad():
        right = sharp(inputs, TEMPERATURE).log_probs
        wrong = sharp(dataclasses.replace(inputs, position_ids=moved), TEMPERATURE).log_probs
    assert float((right - wrong).abs().max()) > 1e-2


# --- a trained tower -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_folder):
    return open_model(make_model_config(tiny_folder, train_vision=True))


def test_a_trained_tower_encodes_what_a_frozen_one_has_stored(tiny, source, policy, trained):
    batch = make_batch(tiny, *MIXED)
    module = PolicyModule(trained, trained.load())
    log_probs, _, _ = run(module, FakeSource(trained), batch)
    with torch.no_grad():
        assert torch.allclose(log_probs, run(policy, source, batch)[0], atol=1e-5, rtol=0)
    log_probs.sum().backward()
    assert trained.vision(module.hf).patch_embed.proj.weight.grad.abs().max() > 0


def test_a_text_only_micro_batch_reaches_a_trained_tower_with_weight_zero(trained):
    module = PolicyModule(trained, trained.load())
    run(module, FakeSource(trained), make_batch(trained, ("", 3), ("", 2)))[0].sum().backward()
    tower = [parameter.grad for parameter in trained.vision(module.hf).parameters()]
    assert all(grad is not None and grad.count_nonzero() == 0 for grad in tower)


# --- the critic ------------------------------------------------------------------------------------------------------


def test_a_critic_starts_at_zero_and_learns_through_the_backbone(tiny, source):
    critic = CriticModule(tiny, tiny.load())
    inputs = make_inputs(tiny, source, make_batch(tiny, *MIXED), CPU, shared=False)
    values = critic(inputs)
    assert values.shape == (16,) and values.count_nonzero() == 0
    with torch.no_grad():
        critic.value_head.weight.fill_(0.5)
        assert torch.allclose(critic(inputs), 0.5 * critic.hidden(inputs).sum(-1), atol=1e-5, rtol=0)
    critic(inputs).sum().backward()
    found = gradients(critic)
    assert found["value_head.weight"].abs().max() > 0
    assert found["hf.model.language_model.layers.0.self_attn.q_proj.weight"].abs().max() > 0
    assert "hf.lm_head.weight" not in found
    assert not critic.hf.lm_head.weight.requires_grad  # else FSDP would wait for a gradient that never comes
