"""Imports point down: read from the source of every module, those for type checkers alone included."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import videorl

ROOT = Path(videorl.__file__).parent

# From the bottom. A package or module may import what stands below it, or beside it on its own line.
LAYERS = (
    ("config",),
    ("types", "imports", "beside", "ending", "gpus"),
    ("answers", "algorithms", "video", "cluster", "weight_sync", "contract"),
    ("checkpoint", "tracking", "live", "summary", "run"),
    ("models", "data"),
    ("rollout", "envs", "rewards", "workers"),
    (
        *("planning", "launch", "stages", "fitting", "recipes", "episodes", "__main__"),
        *("train", "train_async", "sft", "prefer", "reward_model", "self_align", "evaluate", "tpl", "pipeline"),
    ),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = ({"rollout", "workers"},)  # they meet in train.py, through types


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "configs" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of all that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from videorl in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own(path: Path) -> str | None:
    """The package or module of `LAYERS` a file belongs to; None for `videorl/__init__.py`."""
    parts = module_name(path).split(".")
    return parts[1] if len(parts) > 1 else None


def test_every_module_has_a_layer():
    assert {own(path) for path in modules()} - {None} <= LEVEL.keys()


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path):
    name = own(path)
    targets = {full.split(".")[1] for full in imported(path) if full.startswith("videorl.")}
    for target in targets & LEVEL.keys() - {name}:
        assert name is not None and LEVEL[target] <= LEVEL[name], f"{module_name(path)} imports videorl.{target}"
        assert not any({name, target} <= pair for pair in APART), f"{module_name(path)} imports videorl.{target}"


def test_packages_do_not_import_in_a_circle():
    graph: dict[str | None, set[str]] = {}
    for path in modules():
        targets = {full.split(".")[1] for full in imported(path) if full.startswith("videorl.")}
        graph.setdefault(own(path), set()).update(targets - {own(path)})
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_package_imports_anything_heavy_by_itself():
    """Of the statements that run with the package: the standard library alone."""
    found = {
        module_name(path): node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for path in modules()
        if path.name == "__init__.py"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name for name in found.values() if (name or "").split(".")[0] not in sys.stdlib_module_names} == set()


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("vllm", {"rollout/vllm_engine.py"}),
        ("verl", {"cluster.py", "algorithms/verl.py"}),
        ("torchcodec", {"video/decode.py"}),
        ("peft", {"workers/lora.py"}),
    ],
)
def test_few_files_know_a_library(library, files):
    found = {
        str(path.relative_to(ROOT))
        for path in modules()
        if any(full.split(".")[0] == library for full in imported(path))
    }
    assert found == files


IMPORT_ALL = """
import importlib, sys

sys.modules.update(vllm=None, flash_attn=None)  # as if they were not installed
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_imports_without_vllm_and_flash_attn():
    names = [module_name(path) for path in modules() if path.name != "__main__.py"]
    assert "videorl.train" in names and "videorl.rollout.vllm_engine" in names  # which imports vllm when it starts
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
