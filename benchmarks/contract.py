"""What the alignment contract costs: fingerprints on both sides and the comparison of log-probs, beside an update.

The update is the forward and backward of the same rows, in this process: a step of training takes longer than that.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.groups import make_batch, make_module, make_row, run
from benchmarks.report import median_seconds, write_table
from videorl import contract
from videorl.types import expand_placeholders

GROUP = 8  # rows of a prompt: the engine computes its positions once
SHAPES = ((64, 8, 256), (2048, 64, 8), (8192, 128, 8))  # prompt, response, rows


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        module = make_module(Path(folder) / "model", layers=4)
        model = module.model
        for prompt, response, size in SHAPES:
            row = make_row(prompt, model.placeholder_id)
            batch = make_batch([row] * size, response)
            expanded = expand_placeholders(row.token_ids, row.media, model.placeholder_id)
            responses = batch.response_ids.tolist()
            full = [[*expanded, *ids] for ids in responses]
            positions = model.position_ids(expanded, row.media, response).numpy()
            seen = [contract.fingerprint(ids, positions, row.media) for ids in full]
            arrays = [torch.tensor(ids).numpy() for ids in full]
            weights = torch.ones(size, response)

            def engine(full=full, expanded=expanded, row=row, response=response) -> None:
                for start in range(0, len(full), GROUP):
                    positions = model.position_ids(expanded, row.media, response).numpy()
                    for ids in full[start : start + GROUP]:
                        contract.fingerprint(ids, positions, row.media)

            def trainer(arrays=arrays, seen=seen, positions=positions, row=row, batch=batch) -> None:
                for ids, fingerprint in zip(arrays, seen, strict=True):
                    contract.verify(row.id, fingerprint, ids, positions, row.media)
                zeros = torch.zeros(batch.response_ids.shape)
                contract.check_log_probs([row.id] * len(batch), zeros, zeros, batch.response_mask, 1.0)

            def update(batch=batch, weights=weights) -> None:
                run(module, batch, weights, shared=True)
                module.zero_grad()

            seconds = median_seconds({"engine": engine, "trainer": trainer, "update": update}, 3)
            share = (seconds["engine"] + seconds["trainer"]) / seconds["update"]
            milliseconds = [f"{1000 * seconds[side]:.1f}" for side in ("engine", "trainer", "update")]
            rows.append([f"{size} x ({prompt} + {response})", *milliseconds, f"{share:.2%}"])
    write_table(
        "contract",
        "The alignment contract",
        ["rows of (prompt + response)", "engine ms", "trainer ms", "update ms", "share"],
        rows,
        "CPU milliseconds of one thread, median of 3, for all rows of a batch. The language model has 7 million "
        "parameters; with a larger one the share falls, since only the update grows.",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
