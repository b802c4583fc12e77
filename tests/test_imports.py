"""Import strings, optional dependencies, and torchvision under a torch without CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from videorl.imports import load_object, require


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A function that writes importable modules."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_load_object():
    assert load_object("json:dumps") is json.dumps
    assert load_object("os.path:join") is os.path.join


@pytest.mark.parametrize("target", ["json", "json:", ":dumps", "", ".json:dumps"])
def test_what_is_not_an_import_string(target):
    with pytest.raises(ValueError, match=r"is not an import string; write it as 'package.module:name'"):
        load_object(target)


def test_the_error_says_which_half_is_wrong():
    with pytest.raises(ValueError, match=r"'nowhere.rewards:f': no module named 'nowhere' on the import path; install"):
        load_object("nowhere.rewards:f")
    with pytest.raises(ValueError, match=r"'json.nowhere:f': no module named 'json.nowhere'"):
        load_object("json.nowhere:f")
    with pytest.raises(ValueError, match=r"'json:nope': .*json/__init__.py defines no 'nope'"):
        load_object("json:nope")
    with pytest.raises(ValueError, match=r"'sys:nope': .*defines no 'nope'"):  # a module without a file
        load_object("sys:nope")


@pytest.mark.parametrize("missing", ["nowhere", "needs"])
def test_what_the_named_module_lacks_is_its_own_error(modules, missing):
    """`missing` may begin as the module's own name does: needs_more imports needs, which there is not."""
    name = modules("needs_more", f"import {missing}")
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{missing}'"):
        load_object(f"{name}:f")


def test_an_error_inside_the_named_module_is_its_own(modules):
    with pytest.raises(ZeroDivisionError):
        load_object(modules("divides", "1 / 0") + ":f")


def test_require():
    assert require("json", extra="x") is json
    with pytest.raises(ModuleNotFoundError, match=r"no_such_backend is needed here: pip install 'videorl\[decord\]'"):
        require("no_such_backend", extra="decord")


FIX = """
import sys
from videorl.imports import fix_imports
fix_imports()
fix_imports()
import torchvision, torch
from torchvision.transforms.v2 import functional
assert functional.resize(torch.zeros(3, 4, 4), [2, 2]).shape == (3, 2, 2)
fix_imports()
for name in ("torchaudio", "torchcodec"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="the wheels fit a torch with CUDA")
def test_torchvision_imports_under_a_cpu_torch_however_often_it_is_fixed():
    done = subprocess.run([sys.executable, "-c", FIX], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_transformers_is_told_of_no_scikit_learn_and_everybody_else_finds_it(tmp_path):
    """A package of that name that says so when it is imported; with it, transformers' generation would import it."""
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("print('imported')")
    code = "\n".join(
        [
            "from videorl.imports import fix_imports",
            "fix_imports()",
            "from transformers.generation import candidate_generator",
            "print('transformers')",
            "import sklearn",
        ]
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["transformers", "imported"], done.stderr
