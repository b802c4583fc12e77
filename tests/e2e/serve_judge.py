"""vLLM's OpenAI-compatible server under a CPU torch; takes the arguments of `vllm serve`, the model as --model.

python serve_judge.py --model FOLDER --port 8001 ...
"""

from __future__ import annotations

from videorl.rollout.vllm_engine import _import_vllm

_import_vllm()  # not only as the main program: where the engine's process is spawned, it imports this file again

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
