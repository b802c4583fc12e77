from collections.abc import Iterator

import pytest
from clips import make_sampling, write_clip

from videorl.types import Clip, Sampling
from videorl.video.reader import VideoReader


@pytest.fixture(scope="session")
def sampling() -> Sampling:
    return make_sampling()


@pytest.fixture
def clip(tmp_path, sampling) -> Clip:
    """50 frames at 25 fps, 96x64."""
    return Clip(path=write_clip(tmp_path / "clip.mp4"), sampling=sampling)


@pytest.fixture(scope="session")
def pyav() -> Iterator[VideoReader]:
    with VideoReader() as reader:
        yield reader
