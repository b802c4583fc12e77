"""The contract with `verl.single_controller`: what `videorl.cluster` relies on."""

from __future__ import annotations

import pickle

import pytest
import ray

from videorl.cluster import Cluster


@pytest.fixture(scope="module")
def echo(stack):
    import ranks

    ray.cloudpickle.register_pickle_by_value(ranks)  # worker processes cannot import test modules
    group = stack.cluster.group(ranks.EchoWorker, 2, "hello")
    yield group
    for worker in group.workers:
        ray.kill(worker)


def test_a_list_is_dealt_one_item_to_each_rank(echo):
    assert echo.own(["a", "b"]) == [(0, "a"), (1, "b")]
    # what is sent may itself be a list, of any length
    assert echo.own([["a", "b", "c"], []]) == [(0, ["a", "b", "c"]), (1, [])]


def test_all_ranks_get_the_same_arguments(echo):
    assert echo.same("you") == ["hello you from 0 of 2", "hello you from 1 of 2"]


def test_ranks_can_join_a_process_group(echo):
    first, second = echo.environment()
    assert (first["RANK"], second["RANK"]) == ("0", "1")
    assert first["WORLD_SIZE"] == second["WORLD_SIZE"] == "2"
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] and first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["OMP_NUM_THREADS"] == "1"


def test_shipped_bytes_are_those_of_the_pickle(stack):
    stack.cluster.take_counts()
    payload = [list(range(1000)), "text"]
    assert stack.cluster.shipping(payload) is payload
    assert stack.cluster.take_counts() == {"bytes": len(pickle.dumps(payload, protocol=5))}
    assert stack.cluster.take_counts() == {"bytes": 0}


def test_too_small_a_cluster_is_refused_with_numbers(stack):
    """Joins the running Ray (256 CPUs) with a configuration that needs more, and leaves it running."""
    config = stack.workspace.config("rollout.num_engines=300", "cluster.address=auto")
    with pytest.raises(RuntimeError, match="302 workers need one Ray CPU each, the cluster has 256"):
        Cluster(config)
    assert ray.is_initialized()


def test_a_closed_cluster_gives_its_room_back(stack):
    """In a Ray that lives on, as where one process trains several times."""
    import ranks

    ray.cloudpickle.register_pickle_by_value(ranks)
    before = rooms()
    with Cluster(stack.workspace.config("cluster.address=auto", "cluster.placement=spread")) as cluster:
        group = cluster.group(ranks.EchoWorker, 2, "hello")
        assert group.own(["a", "b"]) == [(0, "a"), (1, "b")]
        assert len(rooms()) == len(before) + 1
    assert rooms() == before
    with pytest.raises(RuntimeError, match="closed"):  # a thread that replaces an engine would end the process else
        cluster.actors(ranks.EchoWorker, 1, 0.0, "late")


def rooms() -> set[str]:
    """The ids of the placement groups that hold resources."""
    return {id for id, entry in ray.util.placement_group_table().items() if entry["state"] != "REMOVED"}
