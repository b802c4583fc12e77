"""From rows to rendered prompts, in an order that a resumed run takes up where it stopped.

Nothing is decoded here: a prompt's tokens and its clips' geometry follow from headers. What cannot be used is set
aside with its reason, counted, and never replaced by something else under the same id.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from videorl.answers.letters import list_options
from videorl.beside import begin
from videorl.data.schema import PLACEHOLDER, CanonicalRow, fingerprint, load_rows
from videorl.types import Clip, DataError, Media, Prompt, RenderedPrompt, Sampling
from videorl.video.paths import resolve_media

if TYPE_CHECKING:
    from videorl.config import Config, DataConfig, SamplingConfig
    from videorl.models.base import VideoModel
    from videorl.models.media import MediaSource
    from videorl.video.frames import FramePlan

Ensure = Callable[[Sequence[Media]], Mapping[str, DataError]]
"""Makes the features of clips available; returns {media key: why not} for those that cannot be."""

TOO_LONG = "too_long"  # a prompt over data.max_prompt_tokens: set aside, but not bad


# --- one row ---------------------------------------------------------------------------------------------------------


def make_sampling(config: SamplingConfig, spatial: int, temporal: int) -> Sampling:
    """The configured rule with a model family's factors."""
    return Sampling(**config.model_dump(), spatial_factor=spatial, temporal_factor=temporal)


MakePrompt = Callable[[dict[str, Any]], Prompt]


def make_prompt(row: dict[str, Any], config: DataConfig, sampling: Sampling) -> Prompt:
    """A canonical row as messages of text and video parts, its question followed by the options and the instruction.

    The options stand on the question's line, ` (A) red (B) green`, the instruction for the row's task on the next. A
    system message of the row itself goes before `data.system_prompt`, which then is not used.

    Raises:
        VideoError: a path is missing or leaves `data.media_root`.
    """
    texts = [(message.role, message.text) for message in CanonicalRow.model_validate(row).messages]
    messages = [{"role": role, "content": _parts(text)} for role, text in texts]
    if not any(PLACEHOLDER in text for _, text in texts):
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "video"} for _ in row["videos"]] + first["content"]
    _complete_question(messages[-1]["content"], row["choices"], config.instructions.get(row["task"]))
    if config.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": config.system_prompt}]})
    return Prompt(
        id=row["id"],
        task=row["task"],
        messages=tuple(messages),
        clips=make_clips(row, config.media_root, sampling),
        row=row,
    )


def make_clips(row: dict[str, Any], media_root: str, sampling: Sampling) -> tuple[Clip, ...]:
    """The clips of a canonical row; a video's own `fps` replaces the sampling's rate or number of frames."""
    return tuple(
        Clip(
            path=resolve_media(media_root, video["path"]),
            sampling=sampling if video["fps"] is None else replace(sampling, fps=video["fps"], num_frames=None),
            start=video["start"],
            end=video["end"],
            sha256=video["sha256"],
        )
        for video in row["videos"]
    )


def check_spans(row: dict[str, Any], plans: Sequence[FramePlan]) -> None:
    """Raise DataError `span_outside_clip` where a grounding span ends more than half a frame after its clip."""
    if row["task"] != "grounding":
        return
    (plan,) = plans
    shown = plan.indices[-1] - plan.indices[0]
    half_frame = (plan.pts[-1] - plan.pts[0]) / shown / 2 if shown else 0.0
    for start, end in row["spans"]:
        if end > plan.duration + half_frame:
            raise DataError(
                "span_outside_clip",
                f"span [{start}, {end}] leaves its clip of {plan.duration:.3f} s; spans are in seconds from where the "
                "clip starts: correct the span, or the video's start and end",
            )


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        parts += [{"type": "video"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def _complete_question(parts: list[dict[str, str]], choices: Sequence[str] | None, instruction: str | None) -> None:
    """Add to the last text in place. Done after placeholders are read: one that an option spells stays text."""
    options = list_options(choices)
    if options or instruction:
        question = parts.pop()["text"].rstrip() if "text" in parts[-1] else ""
        line = " ".join(filter(None, (question, options)))
        parts.append({"type": "text", "text": "\n".join(filter(None, (line, instruction)))})


class Renderer:
    """Rows to prompts and prompts to token ids and media handles, as a configuration says. `make` makes the prompt of a
    row where that is not its question: for an environment, whose first message it is."""

    def __init__(self, config: DataConfig, model: VideoModel, source: MediaSource, make: MakePrompt | None = None):
        self.config, self.model, self.source, self.make = config, model, source, make
        self.sampling = make_sampling(config.sampling, model.spatial_factor, model.temporal_factor)

    def prompt(self, row: dict[str, Any]) -> Prompt:
        """Raises VideoError, as `make_prompt`."""
        return self.make(row) if self.make else make_prompt(row, self.config, self.sampling)

    def render(self, prompt: Prompt) -> RenderedPrompt:
        """From headers alone. Raises DataError: a bad clip, text or span, or `too_long`."""
        pairs = [self.source.plan(clip) for clip in prompt.clips]
        plans = [plan for plan, _ in pairs]
        if not self.make:
            check_spans(prompt.row, plans)
        rendered = self.model.render(prompt, [media for _, media in pairs], plans)
        if rendered.num_tokens > self.config.max_prompt_tokens:
            limit = f"data.max_prompt_tokens={self.config.max_prompt_tokens}"
            raise DataError(TOO_LONG, f"{rendered.num_tokens} tokens, over {limit}; show fewer frames or raise it")
        return rendered


# --- a data set ------------------------------------------------------------------------------------------------------


class PromptStream:
    """The usable prompts of a data set: `take` draws them epoch after epoch, `all` gives each once.

    The order of an epoch follows from the seed, the epoch and each sample's id alone. `quarantined` holds what was set
    aside, as {id: (reason, message)}; it is not tried again in this run.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        config: DataConfig,
        model: VideoModel,
        source: MediaSource,
        *,
        seed: int,
        limit: int | None = None,
        make: MakePrompt | None = None,
    ):
        self.rows = {row["id"]: row for row in rows}
        self.config, self.seed, self.limit = config, seed, limit
        self.renderer = Renderer(config, model, source, make)
        self.quarantined: dict[str, tuple[str, str]] = {}
        self._reasons: Counter[str] = Counter()
        self.consumed = 0  # prompts handed out by `take`
        self._ahead: Future[float] | None = None
        self._spent = self._waited = 0.0  # seconds of look-ahead, and of waiting for it
        self._start_epoch(0)

    @classmethod
    def train(
        cls, config: Config, model: VideoModel, source: MediaSource, make: MakePrompt | None = None
    ) -> PromptStream:
        """Raises DataError, as `load_rows`."""
        return cls(load_rows(config.data.path), config.data, model, source, seed=config.seed, make=make)

    @classmethod
    def held_out(
        cls, config: Config, model: VideoModel, source: MediaSource, make: MakePrompt | None = None
    ) -> PromptStream | None:
        """The first `eval.max_prompts` usable rows of `data.eval_path`; None without one. Raises as `load_rows`."""
        if config.data.eval_path is None:
            return None
        rows = load_rows(config.data.eval_path)
        return cls(rows, config.data, model, source, seed=config.seed, limit=config.eval.max_prompts, make=make)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.rows.values())

    def take(self, count: int, ensure: Ensure) -> list[RenderedPrompt]:
        """The next `count` usable prompts, all of different rows, with the media of each made available by `ensure`.

        A row that the next epoch would repeat within these prompts comes in a later call.

        Raises:
            DataError: `too_many_bad` above `data.max_bad_fraction` or without any usable row, `too_few_rows` where the
                data set has fewer than `count` usable ones.
        """
        ahead, self._ahead = self._ahead, None
        if ahead:
            started = time.monotonic()
            self._spent += ahead.result()
            self._waited += time.monotonic() - started
        self._read_headers(islice((id for id in self._pending if id not in self.quarantined), count))
        prompts = self._gather(self._draw(), count, ensure)
        self.consumed += len(prompts)
        return prompts

    def look_ahead(self, count: int, ensure: Ensure, in_use: Sequence[Media]) -> None:
        """Begin to plan, decode and encode what the next `take(count)` shows, beside the caller; it waits for this.

        Nothing is drawn: what fails is met again, and counted, when its row is drawn. Nothing is encoded where the
        store cannot hold it beside what is `in_use`, which it would push out.
        """
        ids = list(islice((id for id in self._pending if id not in self.quarantined), count))

        def prepare() -> float:
            started = time.monotonic()
            media = self._read_headers(ids)
            if self.renderer.source.fits([*media, *in_use]):
                ensure(media)
            return time.monotonic() - started

        self._ahead = begin(prepare, "look-ahead")

    def fits_ahead(self, count: int, in_use: Sequence[Media]) -> bool:
        """Whether the store can hold what the next `take(count)` shows beside what is `in_use`."""
        media = self._read_headers(list(islice((id for id in self._pending if id not in self.quarantined), count)))
        return self.renderer.source.fits([*media, *in_use])

    def all(self, ensure: Ensure) -> list[RenderedPrompt]:
        """Every usable prompt once, in the order of the file, up to the stream's limit. Raises DataError as `take`."""
        self._read_headers(islice(self.rows, self.limit))
        prompts = self._gather((prompt for id in self.rows if (prompt := self._render(id))), self.limit, ensure)
        if not prompts:
            raise self._too_many_bad("no row can be used")
        return prompts

    def metrics(self) -> dict[str, float]:
        """Counts since the run began: `epoch`, `consumed`, `bad`, `too_long`, and one for each reason that occurred.

        `hidden` is the share of the looking ahead that nobody waited for.
        """
        counts = {"epoch": self.epoch, "consumed": self.consumed, "bad": self._num_bad(), TOO_LONG: 0, **self._reasons}
        return counts | ({"hidden": 1 - min(1.0, self._waited / self._spent)} if self._spent else {})

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on after the prompts handed out so far, as JSON. `drawn` is of this epoch."""
        return {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": self.epoch,
            "drawn": list(self._drawn),
            "consumed": self.consumed,
            "quarantined": {id: list(entry) for id, entry in self.quarantined.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises DataError `changed_data` or `changed_seed` where that would be another run."""
        new_run = "or start a new run: another run.dir, with model.path at the export of this one"
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                "changed_data",
                f"the training rows are not those of the checkpoint (fingerprint {self.fingerprint}, there "
                f"{state['fingerprint']}), so what is left of its epoch is unknown; restore the rows, {new_run}",
            )
        if state["seed"] != self.seed:
            raise DataError(
                "changed_seed", f"seed={self.seed}, in the checkpoint {state['seed']}; restore it, {new_run}"
            )
        self.quarantined = {id: (reason, message) for id, (reason, message) in state["quarantined"].items()}
        self._reasons = Counter(reason for reason, _ in self.quarantined.values())
        self.consumed = state["consumed"]
        self._start_epoch(state["epoch"], state["drawn"])

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _start_epoch(self, epoch: int, drawn: Sequence[str] = ()) -> None:
        self.epoch = epoch
        self._drawn = dict.fromkeys(drawn)
        ids = [id for id in self.rows if id not in self._drawn]
        if self.config.shuffle:
            ids.sort(key=lambda id: hashlib.blake2b(f"{self.seed}|{epoch}|{id}".encode()).digest())
        self._pending = deque(ids)

    def _draw(self) -> Iterator[RenderedPrompt]:
        """Prompts of the rows that come next, each row once, whatever the number of epochs this goes through."""
        taken: set[str] = set()
        while True:
            if not self._pending:
                self._start_epoch(self.epoch + 1)
            id = next((id for id in self._pending if id not in taken), None)
            if id is None:
                raise self._exhausted()
            taken.add(id)
            self._pending.remove(id)
            self._drawn[id] = None
            if prompt := self._render(id):
                yield prompt

    def _gather(self, candidates: Iterator[RenderedPrompt], count: int | None, ensure: Ensure) -> list[RenderedPrompt]:
        """The first `count` candidates (None: all) whose media `ensure` could provide."""
        prompts: list[RenderedPrompt] = []
        while batch := list(islice(candidates, None if count is None else count - len(prompts))):
            failures = ensure([media for prompt in batch for media in prompt.media])
            for prompt in batch:
                failed = next((failures[media.key] for media in prompt.media if media.key in failures), None)
                if failed is None:
                    prompts.append(prompt)
                else:
                    self._quarantine(prompt.prompt.id, failed)
        return prompts

    def _read_headers(self, ids: Iterable[str]) -> list[Media]:
        """The handles of rows' clips, planned on all decoders at once; none of a row with anything wrong.

        What is wrong is said when the row is rendered.
        """

        def read(id: str) -> list[Media]:
            try:
                return [self.renderer.source.plan(clip)[1] for clip in self.renderer.prompt(self.rows[id]).clips]
            except DataError:
                return []

        with ThreadPoolExecutor(self.config.decode_workers) as decoders:
            return [item for media in decoders.map(read, list(ids)) for item in media]

    def _render(self, id: str) -> RenderedPrompt | None:
        """The prompt of a row from headers alone; None where the row was set aside instead, now or before."""
        if id in self.quarantined:
            return None
        try:
            return self.renderer.render(self.renderer.prompt(self.rows[id]))
        except DataError as error:
            self._quarantine(id, error)
            return None

    # -- what is set aside -----------------------------------------------------------------------------------------

    def _quarantine(self, id: str, error: DataError) -> None:
        self.quarantined[id] = (error.reason, str(error))
        self._reasons[error.reason] += 1
        if self._num_bad() > self.config.max_bad_fraction * len(self):
            allowed = f"data.max_bad_fraction={self.config.max_bad_fraction}"
            raise self._too_many_bad(f"{self._num_bad()} bad ones are more than {allowed}")

    def _num_bad(self) -> int:
        return self._reasons.total() - self._reasons[TOO_LONG]

    def _exhausted(self) -> DataError:
        usable = len(self) - len(self.quarantined)
        if not usable:
            return self._too_many_bad("no row can be used")
        return DataError(
            "too_few_rows",
            f"{usable} rows can be used, fewer than one step takes; lower rollout.prompts_per_step or add rows",
        )

    def _too_many_bad(self, rule: str) -> DataError:
        counts = ", ".join(f"{number} {reason}" for reason, number in self._reasons.most_common())
        bad_first = sorted(self.quarantined.items(), key=lambda item: item[1][0] == TOO_LONG)
        examples = "".join(f"\n  {id}: {reason}: {message}" for id, (reason, message) in bad_first[:3])
        return DataError(
            "too_many_bad",
            f"of {len(self)} rows, {counts} were set aside: {rule}. For example:{examples}\n"
            "correct the rows or take them out; `python -m videorl.data check` finds all that are bad",
        )
