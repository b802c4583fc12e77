"""From a `Media` handle to tensors, through the store: what every engine, encoder and trainer process uses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from videorl import contract
from videorl.types import Clip, Media
from videorl.video.frames import FramePlan, Limits
from videorl.video.reader import VideoReader
from videorl.video.store import Store

if TYPE_CHECKING:
    from videorl.config import Config
    from videorl.models.base import VideoModel


class EmbeddingMissing(KeyError):
    """An embedding that should be in the store is not: it was evicted or found corrupt. The caller re-encodes."""


class MediaSource:
    """Frames and embeddings of clips; each is computed once per store and then read by memory map.

    Without a store every call decodes, and the one who asks encodes.
    """

    def __init__(self, model: VideoModel, reader: VideoReader, store: Store | None):
        self.model, self.reader, self.store = model, reader, store
        self.pixels = store is None or model.config.train_vision  # what engine and trainers are fed, not embeddings
        self._handles: dict[Clip, tuple[FramePlan, Media]] = {}

    def plan(self, clip: Clip) -> tuple[FramePlan, Media]:
        """(plan, handle) of a clip, from its header alone; remembered for the life of the process."""
        if clip not in self._handles:
            plan = self.reader.plan(clip)
            self._handles[clip] = (plan, self.model.media(clip, plan))
        return self._handles[clip]

    def frames(self, media: Media, part: slice | None = None) -> torch.Tensor:
        """Decoded frames `[T, H, W, 3]` uint8 in the order in which they are shown. They are stored in their own.

        A part of them, in their own order, is decoded and not stored, unless all are stored. The handle's key is
        checked against the file as it is now.
        """
        plan, handle = self.plan(media.clip)
        if handle.key != media.key:
            raise ValueError(f"{media.clip.path}: its key is {handle.key[:12]} here and {media.key[:12]} in the handle")
        if self.store is None:
            return torch.from_numpy(self.reader.load(media.clip).pixels)[list(plan.order)]
        identity = [plan.media_sha256, [time.hex() for time in plan.pts], plan.height, plan.width, plan.crop]
        key = hashlib.sha256(f"frames|{identity}".encode()).hexdigest()
        cached = self.store.get(key)
        if part is not None:
            return torch.from_numpy(self.reader.load(media.clip, part).pixels) if cached is None else cached[part]
        if cached is None:
            with self.store.filling(key) as missing:
                if missing:
                    self.store.put(key, torch.from_numpy(self.reader.load(media.clip).pixels))
            cached = self.store.get(key)
            if cached is None:
                raise EmbeddingMissing(f"{media.clip.path}: its frames were evicted at once; raise store.max_gb")
        return cached if plan.in_order else cached[list(plan.order)]

    def picks(self, media: Sequence[Media]) -> list[torch.Tensor]:
        """Decoded frames of several picks of one video, in one pass. They are not stored: their embeddings are."""
        return [torch.from_numpy(frames.pixels) for frames in self.reader.load_together([item.clip for item in media])]

    def fits(self, media: Sequence[Media]) -> bool:
        """Whether the store can hold these clips at once: their frames and, unless the tower trains, embeddings."""
        if self.store is None:
            return False
        tokens = sum(item.num_tokens for item in {item.key: item for item in media}.values())
        frames = self.model.spatial_factor**2 * self.model.temporal_factor * 3  # bytes for a token
        embedding = 0 if self.pixels else self.model.hidden_size * self.model.dtype.itemsize
        return tokens * (frames + embedding) <= self.store.max_bytes

    def features(self, media: Sequence[Media]) -> list[torch.Tensor]:
        """What a trainer feeds for each clip: stored embeddings, or patches for a tower of its own."""
        if not media:
            return []
        if self.pixels:
            return self.model.patches([self.frames(item) for item in media])
        return [self.embeddings(item) for item in media]

    def embeddings(self, media: Media) -> torch.Tensor:
        """Stored visual features `[num_tokens, hidden]`; never computed here.

        Raises AlignmentError where the handle is for other weights than this process's.
        """
        if media.tower != self.model.tower:
            raise contract.AlignmentError(
                f"{media.clip.path}: its features are of vision tower {media.tower[:12]}, this process has "
                f"{self.model.tower[:12]}: model.path={self.model.path} changed during the run; start a new one"
            )
        tensor = self.store.get(media.key) if self.store else None
        if tensor is None:
            folder = self.store.folder if self.store else "store=null"
            raise EmbeddingMissing(f"{media.clip.path}: no embedding {media.key[:12]} in {folder}")
        if len(tensor) != media.num_tokens:
            raise ValueError(f"{media.clip.path}: {len(tensor)} stored features for {media.num_tokens} placeholders")
        return tensor


def open_source(config: Config, model: VideoModel) -> MediaSource:
    """The source every process of a run opens: same store folder, same limits, same decoder."""
    reader = VideoReader(
        Limits(**config.data.limits.model_dump()), decoder=config.data.decoder, workers=config.data.decode_workers
    )
    store = Store(config.store.dir, int(config.store.max_gb * 2**30)) if config.store else None
    return MediaSource(model, reader, store)
