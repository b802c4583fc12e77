"""The whole training step on long videos, against the plain path of this library: `videorl.train` with both settings.

Plain: no store, so that engine and trainer decode and encode for themselves whenever they need a clip, and no sharing,
so that every row has its prompt in a padded batch.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.report import plot, write_table
from benchmarks.videos import SIDE, Workspace, make_workspace
from videorl.train import train

FRAMES = 256
CLIPS = 2  # a step each: the first step of a run warms up and is left out, the second is cold
STEPS = 2 * CLIPS
PLAIN_STEPS = CLIPS  # nothing is kept on the plain path: a later epoch is as the first
PLAIN = ("store=null", "policy.shared_prompt=false")
PHASES = ("rollout", "log_probs", "update", "weight_sync")


def measure(workspace: Workspace, name: str, steps: int, *more: str) -> list[dict[str, float]]:
    folder = workspace.folder / "runs" / name
    config = workspace.config(
        FRAMES, f"run.dir={folder}", f"total_steps={steps}", "rollout.prompts_per_step=1", "data.shuffle=false", *more
    )
    train(config)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), [FRAMES], CLIPS)
        once, plain = measure(workspace, "once", STEPS), measure(workspace, "plain", PLAIN_STEPS, *PLAIN)
    rows, totals = [], {}
    for epoch, steps in (("first", slice(1, CLIPS)), ("later", slice(CLIPS, STEPS))):
        for name, lines in (("plain", plain[1:]), ("once", once[steps])):
            medians = {phase: statistics.median(line[f"time/{phase}"] for line in lines) for phase in (*PHASES, "step")}
            totals[epoch, name] = medians["step"]
            decodes, calls = (sum(line[f"video/{kind}"] for line in lines) for kind in ("decodes", "encoder_calls"))
            rows.append([epoch, name, *(f"{medians[phase]:.2f}" for phase in PHASES), f"**{medians['step']:.2f}**",
                         f"{decodes / len(lines):.1f}", f"{calls / len(lines):.1f}"])  # fmt: skip
    shipped = statistics.median(line["driver/bytes"] for line in once)
    pixels = FRAMES * SIDE * SIDE * 3
    gap = max(abs(a["reward/mean"] - b["reward/mean"]) for a, b in zip(once, plain, strict=False))
    parity = {
        name: max(line["parity/max_log_prob_diff"] for line in lines)
        for name, lines in (("once", once), ("plain", plain))
    }
    hidden = statistics.median(line["data/hidden"] for line in once[1:CLIPS])
    write_table(
        "long_video",
        "A training step on long videos",
        ["epoch", "path", *PHASES, "step", "decodes", "encoder calls"],
        rows,
        f"{FRAMES} frames of {SIDE} x {SIDE} pixels, 2048 visual tokens, one prompt with 8 responses of up to 64 "
        "tokens a step; tower of 7 million parameters, language model of 3 million; wall seconds, medians. Decodes and "
        "encoder calls are those of the encoders; on the plain path every engine and trainer call adds its own.\n\n"
        "The plain path keeps nothing, so that its steps are the same in both epochs.\n\n"
        f"First epoch **{totals['first', 'plain'] / totals['first', 'once']:.1f} times** faster, later epochs "
        f"**{totals['later', 'plain'] / totals['later', 'once']:.1f} times**. Of reading and encoding the next step's "
        f"clips {hidden:.0%} was hidden in the first epoch. Largest difference of a step's mean reward between the "
        f"paths {gap:.1e}; engine against trainer {parity['once']:.1e} and {parity['plain']:.1e}.\n\n"
        f"The driver pickled {shipped / 1e3:.0f} kB a step, whatever the number of frames. The frames are "
        f"{pixels / 1e6:.1f} MB, {pixels / shipped:.0f} times that; as float32 for each of 8 responses and of 4 hops "
        f"(engine, log-probs, reference, update), as frameworks ship them that send pixels, "
        f"{pixels * 4 * 8 * 4 / shipped:.0f} times.",
    )
    steps = list(range(1, STEPS + 1))
    curves = {name: [line["time/step"] for line in lines] for name, lines in (("plain", plain), ("once", once))}
    plot("long_video", "step", "seconds", {name: (steps[: len(y)], y) for name, y in curves.items()})


if __name__ == "__main__":
    main()
