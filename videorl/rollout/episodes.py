"""Rolling out episodes of several turns: one coroutine each over the shared engine.

Token ids are appended and never encoded again: what the engine was shown at a turn is, id for id and clip for clip,
what the trainer is given. An episode that ends by another fault than the policy's is no zero: it leaves the batch, and
is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from videorl.config import Config, EnvConfig
from videorl.contract import AlignmentError
from videorl.envs.env import Env, VideoEnv
from videorl.envs.records import Episode, Frames, Message, Score
from videorl.envs.registry import load_env
from videorl.rewards.rubric import Elsewhere, Rubric
from videorl.rewards.scorers.batching import Batcher
from videorl.rollout.contexts import Observed, Past, Piece, load_context
from videorl.rollout.frames import FrameStore
from videorl.rollout.runner import Runner, Training, gather, rollout_seed
from videorl.types import (
    Continuation,
    Failed,
    Generation,
    Media,
    RenderedPrompt,
    Request,
    Rollout,
    RolloutGroup,
    SamplingParams,
)

if TYPE_CHECKING:
    from videorl.data.prompts import Ensure
    from videorl.models.base import VideoModel
    from videorl.models.media import MediaSource
    from videorl.rollout.engine import Generate


@dataclass(frozen=True)
class Asked:
    """One turn: who is asked for a response, and what it is shown."""

    prompt: RenderedPrompt
    index: int  # of the episode among those of its prompt
    k: int  # the turn, from 1
    env: Env
    view: Piece
    sampling: SamplingParams
    start: tuple[int, ...] = ()  # tokens that the response begins with


class Speaker(Protocol):
    """Says the response of a turn: the policy, or in demonstrations and comparisons somebody else."""

    async def __call__(self, asked: Asked) -> Generation: ...


class PolicySpeaker:
    """The policy, as its engine samples it."""

    def __init__(self, generate: Generate):
        self.generate = generate

    async def __call__(self, asked: Asked) -> Generation:
        view, home = asked.view, asked.prompt.prompt.id
        return await self.generate(
            Request(token_ids=view.token_ids, media=view.media, sampling=asked.sampling, start=asked.start, home=home)
        )


@dataclass
class _Row:
    """A training row that grows: what the engine was shown when it began, and all that follows."""

    begun: Piece
    ids: tuple[int, ...] = ()
    mask: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    later: tuple[Media, ...] = ()
    seen: str = ""

    def continued_by(self, view: Piece) -> bool:
        ids, media = self.begun.token_ids + self.ids, self.begun.media + self.later
        return view.token_ids[: len(ids)] == ids and view.media[: len(media)] == media

    def add(self, view: Piece, said: Generation) -> None:
        shown = view.token_ids[len(self.begun.token_ids) + len(self.ids) :]
        self.later += view.media[len(self.begun.media) + len(self.later) :]
        self.ids += shown + said.token_ids
        self.mask += (0,) * len(shown) + (1,) * len(said.token_ids)
        self.log_probs += (0.0,) * len(shown) + said.log_probs
        self.seen = said.seen


class Episodes:
    """Collects rollouts of many turns, with the interface of `Runner`, which collects those of one."""

    def __init__(self, config: Config, model: VideoModel, frames: FrameStore, speaker: Speaker):
        assert config.rollout.env is not None
        self.config, self.model, self.frames, self.speaker = config, model, frames, speaker
        self.env: EnvConfig = config.rollout.env
        self.context = load_context(self.env.context)

    def make_env(self) -> Env:
        return load_env(self.env.target, self.env.params)

    def collect(
        self,
        prompts: Sequence[RenderedPrompt],
        *,
        group_size: int,
        temperature: float,
        label: str,
        progress: Callable[[int], None],
        training: Training | None = None,
        speaker: Speaker | None = None,
    ) -> list[RolloutGroup]:
        """`group_size` scored episodes of each prompt, in the order of the prompts; see `Runner.collect`."""
        collection = _Collection(self, temperature, label, progress, training, speaker or self.speaker)
        return asyncio.run(collection.groups(prompts, group_size))


def open_runner(
    config: Config,
    model: VideoModel,
    source: MediaSource,
    generate: Generate,
    rewards: Elsewhere | None,
    ensure: Ensure,
) -> Runner | Episodes:
    """What rolls out as `rollout.env` says."""
    if config.rollout.env is None:
        return Runner(config, model, generate, Rubric(config.rewards, rewards))
    return Episodes(config, model, FrameStore(config, model, source, ensure), PolicySpeaker(generate))


@dataclass
class _Played:
    """What was generated in an episode so far."""

    index: int
    env: Env
    rows: list[_Row] = field(default_factory=list)
    said: list[Generation] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    again: list[tuple[int, int]] = field(default_factory=list)  # of later turns: tokens shown before, and found cached
    over_length: bool = False


@dataclass(frozen=True)
class _Over:
    """An episode that has come to its end; `kept` has the score as it was before it was shaped."""

    played: _Played
    record: Episode
    score: Score
    kept: dict[str, Any]


class _Collection:
    """One call of `Episodes.collect`."""

    def __init__(
        self,
        episodes: Episodes,
        temperature: float,
        label: str,
        progress: Callable[[int], None],
        training: Training | None,
        speaker: Speaker,
    ):
        self.of, self.temperature, self.label, self.progress = episodes, temperature, label, progress
        self.training, self.speaker = training, speaker
        self.done = training.done if training else 1.0
        rollout = episodes.config.rollout
        self.limit = asyncio.Semaphore(rollout.max_concurrency * rollout.num_engines)
        self.prepare = Batcher(episodes.frames.ensure, size=10**6)
        self.finished = 0

    async def groups(self, prompts: Sequence[RenderedPrompt], size: int) -> list[RolloutGroup]:
        played = await gather(self.siblings(prompt, size) for prompt in prompts)
        if self.training:
            played = await self.shape(played)
        return [self.group(prompt, each) for prompt, each in zip(prompts, played, strict=True)]

    async def siblings(self, prompt: RenderedPrompt, size: int) -> list[_Over | Failed]:
        return await gather(self.episode(prompt, index) for index in range(size))

    async def shape(self, played: Sequence[Sequence[_Over | Failed]]) -> list[list[_Over | Failed]]:
        """Scores that depend on the other episodes, of the group or of the batch. Where they cannot be had, those
        episodes have failed."""
        shaped: dict[int, _Over | Failed] = {}
        groups = [[each for each in group if isinstance(each, _Over)] for group in played]
        try:
            env = next((each.played.env for group in groups for each in group), None)
            if env and await asyncio.to_thread(getattr, env, "scope") == "batch":  # a remote one is asked
                groups = [[each for group in groups for each in group]]
        except Exception as error:
            shaped = {id(each): self.unshaped(each, error) for group in groups for each in group}
            groups = []
        for group in filter(None, groups):
            try:
                pairs = [(each.record, each.score) for each in group]
                scores = await asyncio.to_thread(group[0].played.env.shape, pairs)
                shaped |= {id(each): replace(each, score=score) for each, score in zip(group, scores, strict=True)}
            except Exception as error:
                shaped |= {id(each): self.unshaped(each, error) for each in group}
        return [[shaped.get(id(each), each) for each in group] for group in played]

    def unshaped(self, over: _Over, error: Exception) -> Failed:
        record = over.record.model_copy(update={"status": "errored"})
        return Failed(index=over.played.index, why=f"{type(error).__name__}: {error}", episode=self.kept(record, None))

    async def episode(self, prompt: RenderedPrompt, index: int) -> _Over | Failed:
        played = _Played(index, self.of.make_env())
        try:
            # as long as each of its turns may take; asked for beside the loop, since a remote environment is asked
            turns = (await asyncio.to_thread(getattr, played.env, "budget")).max_turns
            async with self.limit, asyncio.timeout(turns * self.of.config.rollout.timeout):
                over = await self.play(prompt, played)
        except AlignmentError:
            raise
        except Exception as error:  # an engine, an environment or a clip failed: not the policy's fault
            why = f"{type(error).__name__}: {error} (sample {prompt.prompt.id}#{index}, turn {len(played.said) + 1})"
            return Failed(index=index, why=why, episode=await self.errored(played))
        self.finished += 1
        self.progress(self.finished)
        return over

    async def play(self, prompt: RenderedPrompt, played: _Played) -> _Over:
        """The turns of an episode, into `played`, and what they come to."""
        of, env, row = self.of, played.env, prompt.prompt.row
        messages = await env.reset(of.frames.task(row), of.frames.seed(row))
        if of.frames.open(row, messages) != prompt.prompt:
            raise ValueError(
                "its environment began in another way than before; make it follow from task and seed alone"
            )
        head, now = self.opened(prompt, messages)
        past: list[Past] = []
        before = 0  # tokens of the turn before, its response among them
        while True:
            view = of.context.view(head, past, now)
            if view.num_tokens + of.config.rollout.max_response_tokens > of.config.rollout.max_model_len:
                played.over_length = True
                break
            said = await self.speaker(self.asked(prompt, played, len(past) + 1, view))
            if played.rows and played.rows[-1].continued_by(view):
                # siblings may have shown the same beyond that
                played.again.append((before, min(before, said.cached_tokens)))
            else:
                played.rows.append(_Row(view))
            played.rows[-1].add(view, said)
            before = view.num_tokens + len(said.token_ids)
            played.said.append(said)
            played.texts.append(of.model.tokenizer.decode(list(said.token_ids), skip_special_tokens=True))
            result = await asyncio.wait_for(env.step(played.texts[-1]), of.config.rollout.timeout)
            if result.obs is None:
                break
            end = of.model.response_end(said.token_ids[-1] in of.model.stop_ids)
            past.append(Past(now, Piece((*said.token_ids, *end))))
            now = await self.observed(row, result.obs)
        if not played.said:
            raise ValueError(f"its first turn has {view.num_tokens} tokens, too many for rollout.max_model_len")
        record = await asyncio.to_thread(env.episode)
        score = await asyncio.to_thread(env.score, record, self.done)
        return _Over(played, record, score, self.kept(record, score))

    def asked(self, prompt: RenderedPrompt, played: _Played, k: int, view: Piece) -> Asked:
        config = self.of.config
        seed = None
        if self.temperature > 0:
            seed = rollout_seed(config.seed, self.label, prompt.prompt.id, played.index, k)
        sampling = SamplingParams(
            max_tokens=config.rollout.max_response_tokens, temperature=self.temperature, seed=seed
        )
        return Asked(prompt, played.index, k, played.env, view, sampling)

    def opened(self, prompt: RenderedPrompt, messages: Sequence[Message]) -> tuple[Piece, Observed]:
        """What stands before the first user message of a prompt, and that message."""
        parts = prompt.prompt.messages[-1]["content"]
        turn = tuple(self.of.model.user_turn(parts))
        split = len(prompt.token_ids) - len(turn)
        if prompt.token_ids[split:] != turn:
            raise ValueError("the chat template renders a message at the beginning in another way than later on")
        before = len(prompt.media) - sum(part["type"] == "video" for part in parts)
        head = Piece(prompt.token_ids[:split], prompt.media[:before])
        return head, Observed(Piece(turn, prompt.media[before:]), self.without_frames(messages[-1]))

    async def observed(self, row: dict[str, Any], message: Message) -> Observed:
        """A message as tokens, its frames encoded by then. Raises DataError where a clip cannot be used."""
        parts, media = await asyncio.to_thread(self.of.frames.resolve, row, message)
        if media and (failure := await self.prepare(media)):
            raise failure
        return Observed(Piece(tuple(self.of.model.user_turn(parts)), media), self.without_frames(message))

    def without_frames(self, message: Message) -> Piece:
        parts = [{"type": "text", "text": part.text} for part in message.parts if not isinstance(part, Frames)]
        return Piece(tuple(self.of.model.user_turn(parts)))

    # -- what is left of an episode -----------------------------------------------------------------------------------

    async def errored(self, played: _Played) -> dict[str, Any] | None:
        try:
            record = (await asyncio.to_thread(played.env.episode)).model_copy(update={"status": "errored"})
        except Exception:  # it never began, or its server is gone
            return None
        return self.kept(record, None)

    def kept(self, record: Episode, score: Score | None) -> dict[str, Any]:
        """A line of `episodes.jsonl`, without its place in the run; the score is the record's own, not yet shaped."""
        return {
            "env": {"target": self.of.env.target, "params": self.of.env.params},
            "progress": self.done,
            "episode": record.model_dump(mode="json"),
            "score": score and score.model_dump(mode="json"),
        }

    def group(self, prompt: RenderedPrompt, played: Sequence[_Over | Failed]) -> RolloutGroup:
        failed = tuple(each for each in played if isinstance(each, Failed))
        rollouts = tuple(self.rollout(prompt, each) for each in played if isinstance(each, _Over))
        return RolloutGroup(prompt=prompt, rollouts=rollouts, failed=failed)

    def rollout(self, prompt: RenderedPrompt, over: _Over) -> Rollout:
        played, record, score = over.played, over.record, over.score
        first, *further = played.rows
        bad = [turn.action.error is not None for turn in record.turns]
        shown, cached = map(sum, zip(*played.again, strict=True)) if played.again else (0, 0)
        measures = {
            "turns": len(bad),
            "frames": record.frames_used,
            "visual_tokens": record.tokens_used,
            "malformed": sum(bad) / len(bad),
            "ended": float(record.status == "done"),
            "over_length": float(played.over_length),
        }
        return Rollout(
            prompt=prompt,
            response_ids=first.ids,
            response_mask=first.mask,
            rollout_log_probs=first.log_probs,
            later=first.later,
            seen=first.seen,
            further=tuple(
                Continuation(
                    token_ids=row.begun.token_ids,
                    media=row.begun.media,
                    response_ids=row.ids,
                    response_mask=row.mask,
                    rollout_log_probs=row.log_probs,
                    later=row.later,
                    seen=row.seen,
                )
                for row in further
            ),
            text="\n".join(played.texts),
            finish_reason=played.said[-1].finish_reason,
            weight_version=min(said.weight_version for said in played.said),
            cached_tokens=played.said[0].cached_tokens,
            temperature=self.temperature,
            index=played.index,
            reward=score.total,
            turn_rewards=score.turn if any(score.turn) else (),
            trained=played.env.trained(record) if isinstance(played.env, VideoEnv) else (),
            terms=dict(score.parts),
            measures={k: float(v) for k, v in measures.items()} | ({"prefix_hit": cached / shown} if shown else {}),
            episode=over.kept,
        )
