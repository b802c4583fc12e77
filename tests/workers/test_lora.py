"""Merging by hand, and on the tiny model: merged weights give what the adapters give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from videorl.config import LoraConfig
from videorl.workers.lora import adapters_off, add_adapters, merge_adapters

CONFIG = LoraConfig(r=2, alpha=3.0, targets=["q_proj", "v_proj"])


def test_merging_by_hand():
    """W + 3/2 B A, the bias and what is not adapted as they are, under their plain names."""
    up, down = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
    entries = {
        "before.weight": torch.zeros(1),
        "q_proj.base_layer.weight": torch.ones(2, 3),
        "q_proj.base_layer.bias": torch.tensor([7.0, 8.0]),
        "q_proj.lora_A.default.weight": down,
        "q_proj.lora_B.default.weight": up,
        "after.weight": torch.ones(1),
    }
    merged = dict(merge_adapters(entries.items(), CONFIG))
    assert merged.keys() == {"before.weight", "q_proj.weight", "q_proj.bias", "after.weight"}
    assert merged["q_proj.weight"].tolist() == [[2.5, 4.0, 1.0], [4.0, 7.0, 7.0]]
    assert merged["q_proj.bias"].tolist() == [7.0, 8.0]


def test_what_has_no_adapters_is_unchanged():
    plain = nn.Linear(2, 2).state_dict()
    assert list(merge_adapters(plain.items(), CONFIG)) == list(plain.items())


@pytest.fixture
def adapted(tiny):
    """The tiny model with adapters that do something, and its plain twin."""
    torch.manual_seed(0)
    plain, module = tiny.load(), tiny.load()
    module.requires_grad_(False)
    add_adapters(tiny.language_model(module), CONFIG)
    return module, plain


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=torch.arange(12)[None]).logits


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)


def test_adapters_start_without_effect_and_only_they_are_trained(adapted):
    module, plain = adapted
    assert torch.equal(logits(module), logits(plain))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 2 * 2 * 2  # A and B, of two targets, in two layers
    assert all("language_model" in name for name in trained)


def test_merged_weights_give_what_the_adapters_give(adapted):
    module, plain = adapted
    before = logits(plain)
    randomise(module)
    expected = logits(module)
    assert (expected - before).abs().max() > 1e-2
    merged = dict(merge_adapters(module.state_dict().items(), CONFIG))
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    assert torch.allclose(logits(plain), expected, atol=1e-5, rtol=0)


def test_the_base_model_is_back_while_adapters_are_off(adapted):
    module, plain = adapted
    randomise(module)
    expected = logits(module)
    with adapters_off(module):
        assert torch.equal(logits(module), logits(plain))
    assert torch.equal(logits(module), expected)
    with pytest.raises(ZeroDivisionError), adapters_off(module):
        raise ZeroDivisionError
    assert torch.equal(logits(module), expected)
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8  # still
