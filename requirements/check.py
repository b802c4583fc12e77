"""Stop before a long download if this machine cannot run what would be installed: `python check.py cpu`."""

import ctypes
import sys

version = ".".join(map(str, sys.version_info[:2]))
if version not in ("3.11", "3.12"):
    sys.exit(f"{sys.executable} is Python {version}; videorl needs 3.11 or 3.12: make PYTHON=python3.12 install")
if sys.argv[1] == "cpu":
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        sys.exit("vLLM's CPU build needs the system library libnuma: apt-get install libnuma1 (Debian, Ubuntu)")
