import os

import pytest

from videorl.types import VideoError
from videorl.video.paths import resolve_media


@pytest.fixture
def root(tmp_path):
    """media/{a.mp4, sub/b.mp4, links to both sides of the fence}, secret.mp4 outside."""
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "a.mp4").write_bytes(b"a")
    (root / "sub" / "b.mp4").write_bytes(b"b")
    (tmp_path / "secret.mp4").write_bytes(b"s")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "c.mp4").write_bytes(b"c")
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    (root / "outside.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "outside_folder").symlink_to(tmp_path)
    (root / "null.mp4").symlink_to("/dev/null")
    os.mkfifo(root / "fifo.mp4")
    return root


@pytest.mark.parametrize("name", ["a.mp4", "sub/b.mp4", "sub/../a.mp4", "./a.mp4", "inside.mp4"])
def test_files_under_the_root(root, name):
    expected = root / ("sub/b.mp4" if name.endswith("b.mp4") else "a.mp4")
    assert resolve_media(root, name) == str(expected.resolve())
    assert resolve_media(str(root), name) == str(expected.resolve())


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4",
        "sub/../../secret.mp4",
        "../media2/c.mp4",  # shares the root's name as a prefix
        "outside.mp4",
        "outside_folder/secret.mp4",
        "null.mp4",
        "fifo.mp4",
        "sub",
        ".",
        "",
        "/etc/passwd",
        "https://example.com/a.mp4",
        "file:///etc/passwd",
        "a.mp4\0.txt",
    ],
)
def test_everything_else_is_refused(root, name):
    with pytest.raises(VideoError) as caught:
        resolve_media(root, name)
    assert caught.value.reason == "outside_root"
    assert repr(name) in str(caught.value) and str(root) in str(caught.value)


@pytest.mark.parametrize("name", ["no.mp4", "a.mp4/deeper.mp4"])
def test_missing_files(root, name):
    with pytest.raises(VideoError, match=r"data\.media_root") as caught:
        resolve_media(root, name)
    assert caught.value.reason == "missing"


def test_an_absolute_path_under_the_root_is_still_refused(root):
    with pytest.raises(VideoError, match="absolute") as caught:
        resolve_media(root, str(root / "a.mp4"))
    assert caught.value.reason == "outside_root"
