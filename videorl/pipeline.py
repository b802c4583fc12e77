"""Several stages from one file: `python -m videorl.pipeline recipe=quickstart_dpo seed=1`.

    name: quickstart_dpo
    seed: 0                                   # what the stages refer to; any of it can be overridden
    stages:
      cold_start:
        run: sft recipe=quickstart seed=${seed}
        inputs: [data/quickstart/sft.jsonl]
        outputs: [runs/quickstart-sft/export]
      ...

A stage is a command of `videorl`, and runs as it would alone, in its own run directory. When it has ended well, what it
read and wrote is noted by digest in `runs/<name>-pipeline/`. The same command skips the stages that are done, and so
goes on in the one that was killed, which resumes by itself. Where a finished stage's command, inputs or outputs are not
what they were, it stops: `--again STAGE` runs that stage and all after it anew.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from videorl.__main__ import COMMANDS
from videorl.__main__ import main as videorl_main
from videorl.config import ConfigError, configs_folder

PROGRAMS = [name for name in COMMANDS if name != "pipeline"]
"""Commands that a stage may run."""


class Stage(BaseModel):
    """A command's words, and the files or folders that it reads and writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[str, Field(min_length=1)]
    inputs: list[str] = []
    outputs: Annotated[list[str], Field(min_length=1)]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.run)


class Pipeline(BaseModel):
    """The file, with its variables filled in. Variables have any name; they are strings, numbers or booleans."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    stages: Annotated[dict[str, Stage], Field(min_length=1)]


def load_pipeline(recipe: str, overrides: Sequence[str], extra_dir: str | None = None) -> Pipeline:
    """Raises ConfigError with every problem."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folders = [configs_folder(), *([Path(extra_dir)] if extra_dir else [])]
    found = {path.stem: path for folder in folders for path in sorted((folder / "pipeline").glob("*.yaml"))}
    if recipe not in found:
        near = difflib.get_close_matches(recipe, found, n=1)
        rule = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(found))}"
        raise ConfigError([f"recipe: {recipe!r} has no pipeline; {rule}"])
    try:
        values = OmegaConf.load(found[recipe])
        known = [str(key) for key in values if key != "stages"]  # type: ignore[union-attr]
        problems = [
            f"{override}: no such variable; {found[recipe].name} has {', '.join(known)}"
            for override in overrides
            if override.split("=")[0] not in known or "=" not in override
        ]
        if problems:
            raise ConfigError(problems)
        merged = OmegaConf.merge(values, OmegaConf.from_dotlist(list(overrides)))
        pipeline = Pipeline.model_validate(OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([f"{found[recipe]}: {error}"]) from error
    except ValidationError as error:
        raise ConfigError(
            [f"{found[recipe].name}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        ) from error
    if wrong := [
        f"stages.{name}.run: {stage.words[0]!r} is no stage; choose one of {', '.join(PROGRAMS)}"
        for name, stage in pipeline.stages.items()
        if stage.words[0] not in PROGRAMS
    ]:
        raise ConfigError(wrong)
    return pipeline


# --- what was done ---------------------------------------------------------------------------------------------------


def digest(path: str) -> str | None:
    """SHA-256 of a file, or of a folder's files with their names; None where there is neither."""
    root = Path(path)
    if not root.exists():
        return None
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(f"{file.relative_to(root)}\0".encode())
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def digests(paths: Sequence[str]) -> dict[str, str | None]:
    return {path: digest(path) for path in paths}


class Ledger:
    """A file for each finished stage."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        building = self._path(name).with_suffix(".building")
        building.write_text(json.dumps(record, indent=2) + "\n")
        building.replace(self._path(name))

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def changes(stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    """What is no longer as the record of the finished stage has it."""
    if record["run"] != stage.run:
        yield f"its command was {record['run']!r} and is {stage.run!r}"
    for what, paths in (("inputs", stage.inputs), ("outputs", stage.outputs)):
        now = digests(paths)
        for path in dict.fromkeys([*record[what], *now]):
            if record[what].get(path) != now.get(path):
                yield f"{path} has changed" if now.get(path) else f"{path} is gone"


# --- running ---------------------------------------------------------------------------------------------------------


def run_stages(pipeline: Pipeline, again: str | None = None) -> int:
    """Run what is not done, in order; the exit code of the stage that failed, else 0. Raises ConfigError."""
    ledger = Ledger(Path("runs") / f"{pipeline.name}-pipeline")
    names = list(pipeline.stages)
    if again is not None:
        if again not in names:
            raise ConfigError([f"--again: {again!r} is no stage; there are {', '.join(names)}"])
        ledger.forget(names[names.index(again) :])
    for number, (name, stage) in enumerate(pipeline.stages.items(), 1):
        title = f"stage {number}/{len(names)} {name}"
        if record := ledger.read(name):
            if problems := list(changes(stage, record)):
                raise ConfigError([f"{title} is done, but {'; '.join(problems)}: set it back, or give --again {name}"])
            print(f"== {title}: done before, in {record['seconds']:.0f} s", flush=True)
            continue
        if missing := [path for path in stage.inputs if not Path(path).exists()]:
            raise ConfigError([f"{title}: its input {missing[0]} is not there; make it, or correct its inputs"])
        print(f"== {title}: videorl {stage.run}", flush=True)
        read, started = digests(stage.inputs), time.monotonic()
        if code := run_command(stage.words):
            print(f"== {title} ended with {code}; the same command goes on there", file=sys.stderr)
            return code
        if missing := [path for path in stage.outputs if not Path(path).exists()]:
            raise ConfigError([f"{title} ended well, but has not made {missing[0]}; correct stages.{name}.outputs"])
        seconds = time.monotonic() - started
        ledger.write(
            name, {"run": stage.run, "inputs": read, "outputs": digests(stage.outputs), "seconds": round(seconds, 1)}
        )
    return 0


def run_command(words: Sequence[str]) -> int:
    """A command of `videorl` in this process; its exit code."""
    argv = list(sys.argv)
    try:
        with warnings.catch_warnings():  # an earlier stage may have imported what this one is
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            return videorl_main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv[:] = argv


def show(pipeline: Pipeline) -> None:
    ledger = Ledger(Path("runs") / f"{pipeline.name}-pipeline")
    table = Table("stage", "videorl ...", "state", title=pipeline.name, title_justify="left")
    for name, stage in pipeline.stages.items():
        record = ledger.read(name)
        state = "to do" if record is None else "; ".join(changes(stage, record)) or f"done, {record['seconds']:.0f} s"
        table.add_row(name, stage.run, state)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m videorl.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="recipe=NAME, a file of configs/pipeline, and its variables"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder with your own pipeline/")
    parser.add_argument("--again", metavar="STAGE", help="run this stage and all after it anew")
    parser.add_argument("--show", action="store_true", help="print the stages and what is done, and exit")
    args = parser.parse_intermixed_args(argv)
    recipes = [word.removeprefix("recipe=") for word in args.words if word.startswith("recipe=")]
    try:
        overrides = [word for word in args.words if not word.startswith("recipe=")]
        pipeline = load_pipeline(recipes[-1] if recipes else "", overrides, args.config_dir)
        if args.show:
            show(pipeline)
            return 0
        return run_stages(pipeline, args.again)
    except ConfigError as error:
        for problem in error.problems:
            print(f"pipeline: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
