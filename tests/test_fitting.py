"""What a stage on pairs starts with."""

import json

import pytest

from videorl.config import load_config
from videorl.fitting import load_pairs
from videorl.stages import of_stage
from videorl.types import DataError


def test_a_tiny_model_is_made_for_the_words_of_the_pairs(tmp_path):
    row = {"id": "p", "task": "open", "prompt": "Who?", "chosen": "a marmot", "rejected": "a dog"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    pairs = [f"{name}={tmp_path}/pairs.jsonl" for name in ("data.path", "reward_model.path")]
    place = [*pairs, f"data.media_root={tmp_path}", f"model.path={tmp_path}/model"]
    given = load_config("reward_model", ["recipe=base_reward", "scale=tiny", *place])
    config = of_stage(given, "reward_model")
    (found,) = load_pairs(config)
    assert found["chosen"] == "a marmot"
    assert (tmp_path / "model" / "model.safetensors").exists()
    with pytest.raises(DataError, match="has no `phrases`, which the loss needs"):
        load_pairs(config, need_phrases=True)
