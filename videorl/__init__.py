"""Reinforcement learning for video multimodal LLMs. Start reading at `videorl/train.py`."""

__version__ = "0.1.0"
