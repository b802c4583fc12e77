"""A scorer that asks a reward model which sees the video, held in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from videorl.config import Config, Positive
from videorl.rewards.result import RewardResult, Sample
from videorl.rewards.scorers.batching import Batcher
from videorl.rewards.scorers.reward_model import Hybrid

if TYPE_CHECKING:
    from videorl.types import RenderedPrompt


class VideoRewardModel:
    """sigmoid(RM(videos, prompt, response)), in [0, 1], of a model that `python -m videorl.reward_model` has exported;
    the part `logit` is its own number.

    It is shown the prompt that the policy is shown. Where its vision tower is the policy's, the stored embeddings are
    used; with another tower each call encodes.

    `rule` and `rule_params`: see `Hybrid`.
    """

    def __init__(
        self,
        config: Config,
        *,
        path: str,
        rule: str | None = None,
        rule_params: dict[str, Any] | None = None,
        batch_size: Positive = 16,
        device: Literal["cpu", "cuda"] = "cpu",
    ):
        import torch

        from videorl.data.prompts import Renderer
        from videorl.models.base import open_model
        from videorl.models.media import open_source
        from videorl.workers.modules import HEAD_FILE, CriticModule

        tower = open_model(config.model).tower
        self.model = open_model(config.model.model_copy(update={"path": path, "lora": None}))
        if self.model.tower != tower:  # its own features, from pixels
            update = {"path": path, "lora": None, "train_vision": True}
            self.model = open_model(config.model.model_copy(update=update))
        if not (self.model.path / HEAD_FILE).exists():
            raise ValueError(f"{path} has no {HEAD_FILE}; name the export of a reward model")
        self.source = open_source(config, self.model)
        self.renderer = Renderer(config.data, self.model, self.source)
        self.device = torch.device(device)
        self.module = CriticModule(self.model, self.model.load()).to(self.device).eval().requires_grad_(False)
        self._hybrid = Hybrid(rule, rule_params)
        self._logit = Batcher(self._logits, batch_size)

    async def __call__(self, sample: Sample) -> RewardResult:
        return await self._hybrid(sample, self._logit)

    async def check(self) -> dict[str, float]:
        """Nothing: a reward model's numbers have no scale of their own."""
        return {}

    def take_counts(self) -> dict[str, float]:
        return self._logit.take_counts()

    def _logits(self, samples: Sequence[Sample]) -> list[float]:
        """Responses of one prompt share its tokens."""
        import torch

        from videorl.data.batch import at_last_token, make_given_batch, prompt_row
        from videorl.workers.modules import make_inputs

        responses = [
            [*self.model.tokenizer.encode(sample.response, add_special_tokens=False), self.model.stop_ids[0]]
            for sample in samples
        ]
        rows = [prompt_row(self._render(sample), id=sample.id) for sample in samples]
        batch = make_given_batch(rows, responses)
        ends = at_last_token(batch.response_mask, torch.ones(len(rows))).bool()
        batch = batch.with_(response_mask=ends)
        with torch.inference_mode():
            return self.module(make_inputs(self.model, self.source, batch, self.device, shared=True)).tolist()

    def _render(self, sample: Sample) -> RenderedPrompt:
        """The sample's prompt with the clips that its response was given to, which a second pass may have changed."""
        prompt = self.renderer.prompt(sample.row)
        return self.renderer.render(replace(prompt, clips=tuple(item.clip for item in sample.media)))
