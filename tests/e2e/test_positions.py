"""Positions are vLLM's own, for any layout of text and videos."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_media

from videorl.imports import fix_imports

SECONDS = st.sampled_from([1 / 3, 2 / 3, 0.1, 0.7, 1.0, 1.001, 2 / 23.976]) | st.floats(0.01, 20)
VIDEOS = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), SECONDS)


@pytest.fixture(scope="module")
def vllm_class():
    fix_imports()
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration


@settings(derandomize=True, deadline=None, max_examples=300)
@given(texts=st.lists(st.integers(0, 6), min_size=1, max_size=5), data=st.data(), num_response=st.integers(0, 4))
def test_positions_are_those_of_vllm(vllm_class, tiny, texts, data, num_response):
    ids, media, features = [1] * texts[0], [], []
    for number, length in enumerate(texts[1:]):
        t, h, w, seconds = data.draw(VIDEOS)
        item = make_media(str(number), grid=(t, 2 * h, 2 * w), seconds_per_grid=float(np.float32(seconds)))
        values = {
            "video_grid_thw": SimpleNamespace(data=torch.tensor(item.grid)),
            "second_per_grid_ts": SimpleNamespace(data=torch.tensor(seconds, dtype=torch.float32)),
        }
        place = SimpleNamespace(offset=len(ids))
        features.append(SimpleNamespace(modality="video", mm_position=place, data=values))
        ids += [tiny.placeholder_id] * item.num_tokens + [1] * length
        media.append(item)
    if not ids:
        ids = [1]
    model = SimpleNamespace(config=tiny.hf_config)
    model.iter_mm_grid_thw = lambda features: vllm_class.iter_mm_grid_thw(model, features)
    prompt, delta = vllm_class.get_mrope_input_positions(model, ids, features)
    # vLLM numbers a sampled token by its place in the sequence, shifted by `delta`
    response = torch.arange(len(ids), len(ids) + num_response).expand(3, -1) + delta
    assert torch.equal(tiny.position_ids(ids, media, num_response), torch.cat([prompt, response], dim=1))
