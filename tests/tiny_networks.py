"""Checkpoints of a few thousand random weights, written as the published ones are: what scorers load in tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from videorl.imports import fix_imports

WORDS = ["a", "the", "red", "blue", "door", "car", "man", "dog", "opens", "drives", "away", "what", "happens", "next"]
WORDS += ["yes", "no", ".", ",", "(", ")", "A", "B"]
CHAT_TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|>\n{% endfor %}"


def build_sentence_encoder(path: Path, pooling: str | None = "mean_tokens", seed: int = 0) -> Path:
    """A BERT of width 16 in the layout of sentence-transformers; without its files where `pooling` is None."""
    fix_imports()
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = _word_tokenizer(special, unk="[UNK]", pad="[PAD]", around=("[CLS]", "[SEP]"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            initializer_range=0.5,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(path)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(path)
    if pooling is not None:
        modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
        write_json(path / "modules.json", modules)
        modes = {"mean_tokens": False, "cls_token": False, "max_tokens": False, pooling: True}
        config = {"word_embedding_dimension": 16, **{f"pooling_mode_{mode}": on for mode, on in modes.items()}}
        write_json(path / "1_Pooling/config.json", config)
    return path


def build_siglip(path: Path, seed: int = 0) -> Path:
    """A SigLIP of width 16 for frames of 28 x 28 and texts of 16 tokens, one for each letter."""
    fix_imports()
    import sentencepiece
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz 0123456789"] * 4),
        model_writer=content,
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.mkdir(parents=True)
    (path / "spiece.model").write_bytes(content.getvalue())
    tokenizer = SiglipTokenizer(str(path / "spiece.model"), model_max_length=16)
    tokenizer.save_pretrained(path)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = SiglipConfig(
            text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 16},
            vision_config={**small, "image_size": 28, "patch_size": 14},
        )
        SiglipModel(config).save_pretrained(path)
    return path


def build_reward_model(path: Path, num_labels: int = 1, head: bool = True, seed: int = 0) -> Path:
    """A Qwen2 of width 16 with a head of so many numbers, or with none: then it is a language model."""
    fix_imports()
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = _word_tokenizer(["<pad>", "<unk>", *roles], unk="<unk>", pad="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            initializer_range=0.5,
            num_labels=num_labels,
        )
        (Qwen2ForSequenceClassification if head else Qwen2ForCausalLM)(config).save_pretrained(path)
    return path


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _word_tokenizer(special: Sequence[str], *, unk: str, pad: str, around: Sequence[str] = ()) -> Any:
    """One token for each of `WORDS`, and `around` each text these two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        first, last = around
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(name, special.index(name)) for name in around]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unk, pad_token=pad, extra_special_tokens=list(special)
    )
