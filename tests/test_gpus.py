"""What a run asks of the GPUs of a cluster."""

from __future__ import annotations

import pytest

from videorl.config import load_config
from videorl.gpus import ENCODER_GPUS, engine_gpus, num_gpus


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ([], 8),  # 4 ranks, the reference beside them, 4 engines, and the encoder beside one of those
        (["cluster.placement=spread"], 12),
        (["cluster.placement=spread", "model.lora={r: 4, alpha: 8, targets: [q_proj]}"], 8),
        (["rollout.tensor_parallel=2"], 13),  # whole GPUs leave the encoder none
        (["encoder.workers=4"], 8),
        (["encoder.workers=5"], 9),
        (["critic=default", "critic.ranks=2", "algorithm=ppo"], 10),
    ],
)
def test_num_gpus(overrides, count):
    config = load_config(
        "train", ["recipe=qwen2_5_vl_7b_grpo", "data.path=rows.jsonl", "data.media_root=videos", *overrides]
    )
    assert num_gpus(config) == count


def test_an_encoder_fits_beside_an_engine():
    config = load_config("train", ["recipe=quickstart"])
    assert engine_gpus(config) + ENCODER_GPUS == pytest.approx(1)
