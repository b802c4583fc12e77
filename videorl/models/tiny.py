"""A complete Qwen2.5-VL checkpoint small enough to post-train on a laptop's CPU, made on the spot.

The folder loads as it is in transformers (`AutoModelForImageTextToText`, `AutoProcessor`) and in vLLM.

    python -m videorl.models.tiny --out models/tiny --texts data/quickstart/sft.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from videorl.answers.letters import list_options
from videorl.imports import fix_imports

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

HEAD_DIM = 32  # the smallest that vLLM's attention on CPU accepts
INIT_STD = 0.06  # a model of this width learns faster from it than from the usual 0.02
TEXT_PIECES = 512  # most byte pairs the tokenizer may learn, the 256 bytes included
VOCAB_MULTIPLE = 64

IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    IM_END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
RESPONSE_TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # plain tokens: they stay in decoded text

# The format of Qwen2.5-VL-Instruct.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- else -%}
{{- '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
TEMPLATE_TEXT = "system\nYou are a helpful assistant.\nuser\nassistant\n"


@dataclass(frozen=True, kw_only=True)
class TinySize:
    """What makes the model larger. Feed-forward layers are twice as wide as the hidden size."""

    hidden: int = 128
    layers: int = 2
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int = 4

    def __post_init__(self):
        if self.hidden < 2 * HEAD_DIM or self.hidden % (2 * HEAD_DIM):
            raise ValueError(
                f"TinySize: hidden={self.hidden} must be a multiple of {2 * HEAD_DIM} (two query heads a key head)"
            )
        if self.vision_hidden % (4 * self.vision_heads):
            raise ValueError(
                f"TinySize: vision_hidden={self.vision_hidden} must be a multiple of 4 x vision_heads="
                f"{self.vision_heads}: the rotary embedding splits a head into height and width pairs"
            )
        if min(self.layers, self.vision_depth) < 1:
            raise ValueError(f"TinySize: layers={self.layers} and vision_depth={self.vision_depth} must be at least 1")


DEFAULT_SIZE = TinySize()


def build_tiny_model(
    path: str | Path, texts: Iterable[str], seed: int = 0, size: TinySize = DEFAULT_SIZE
) -> Qwen2_5_VLForConditionalGeneration:
    """Write a randomly initialised checkpoint folder: weights (float32), tokenizer, processors, chat template.

    The tokenizer is byte-level BPE, so any text tokenises; of the words in `texts` (questions, options and responses as
    the model will see them) the frequent ones become one token each. The same arguments give the same files. The folder
    appears when it is complete; the model in it is returned.

    Raises:
        FileExistsError: there is something at `path` already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name another folder, or delete this one to build the model again")
    fix_imports()
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,  # type: ignore[attr-defined]
    )

    tokenizer = _train_tokenizer(texts)
    ids = tokenizer.get_vocab()
    # The lower bound of the published models, 128 times this one, would enlarge a tiny clip.
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 768}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )
    text_ids = {"bos_token_id": ids[END_OF_TEXT], "eos_token_id": ids[IM_END], "pad_token_id": ids[END_OF_TEXT]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(ids) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
            "hidden_size": size.hidden,
            "intermediate_size": 2 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.hidden // HEAD_DIM,
            "num_key_value_heads": size.hidden // HEAD_DIM // 2,
            # Of a head's 16 rotary pairs: time, height, width.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            **text_ids,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.hidden,
            "window_size": 56,
            "fullatt_block_indexes": [size.vision_depth - 1],
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=INIT_STD)
    model.generation_config = GenerationConfig(**text_ids)
    unpublished = path.with_name(path.name + ".tmp")
    model.save_pretrained(unpublished)
    processor.save_pretrained(unpublished)
    unpublished.rename(path)
    return model


def row_texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The texts of canonical rows: every question, its options with their letters, and every response."""
    for row in rows:
        messages = [{"content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        for content in (message["content"] for message in messages):
            yield from [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        yield list_options(row.get("choices"))
        yield from (row.get(name) or "" for name in ("response", "chosen", "rejected"))


def _train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    from tokenizers import AddedToken, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    # Qwen2Tokenizer puts its own pre-tokenizer in place whenever it is loaded, so training has to use that very one.
    backend = Qwen2Tokenizer().backend_tokenizer
    tokens = SPECIAL_TOKENS + RESPONSE_TAGS
    between_tokens = re.compile("|".join(map(re.escape, tokens)))
    backend.train_from_iterator(
        (piece for text in (TEMPLATE_TEXT, *texts) for piece in between_tokens.split(text)),
        trainers.BpeTrainer(
            vocab_size=TEXT_PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    bpe = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],  # type: ignore[arg-type]
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in RESPONSE_TAGS])  # type: ignore[arg-type]
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a tiny Qwen2.5-VL checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--texts", type=Path, required=True, help="JSONL rows the tokenizer is trained on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rows = map(json.loads, args.texts.read_text().splitlines())
    try:
        model = build_tiny_model(args.out, row_texts(rows), args.seed)
    except FileExistsError as error:
        parser.error(str(error))
    print(f"{args.out}: {model.num_parameters():,} parameters, {model.get_input_embeddings().num_embeddings} token ids")  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
