"""What a training step costs, phase by phase, from shapes alone; `benchmarks.scaling` holds it against measurements.

`python -m benchmarks.cost_model` prints the table of docs/scaling.md.

A matrix product of `[m, k]` by `[k, n]` counts 2 m k n operations; a backward pass counts twice its forward, and with
gradient checkpointing three times. Norms, activations and rotary embeddings are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Text:
    """A language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Of the layers."""
        width = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def all_parameters(self) -> int:
        return self.parameters + 2 * self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Of a token in the engine's cache, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * (self.hidden // self.heads)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision tower with windowed attention in all but a few layers. Patches are 14 x 14 pixels of two frames."""

    hidden: int = 1280
    layers: int = 32
    intermediate: int = 3420
    window: int = 64  # patches
    full_layers: int = 4  # whose patches see all others of their temporal step

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt of `frames` frames and its responses."""

    frames: int
    tokens_per_frame: float  # after merging 2 x 2 patches of two frames
    text: int
    responses: int
    response_tokens: int

    @property
    def prompt(self) -> int:
        return round(self.frames * self.tokens_per_frame) + self.text

    @property
    def packed(self) -> int:
        return self.prompt + self.responses * self.response_tokens


def segment_flops(text: Text, tokens: int, before: float) -> float:
    """Forward of `tokens` tokens that see `before` earlier ones and, causally, each other."""
    return 2 * text.parameters * tokens + 4 * text.hidden * text.layers * tokens * (before + tokens / 2)


def head_flops(text: Text, tokens: int) -> float:
    return 2 * text.hidden * text.vocabulary * tokens


def forward_flops(text: Text, group: Group, shared: bool = True) -> float:
    """Log-probabilities of a group: the prompt once, or once for each response."""
    prompts = 1 if shared else group.responses
    return (
        prompts * segment_flops(text, group.prompt, 0)
        + group.responses * segment_flops(text, group.response_tokens, group.prompt)
        + head_flops(text, group.responses * group.response_tokens)
    )


def encode_flops(tower: Tower, group: Group) -> float:
    patches = 4 * group.frames * group.tokens_per_frame
    step = 8 * group.tokens_per_frame  # patches of a temporal step
    seen = (tower.layers - tower.full_layers) * tower.window + tower.full_layers * step
    return patches * (2 * tower.parameters + 4 * tower.hidden * seen)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Per GPU: what its data sheet says, and the shares of it that are assumed to be reached."""

    flops: float = 989e12  # H100 SXM, bfloat16, dense
    memory_bandwidth: float = 3.35e12
    memory: float = 80e9
    network: float = 50e9  # bytes per second between nodes, 400 Gbit/s
    link: float = 450e9  # bytes per second within a node
    node: int = 8  # GPUs
    training_share: float = 0.40
    prefill_share: float = 0.50
    bandwidth_share: float = 0.60
    cores: int = 16
    decoded_frames: float = 200.0  # per core and second, of a 720p file, sampled ones and those between them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Half of the GPUs belong to the policy, half to the engines: workers keep what they hold."""

    gpus: int
    prompts: int  # per step
    sequence_parallel: int
    tensor_parallel: int
    skipped: float = 12.0  # frames that are decoded for one that is shown, e.g. 24 in the file and 2 shown a second

    @property
    def half(self) -> int:
        return self.gpus // 2


PHASES = ("decode", "encode", "prefill", "generate", "log-probs", "update", "weight sync")


def step_cost(text: Text, tower: Tower, group: Group, plan: Plan, machine: Machine) -> dict[str, float]:
    """Seconds of each phase; `memory_gb` of a policy rank; `network_gb` that it sends, `network` seconds for that.

    Decoding and encoding run beside log-probs and update, which take as long at least; in `step_async` the rollout does
    too.
    """
    trained = plan.prompts * forward_flops(text, group)
    rate = plan.half * machine.flops
    sequences = plan.prompts * group.responses / (plan.half / plan.tensor_parallel)  # of an engine
    context = sequences * (group.prompt / group.responses + group.response_tokens / 2)  # a prompt's cache is shared
    read = 2 * text.all_parameters + context * text.kv_bytes
    forwards = max(1.0, plan.prompts * plan.sequence_parallel / plan.half)  # of packed rows, that a rank takes part in
    gathered = forwards * (2 * 4 + 4) * text.all_parameters  # four passes, gradients
    exchanged = 0.0
    if plan.sequence_parallel > 1:  # all-to-alls of queries, keys, values and results, in the same four passes
        exchanged = forwards * 4 * 4 * 2 * group.packed / plan.sequence_parallel * text.hidden * text.layers
    network = gathered / (machine.link if plan.half <= machine.node else machine.network)
    network += exchanged / (machine.link if plan.sequence_parallel <= machine.node else machine.network)
    stretch = group.packed / plan.sequence_parallel
    checkpoints = 2 * text.hidden * text.layers * stretch  # what each layer was given, in bfloat16
    working = 2 * stretch * (8 * text.hidden + 3 * text.intermediate)  # of the layer that is recomputed
    states = 16 * text.all_parameters / plan.half + 2 * 2 * text.all_parameters / text.layers
    frames = plan.prompts * group.frames * plan.skipped
    cost = {
        "decode": frames / (machine.decoded_frames * machine.cores * plan.gpus),
        "encode": plan.prompts * encode_flops(tower, group) / (rate * machine.prefill_share),
        "prefill": plan.prompts * segment_flops(text, group.prompt, 0) / (rate * machine.prefill_share),
        "generate": group.response_tokens * read / plan.tensor_parallel
        / (machine.memory_bandwidth * machine.bandwidth_share),
        "log-probs": trained / (rate * machine.training_share),
        "update": max(4 * trained / (rate * machine.training_share), network),
        "weight sync": 2 * text.all_parameters / machine.network,
    }  # fmt: skip
    rollout = cost["prefill"] + cost["generate"]
    training = max(cost["log-probs"] + cost["update"], cost["decode"] + cost["encode"])
    return cost | {
        "network": network,
        "memory_gb": (checkpoints + working + states) / 1e9,
        "network_gb": (gathered + exchanged) / 1e9,
        "step": rollout + training + cost["weight sync"],
        "step_async": max(rollout, training) + cost["weight sync"],
    }


def plain_step(text: Text, tower: Tower, group: Group, plan: Plan, machine: Machine) -> float:
    """Seconds without store and sharing, one thing after the other.

    The engine decodes and encodes a prompt once; the trainer once for each response in the log-probs, and again in the
    update, where rows are too long to share a micro-batch.
    """
    cost = step_cost(text, tower, group, plan, machine)
    trained = plan.prompts * forward_flops(text, group, shared=False)
    training = 5 * trained / (plan.half * machine.flops * machine.training_share)
    visual = (1 + 2 * group.responses) * (cost["decode"] + cost["encode"])
    return visual + cost["prefill"] + cost["generate"] + training + cost["weight sync"]


MODELS = {
    "7B": Text(hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18944, vocabulary=152064),
    "72B": Text(hidden=8192, layers=80, heads=64, kv_heads=8, intermediate=29568, vocabulary=152064),
}
FRAMES = (256, 1024, 3600)
GPUS = (8, 64, 1024)


def smallest_plan(text: Text, tower: Tower, group: Group, gpus: int, machine: Machine) -> Plan | None:
    """The least sequence parallelism whose policy rank fits into nine tenths of a GPU; None where none does."""
    tensor = 4 if text.hidden > 4096 else 1
    for size in (1, 2, 4, 8, 16, 32, 64):
        if text.heads % size or size > gpus // 2:
            continue
        plan = Plan(gpus=gpus, prompts=max(64, gpus // 2 // size), sequence_parallel=size, tensor_parallel=tensor)
        if step_cost(text, tower, group, plan, machine)["memory_gb"] < 0.9 * machine.memory / 1e9:
            return plan
    return None


def main() -> None:
    machine, tower = Machine(), Tower()
    head = ["model", "frames", "tokens", "GPUs", "prompts", "SP", *PHASES, "step", "async", "plain", "GB", "GB sent"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, text in MODELS.items():
        for frames in FRAMES:
            group = Group(frames=frames, tokens_per_frame=64, text=200, responses=8, response_tokens=1024)
            for gpus in GPUS:
                row = [name, frames, group.prompt, gpus]
                plan = smallest_plan(text, tower, group, gpus, machine)
                if plan is None:
                    row += ["does not fit"]
                else:
                    cost = step_cost(text, tower, group, plan, machine)
                    row += [plan.prompts, plan.sequence_parallel, *(f"{cost[phase]:.1f}" for phase in PHASES)]
                    seconds = cost["step"], cost["step_async"], plain_step(text, tower, group, plan, machine)
                    row += [f"{value:.0f}" for value in (*seconds, cost["memory_gb"], cost["network_gb"])]
                print(f"| {' | '.join(map(str, row))}{' |' * (len(head) - len(row) + 1)}")


if __name__ == "__main__":
    main()
