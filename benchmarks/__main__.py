"""All benchmarks that need no GPU, one after another: `python -m benchmarks`, or some by name.

Each runs in a process of its own, so that none inherits the memory or the threads of another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

NAMES = (
    "shared_prompt",
    "packing",
    "response_logits",
    "contract",
    "scaling",
    "parallel",
    "embeddings",
    "episodes",
    "long_video",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"of {', '.join(NAMES)}")
    failed = []
    for name in parser.parse_args().names or NAMES:
        started = time.monotonic()
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
