"""The tiny model, built once for all tests that need one."""

from __future__ import annotations

from pathlib import Path

import pytest
from makers import make_model_config


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    from videorl.models.tiny import build_tiny_model

    path = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny_model(path, ["Which colour appears first? (A) red (B) green", "Why?"])
    return path


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The family's object of the tiny model."""
    from videorl.models.base import open_model

    return open_model(make_model_config(tiny_folder))
