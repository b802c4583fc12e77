"""A run as a Ray job on a head that asks for a token, with rewards from the submitted folder, by DAPO."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

RAY = (sys.executable, "-m", "ray.scripts.scripts")
STEPS, PROMPTS = 2, 4


@pytest.fixture(scope="module")
def head(start, tmp_path_factory):
    """(address of the job API, the client's environment) of a Ray head on loopback."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard, agent, clients = free_ports(4)
    with tempfile.TemporaryDirectory(dir="/tmp") as session:  # the path of a socket has 107 letters at most
        ray = start(
            folder, *RAY, "start", "--head", "--block", "--num-cpus=8", "--include-dashboard=true",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={clients}", "--min-worker-port=0", "--max-worker-port=0",
            f"--temp-dir={session}", "--disable-usage-stats", RAY_worker_niceness="0", **client,
        )  # fmt: skip
        address = f"http://127.0.0.1:{dashboard}"
        ray.until(lambda: status(f"{address}/api/version") is not None)
        yield address, client
        ray.process.send_signal(signal.SIGTERM)  # `ray start --block` stops what it started
        ray.wait()
        assert ray.leftovers(90) == set()


def free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def status(url: str, body: dict | None = None, token: str | None = None) -> int | None:
    """HTTP status; None where nobody listens."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=json.dumps(body).encode() if body else None, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def job(start, open_run, head, workspace, tmp_path_factory):
    """The submitting program, and the folder of the job's run."""
    address, client = head
    folder = tmp_path_factory.mktemp("job")
    overrides = workspace.overrides(
        "cluster.address=auto", f"run.dir={folder}/run", f"total_steps={STEPS}", f"rollout.prompts_per_step={PROMPTS}",
        "rollout.group_size=2", "data.eval_path=null", "algorithm=dapo", "algorithm.overlong.buffer=4",
        "+rewards.terms.even={target: 'my_code:even', weight: 1, requires: null, params: {}}",
    )  # fmt: skip
    submit = (*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--")
    command = start(folder / "code", *submit, sys.executable, "-m", "videorl.train", *overrides, **client)
    return command.succeed(), open_run(folder / "run")


def test_without_the_token_no_request_is_served(head):
    address, client = head
    job = {"entrypoint": "true"}
    token = Path(client["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert status(f"{address}/api/jobs/", job) == 401
    assert status(f"{address}/api/jobs/", job, "0" * 64) == 403
    assert status(f"{address}/api/jobs/") == 401
    assert status(f"{address}/api/jobs/", token=token) == 200


def test_a_submitted_run_succeeds_on_the_cluster_that_is_there(job):
    submitted, run = job
    assert f"step {STEPS}/{STEPS}" in submitted.out and "succeeded" in submitted.out
    assert list(run.metrics()) == [1, 2]
    assert (run.run_dir / "export" / "model.safetensors").is_file()


def test_dynamic_sampling_trains_on_groups_that_differ(job):
    """Rewards are 1 for even lengths, so half of the groups of two are flat: further prompts come in their place, and
    what was rolled out in vain is written down too."""
    _, run = job
    groups: dict[int, dict[str, list[float]]] = {}
    for line in run.rollouts():
        groups.setdefault(line["step"], {}).setdefault(line["prompt_id"], []).append(line["terms"]["even"])
    metrics = run.metrics()
    for step, rewards in groups.items():
        flat = [prompt for prompt, (first, second) in rewards.items() if first == second]
        assert metrics[step]["rollout/trained_groups"] == len(rewards) - len(flat) <= PROMPTS
        assert metrics[step]["rollout/zero_variance_groups"] == pytest.approx(len(flat) / len(rewards))
    assert metrics[STEPS]["data/consumed"] == sum(map(len, groups.values())) > STEPS * PROMPTS
    assert all(line["policy/grad_norm"] > 0 for line in metrics.values())
