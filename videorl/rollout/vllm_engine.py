"""vLLM in a Ray actor, in-process, with continuous batching. The only file that imports vllm.

One thread owns the engine: it takes commands from a queue between engine steps, so that requests join and leave the
running batch at every step while the actor's event loop stays free.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from videorl import contract
from videorl.config import Config
from videorl.imports import fix_imports, require
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.types import Generation, Media, Request, SamplingParams, expand_placeholders
from videorl.weight_sync import Weights, receive

_BAN = -100.0  # vLLM's lowest bias; e^-100 is 0 beside any other token in float32
_BATCHED_TOKENS = 32768  # of one engine step
_RENDERED = 4  # prompts kept as vLLM's input, embeddings and all; the requests of a group come one after another


class VLLMEngine:
    def __init__(self, config: Config, index: int):
        vllm = _import_vllm()
        self.vllm, self.config = vllm, config
        self.model = open_model(config.model)
        self.source = open_source(config, self.model)
        self.version = 0
        rollout = config.rollout
        self.llm = vllm.LLM(
            model=str(self.model.path),
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            seed=config.seed + index,
            max_model_len=rollout.max_model_len,
            max_num_seqs=rollout.max_concurrency,
            tensor_parallel_size=rollout.tensor_parallel,
            # of the distribution that is sampled from: after temperature and banned tokens, as the trainer's
            logprobs_mode="processed_logprobs",
            enable_mm_embeds=True,  # safe here: embeddings come from our own store, not from a network
            limit_mm_per_prompt={"image": 0, "video": 64},
            enable_prefix_caching=True,
            enforce_eager=True,
            mm_processor_cache_gb=0,  # its content is kept by `_rendered`, and the embeddings by the store
            disable_log_stats=True,
            # at least a whole prompt, which on a CPU must not be cut into chunks
            **{"max_num_batched_tokens": max(_BATCHED_TOKENS, rollout.max_model_len)} | rollout.engine_kwargs,
        )
        # A quarter of the engine's time for short responses, and the same for all rollouts of a prompt
        self._rendered = functools.lru_cache(maxsize=_RENDERED)(self._render)
        self._laid_out = functools.lru_cache(maxsize=_RENDERED)(self._lay_out)
        self._ids = itertools.count()
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._waiting: dict[str, Callable[[Any, Exception | None], object]] = {}
        threading.Thread(target=self._run, daemon=True, name="vllm").start()

    @staticmethod
    def environment(config: Config) -> dict[str, str]:
        import os

        variables = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",  # else the sampler is compiled at the first request, which takes 10-40 s
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if "kv_cache_memory_bytes" not in config.rollout.engine_kwargs:
            variables["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; on a CPU vLLM would take most of the memory there is
        if os.path.isdir(config.model.path):
            variables["HF_HUB_OFFLINE"] = "1"
        return variables

    def ready(self) -> None:
        """Answers once the engine is built."""

    async def generate(self, request: Request) -> Generation:
        expanded, positions = self._laid_out(request.token_ids, request.media)
        rendered = self._rendered(request.token_ids + request.start, request.media)
        output = await self._submit(rendered, request.sampling)
        shown = list(output.prompt_token_ids)
        if shown != [*expanded, *request.start]:
            raise contract.AlignmentError(
                f"vLLM expanded the prompt to {len(shown)} tokens, the model's rule gives {len(expanded)} "
                f"and {len(request.start)} of the response: media {[item.key[:12] for item in request.media]}"
            )
        completion = output.outputs[0]
        seen = [*shown, *completion.token_ids]
        return Generation(
            token_ids=tuple(completion.token_ids),
            log_probs=tuple(
                min(0.0, entry[token].logprob)
                for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
            ),
            finish_reason=completion.finish_reason,
            weight_version=self.version,
            seen=contract.fingerprint(seen, positions[:, : len(seen)], request.media),
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def load_weights(self, weights: Weights) -> None:
        """Replace the weights and drop every cache that was computed with the old ones."""
        tensors: Any = await receive(weights)
        if self.config.rollout.tensor_parallel > 1:
            tensors = list(tensors)  # an iterator cannot cross to vLLM's own worker processes

        def load() -> None:
            if self._waiting:
                raise RuntimeError(f"load_weights: {len(self._waiting)} requests are under way; wait for them first")
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            # Without the first, the next request with a video the engine knows raises "Encoder cache miss"; without
            # the second, prefix hits have keys and values of the old weights.
            self.llm.llm_engine.reset_encoder_cache()
            self.llm.llm_engine.reset_prefix_cache()
            self._rendered.cache_clear()
            self.version = weights.version

        await self._call(load)

    # -- the engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        engine = self.llm.llm_engine
        while True:
            # Idle: block for a command. Busy: take all that have come, then step.
            pending = [self._commands.get()] if not self._waiting else []
            while not self._commands.empty():
                pending.append(self._commands.get())
            for command in pending:
                command()
            if not self._waiting:
                continue
            try:
                outputs = engine.step()
            except Exception as error:  # the engine's state is unknown now: its callers must hear of it, not time out
                for settle in self._waiting.values():
                    settle(None, error)
                raise
            for output in outputs:
                if output.finished:
                    self._waiting.pop(output.request_id)(output, None)

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the engine thread, between two steps."""
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def command() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, result, None)

        self._commands.put(command)
        return await future

    async def _submit(self, rendered: Any, sampling: SamplingParams) -> Any:
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        request_id = str(next(self._ids))
        parameters = self.vllm.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            logprobs=0,
            stop_token_ids=list(self.model.stop_ids),
            ignore_eos=False,
            detokenize=False,
            logit_bias=dict.fromkeys(self.model.banned_ids, _BAN),
        )

        def add() -> None:
            # Registered under the name before the engine may finish it
            self.llm.llm_engine.add_request(request_id, rendered, parameters)
            self._waiting[request_id] = lambda output, error: loop.call_soon_threadsafe(_settle, future, output, error)

        await self._call(add)
        return await future

    def _lay_out(self, token_ids: tuple[int, ...], media: tuple[Media, ...]) -> tuple[list[int], np.ndarray]:
        """A prompt's expanded ids, and the positions `[3, max_model_len]` of its tokens and of any response's."""
        expanded = expand_placeholders(token_ids, media, self.model.placeholder_id)
        left = max(0, self.config.rollout.max_model_len - len(expanded))
        return expanded, self.model.position_ids(expanded, media, left).numpy()

    def _render(self, token_ids: tuple[int, ...], media: tuple[Media, ...]) -> Any:
        """What vLLM makes of a prompt before it schedules it: placeholders expanded, features placed and cut up."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if media:
            prompt |= self.model.engine_inputs(media, [self._features(item) for item in media])
            # Our key stands for the content, so vLLM need not hash hundreds of megabytes per request
            prompt["multi_modal_uuids"] = {"video": [item.key for item in media]}
        (rendered,) = self.llm.llm_engine.renderer.render_cmpl([prompt])
        return rendered

    def _features(self, media: Media) -> Any:
        return self.source.frames(media) if self.source.pixels else self.source.embeddings(media)


def _import_vllm() -> Any:
    """vLLM, able to inspect model classes under a CPU torch.

    It does so in a fresh interpreter, to keep CUDA uninitialised here, and that interpreter lacks `fix_imports`.
    Without CUDA there is nothing to protect, so the inspection runs here.
    """
    import torch

    fix_imports()
    vllm = require("vllm", extra="cpu' or 'videorl[gpu")
    if torch.version.cuda is None:
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda function: function()
    return vllm


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.cancelled():  # its caller gave up waiting
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
