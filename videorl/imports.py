"""Loading code by name, naming what to install, and making CUDA-linked wheels import under a CPU torch."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any


def load_object(target: str) -> Any:
    """`"package.module:attribute"` -> the attribute. The error says which half is wrong."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"{target!r} is not an import string; write it as 'package.module:name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something it imports does not
        raise ValueError(
            f"{target!r}: no module named {error.name!r} on the import path; "
            "install it, or run from the folder that holds it"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        place = getattr(module, "__file__", None) or module_name  # a built-in module is no file
        raise ValueError(f"{target!r}: {place} defines no {attribute!r}") from None


def require(module: str, extra: str) -> Any:
    """Import an optional dependency or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{module} is needed here: pip install 'videorl[{extra}]'") from error


@functools.cache
def fix_imports() -> object:
    """Call before importing transformers or vllm, in every process: what their imports need, and need not.

    transformers imports scikit-learn where it is installed, for a form of assisted decoding that nobody asks for here:
    2 s in each process of a run. It is told that there is none; everybody else finds it.
    """
    hidden = sys.modules.setdefault("sklearn", None) is None  # type: ignore[arg-type]
    from transformers.utils import is_sklearn_available

    is_sklearn_available()  # it remembers the answer
    if hidden:
        del sys.modules["sklearn"]
    return _fix_cpu_wheels()


def _fix_cpu_wheels() -> object:
    """Let torchvision import, and torchaudio/torchcodec look absent, where torch has no CUDA.

    The PyPI wheels of these three are linked against CUDA. torchvision only lacks two operator schemas;
    the other two fail inside a shared library, and transformers and vLLM handle their absence.
    Can go when the index serves CPU builds.
    """
    import torch

    if torch.version.cuda is not None or "torchvision" in sys.modules:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in ("torchaudio", "torchcodec"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    return library  # the schemas live as long as this object, which the cache keeps
