"""From a supervised start to PPO and one step off: the stages and programs that the other runs leave out."""

from __future__ import annotations

import math

import pytest


@pytest.fixture(scope="module")
def cold_start(stack, workspace, open_run, tmp_path_factory):
    """With a vision tower that trains, which the stack's encoder has not."""
    import warm_workers

    from videorl import fitting
    from videorl.config import load_config
    from videorl.sft import fit

    folder = tmp_path_factory.mktemp("sft") / "run"
    sft = (
        f"run.dir={folder}",
        "sft.steps=8",
        "sft.batch_size=8",
        f"sft.model_path={workspace.folder}/model",
        f"sft.path={workspace.folder}/sft.jsonl",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "Cluster", warm_workers.WarmCluster)
        fit(load_config("sft", workspace.overrides(*sft)))
    return open_run(folder)


@pytest.fixture(scope="module")
def ppo_run(program, workspace, cold_start, length_reward, tmp_path_factory):
    """PPO with two engines, ended by SIGTERM after two steps; in the first, only the critic learns."""
    ppo = (
        "recipe=quickstart_ppo", f"model.path={cold_start.run_dir}/export", "total_steps=1000", "data.eval_path=null",
        "rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.num_engines=2",
        "rollout.engine=my_code:CountingEngine", "critic.warmup_steps=1", length_reward,
    )  # fmt: skip
    run = program("train", tmp_path_factory.mktemp("ppo"), *workspace.overrides(*ppo))
    run.until((run.run_dir / "checkpoints" / "step-00000002").exists)
    run.process.terminate()
    run.wait(60)
    return run


def test_the_supervised_start_fits_the_responses(cold_start):
    losses = [line["policy/loss"] for line in cold_start.metrics().values()]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    assert (cold_start.run_dir / "export" / "model.safetensors").is_file()


def test_ppo_trains_a_critic_then_the_policy(ppo_run):
    first, second = (ppo_run.metrics()[step] for step in (1, 2))
    for line in (first, second):
        assert line["critic/value_loss"] > 0
        assert line["critic/grad_norm"] > 0
        assert line["parity/max_log_prob_diff"] < 1e-4
    assert "policy/policy_loss" not in first
    assert math.isfinite(second["policy/policy_loss"]) and second["policy/grad_norm"] > 0


def test_two_engines_share_the_work(ppo_run):
    answered = [(ppo_run.run_dir / f"engine-{index}").stat().st_size for index in (0, 1)]
    assert sum(answered) >= 2 * 4 * 2  # steps, prompts, responses
    assert min(answered) >= sum(answered) / 4


def test_sigterm_ends_a_run_as_ctrl_c_does(ppo_run):
    """What a scheduler sends before it takes the machine away."""
    assert ppo_run.process.returncode == 130
    assert f"the same command resumes {ppo_run.run_dir}" in ppo_run.err
    assert "Traceback" not in ppo_run.err
    assert ppo_run.leftovers(30) == set()


ONE_STEP_OFF = (
    "data.eval_path=null", "rollout.prompts_per_step=4", "rollout.group_size=2", "algorithm.importance_cap=2.0"
)  # fmt: skip


def test_one_step_off_trains_on_rollouts_one_version_old(program, run_here, workspace, length_reward, tmp_path):
    """Ended by SIGTERM while it rolls out after two steps, and resumed: nothing is left running, the batch that was
    under way is rolled out again, and no prompt is lost."""
    overrides = workspace.overrides(*ONE_STEP_OFF, length_reward)
    run = program("train_async", tmp_path, *overrides, "total_steps=1000")
    run.until((run.run_dir / "checkpoints" / "step-00000002").exists)
    run.process.terminate()
    assert run.wait(60) == 130
    assert run.leftovers(30) == set()
    done = int(sorted(path.name for path in (run.run_dir / "checkpoints").glob("step-*"))[-1][-8:])
    total = done + 2
    resumed = run_here("train_async", tmp_path, *overrides, f"total_steps={total}")
    assert resumed.code == 0, resumed.err
    lines = resumed.metrics()
    assert list(lines) == list(range(1, total + 1))
    stale = {step: line["rollout/staleness"] for step, line in lines.items()}
    assert stale == {step: float(step not in (1, done + 1)) for step in lines}
    for step, line in lines.items():
        assert math.isfinite(line["policy/policy_loss"]) and line["time/rollout"] > 0
        if stale[step]:
            assert 0 <= line["rollout/hidden"] <= 1
            assert line["parity/max_log_prob_diff"] > 1e-4  # of one update, which the importance weights are for
        else:
            assert line["parity/max_log_prob_diff"] < 1e-4
    ids = [id for batch in resumed.batches().values() for id in batch]
    first_epoch = ids[: 24 // 4 * 4]
    assert len(set(first_epoch)) == len(first_epoch)  # none twice, so none lost


def test_one_step_off_wants_importance_weights(run_here, workspace, tmp_path):
    run = run_here("train_async", tmp_path, *workspace.overrides("total_steps=2"))
    assert run.code == 2
    assert "algorithm.importance_cap: null" in run.err
