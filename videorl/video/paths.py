"""Media paths of a data set are untrusted: they may only name files under `data.media_root`."""

from __future__ import annotations

import os
import stat

from videorl.types import VideoError


def resolve_media(root: str | os.PathLike[str], relative: str) -> str:
    """The absolute path of a media file, symlinks resolved.

    Raises VideoError `missing`, or `outside_root` for a URL, an absolute path, a path that leaves `root` by `..` or by
    a symlink, and anything that is not a regular file.
    """
    rule = f"media paths are relative to data.media_root={os.fspath(root)!r} and stay under it; move or link the root"
    if "\0" in relative or "://" in relative or os.path.isabs(relative):
        raise VideoError("outside_root", f"{relative!r} is a URL or an absolute path; {rule}")
    top = os.path.realpath(root)
    path = os.path.realpath(os.path.join(top, relative))
    if os.path.commonpath([top, path]) != top:
        raise VideoError("outside_root", f"{relative!r} leads to {path!r}; {rule}")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        remedy = "check the row and data.media_root"
        raise VideoError("missing", f"{relative!r}: {path!r}: {error.strerror}; {remedy}") from error
    if not stat.S_ISREG(mode):
        raise VideoError("outside_root", f"{relative!r} leads to {path!r}, which is not a regular file; {rule}")
    return path
