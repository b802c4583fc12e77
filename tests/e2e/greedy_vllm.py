"""What vLLM alone answers to the held-out prompts, greedily and from raw frames: {prompt id: text} as JSON.

    python greedy_vllm.py answers.json recipe=quickstart model.path=RUN/export ...

A process of its own, because vLLM reads its environment when it is imported and changes torch for the whole process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from videorl.config import load_config
from videorl.data.prompts import PromptStream
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rollout.vllm_engine import VLLMEngine, _import_vllm


def main(answers: str, *overrides: str) -> None:
    config = load_config("eval", list(overrides))
    os.environ |= VLLMEngine.environment(config) | {"OMP_NUM_THREADS": "1"}
    vllm = _import_vllm()
    model = open_model(config.model)
    source = open_source(config, model)
    stream = PromptStream.held_out(config, model, source)
    assert stream is not None
    prompts = stream.all(lambda media: {})
    llm = vllm.LLM(
        model=config.model.path,
        dtype=config.model.dtype,
        max_model_len=config.rollout.max_model_len,
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        limit_mm_per_prompt={"image": 0, "video": 1},
    )
    sampling = vllm.SamplingParams(
        temperature=0,
        max_tokens=config.rollout.max_response_tokens,
        stop_token_ids=list(model.stop_ids),
        logit_bias=dict.fromkeys(model.banned_ids, -100.0),
    )
    inputs = [
        {"prompt_token_ids": list(prompt.token_ids)}
        | model.engine_inputs(prompt.media, [source.frames(item) for item in prompt.media])
        for prompt in prompts
    ]
    outputs = llm.generate(inputs, sampling)
    texts = {
        prompt.prompt.id: model.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)
        for prompt, output in zip(prompts, outputs, strict=True)
    }
    Path(answers).write_text(json.dumps(texts))


if __name__ == "__main__":
    main(*sys.argv[1:])
