"""LoRA through peft: adapters inside the language model, merged whenever weights leave the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from videorl.config import LoraConfig


def add_adapters(language_model: nn.Module, config: LoraConfig) -> None:
    """Replace the linear layers named in `config.targets` by adapted ones. B starts at 0, so nothing changes yet."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    peft_config = PeftLoraConfig(r=config.r, lora_alpha=config.alpha, target_modules=list(config.targets))  # type: ignore[arg-type]
    inject_adapter_in_model(peft_config, language_model)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The base model, for as long as the context lasts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(
    tensors: Iterable[tuple[str, torch.Tensor]], config: LoraConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """State-dict entries of an adapted model -> those of a plain one: W + (alpha / r) B A (arXiv 2106.09685, eq. 3).

    An adapted layer's entries follow each other: base weight, then A, then B.
    """
    weights: dict[str, torch.Tensor] = {}
    down: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if name.endswith(".base_layer.weight"):
            weights[name.removesuffix(".base_layer.weight")] = tensor
        elif ".lora_A." in name:
            down[name.split(".lora_A.")[0]] = tensor
        elif ".lora_B." in name:
            layer = name.split(".lora_B.")[0]
            yield f"{layer}.weight", weights.pop(layer) + config.alpha / config.r * tensor @ down.pop(layer)
        else:
            yield name.replace(".base_layer.", "."), tensor
