"""The networks that scorers run themselves.

Texts are data here: the name of a special token inside one is spelt out, not obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from videorl.rewards.scorers.checkpoint import Checkpoint

Vectors = np.ndarray
"""float32 [N, D]."""


class SentenceEncoder:
    """A sentence-transformers model: a transformer whose token states are pooled into one vector per text.

    A text is cut after `max_tokens` tokens. Raises ValueError for a model that does more than pool.
    """

    def __init__(self, checkpoint: Checkpoint, max_tokens: int):
        self.device = checkpoint.device
        self.pooling = _read_pooling(checkpoint)
        self.tokenizer = checkpoint.pretrained("AutoTokenizer")
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)
        self.model = checkpoint.load("AutoModel", unused="pooler.")

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Vectors:
        inputs = self.tokenizer(
            [_well_formed(text) for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            padding=True,
            padding_side="right",
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.device)
        states = self.model(**inputs).last_hidden_state.float()  # [B, L, D]
        mask = inputs["attention_mask"][..., None].float()
        return _array(_POOLS[self.pooling](states, mask))


_POOLS = {
    "mean": lambda states, mask: (states * mask).sum(1) / mask.sum(1),
    "cls": lambda states, mask: states[:, 0],
}


def _read_pooling(checkpoint: Checkpoint) -> str:
    """How the checkpoint pools, from the files of sentence-transformers; the mean of all tokens where it has none."""
    modules = [module["type"].rpartition(".")[2] for module in checkpoint.json("modules.json") or ()]
    config = checkpoint.json("1_Pooling/config.json") or {"pooling_mode": "mean"}
    flags = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    pooling = "+".join([config["pooling_mode"]] if "pooling_mode" in config else flags)
    pooling = {"mean_tokens": "mean", "cls_token": "cls"}.get(pooling, pooling)
    if pooling not in _POOLS or not {*modules} <= {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(
            f"{checkpoint.path} makes sentences of tokens by {pooling!r} pooling in the modules {modules}; only "
            f"{' and '.join(_POOLS)} pooling with nothing after it is known here: choose another model"
        )
    return pooling


class SiglipEncoder:
    """SigLIP's two towers; a text and a frame that belong together have a high cosine.

    A text is cut after `max_tokens` tokens. Raises ValueError for another kind of model and for more tokens than its
    window holds.
    """

    def __init__(self, checkpoint: Checkpoint, max_tokens: int, frame_batch: int):
        config = checkpoint.pretrained("AutoConfig")
        if config.model_type != "siglip":
            raise ValueError(f"{checkpoint.path} is a {config.model_type} model; name a SigLIP checkpoint")
        self.window = config.text_config.max_position_embeddings
        if max_tokens > self.window:
            raise ValueError(f"max_tokens={max_tokens}: {checkpoint.path} reads {self.window} tokens; lower it")
        self.device, self.max_tokens, self.frame_batch = checkpoint.device, max_tokens, frame_batch
        self.tokenizer = checkpoint.pretrained("AutoTokenizer")
        self.processor = checkpoint.pretrained("AutoImageProcessor")
        self.model = checkpoint.load("AutoModel")

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Padded to the whole window and without a mask, as the model was trained."""
        ids = self.tokenizer(
            [_well_formed(text) for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
        )["input_ids"]
        padded = [row + [self.tokenizer.pad_token_id] * (self.window - len(row)) for row in ids]
        output = self.model.get_text_features(input_ids=torch.tensor(padded, device=self.device))
        return _array(output.pooler_output)

    @torch.inference_mode()
    def frames(self, frames: torch.Tensor) -> Vectors:
        """One vector for each of the frames `[T, H, W, 3]` uint8."""
        chunks = []
        for chunk in frames.split(self.frame_batch):
            pixels = self.processor(images=list(chunk.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
            output = self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype))
            chunks.append(_array(output.pooler_output))
        return np.concatenate(chunks)


class RewardHead:
    """A language model with one number as its output, such as a Bradley-Terry reward model reads text.

    Raises ValueError for a checkpoint with another number of outputs, without a chat template or a padding token.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.device = checkpoint.device
        self.tokenizer = checkpoint.pretrained("AutoTokenizer")
        self.model = checkpoint.load("AutoModelForSequenceClassification")
        for known, what in (
            (self.model.config.num_labels == 1, f"a head of {self.model.config.num_labels} outputs, not one"),
            (self.tokenizer.chat_template, "no chat template"),
            (self.tokenizer.pad_token_id is not None, "no padding token"),
        ):
            if not known:
                raise ValueError(f"{checkpoint.path} has {what}; name a reward model for conversations")
        # Where the head reads: at the last token that is no padding.
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """A conversation in the model's own format. What a message says cannot end it or begin another."""
        clean = [
            {"role": message["role"], "content": self._special.sub(" ", _well_formed(message["content"]))}
            for message in messages
        ]
        return self.tokenizer.apply_chat_template(clean, tokenize=True, return_dict=True)["input_ids"]

    @torch.inference_mode()
    def __call__(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The number for each conversation."""
        length = max(map(len, token_ids))
        rows = [torch.tensor(ids) for ids in token_ids]
        ids = torch.stack([pad(row, (0, length - len(row)), value=self.tokenizer.pad_token_id) for row in rows])
        mask = torch.stack([pad(torch.ones_like(row), (0, length - len(row))) for row in rows])
        output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return output.logits[:, 0].float().tolist()


def _well_formed(text: str) -> str:
    """Without lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _array(vectors: torch.Tensor) -> Vectors:
    return vectors.float().cpu().numpy()
