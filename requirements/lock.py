"""Write the lock: `cpu.txt` and `gpu.txt`, one exact version per package, for every extra of pyproject.toml.

    make lock             keep today's versions where pyproject.toml allows them
    make lock UPGRADE=1   take the newest versions pyproject.toml allows

pip resolves in a temporary environment (`install --dry-run`): nothing is installed and no GPU is needed. The GPU lock
takes the versions of the CPU lock wherever CUDA leaves the choice, so what the tests cover on a CPU runs on a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import tomllib
import venv
from collections.abc import Container
from pathlib import Path

HERE = Path(__file__).parent
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# torch's CUDA build fixes the version of triton, and the kernels vLLM brings that of apache-tvm-ffi
CUDA_CHOOSES = {"torch", "triton", "apache-tvm-ffi"}
HEADER = (
    "# Exact versions for the extra `{}` and all others, Python 3.11 and 3.12. Written by `make lock`; do not edit.\n"
)
GPU_NOTE = (
    "# Resolved from package metadata; the tests run on cpu.txt. `===` keeps the CPU build of torch (+cpu) out.\n"
)

Pins = dict[str, str]
"""Normalised package name -> a line such as `numpy==2.3.5`."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Resolve pyproject.toml into requirements/cpu.txt and gpu.txt.")
    parser.add_argument("--upgrade", action="store_true", help="ignore the versions locked today")
    keep = not parser.parse_args().upgrade

    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = read_pins([*project["dependencies"], *(line for extra in extras.values() for line in extra)])
    common = sorted(extras.keys() - {"cpu", "gpu", "flash-attn"})

    locked = read_pins(HERE.joinpath("cpu.txt").read_text().splitlines()) if keep else {}
    cpu = resolve(["cpu", *common], f"{direct['torch']}+cpu", without(locked, direct))
    write(HERE / "cpu.txt", HEADER.format("cpu"), cpu)

    locked = read_pins(HERE.joinpath("gpu.txt").read_text().splitlines()) if keep else {}
    torch = direct["torch"].replace("==", "===")
    gpu = resolve(["gpu", *common], torch, without(locked, direct) | without(cpu, CUDA_CHOOSES))
    # flash-attn's build script imports torch, so pip cannot read its metadata here; it needs torch and einops only
    gpu |= {"torch": torch} | read_pins(extras["flash-attn"])
    write(HERE / "gpu.txt", HEADER.format("gpu") + GPU_NOTE, gpu)


def resolve(extras: list[str], torch: str, constraints: Pins) -> Pins:
    """pip's choice of versions for this project with these extras and this build of torch."""
    with tempfile.TemporaryDirectory() as folder:
        report, pins = Path(folder, "report.json"), Path(folder, "pins.txt")
        write(pins, "", constraints)
        venv.create(Path(folder, "venv"), with_pip=True)
        pip = [str(Path(folder, "venv/bin/python")), "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        if subprocess.run([*pip, "--no-deps", torch]).returncode != 0:
            pip += ["--extra-index-url", PYTORCH_CPU_INDEX]
        pip += ["--report", str(report), "-c", str(pins), torch, f"{HERE.parent}[{','.join(extras)}]"]
        subprocess.run(pip, check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return read_pins(
        [f"{package['name']}=={package['version']}" for package in packages if package["name"] != "videorl"]
    )


def read_pins(lines: list[str]) -> Pins:
    """Comments and lines without a version (`videorl[...]`) pin nothing."""
    names = {line: re.split(r"[\[=]", line)[0] for line in lines if "==" in line and not line.startswith("#")}
    return {re.sub(r"[-_.]+", "-", name).lower(): line for line, name in names.items()}


def without(pins: Pins, names: Container[str]) -> Pins:
    return {name: line for name, line in pins.items() if name not in names}


def write(path: Path, header: str, pins: Pins) -> None:
    path.write_text(header + "".join(f"{pins[name]}\n" for name in sorted(pins)))


if __name__ == "__main__":
    main()
