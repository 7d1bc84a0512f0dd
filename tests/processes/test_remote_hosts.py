"""One program that drives devices of other hosts: where bytes are read, what is sent, and what is refused.

Real servers, and a real client for each of a few programs; tests look at what a program saw. A path below
`/proc/self/cwd` is another one in each process, so that hosts see other files under it, or none, without privileges.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import time
from typing import Any

import pytest

from servers import Cluster, Traffic, run_client

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20
# What TensorFlow's reader takes from a file beyond small tensors: 1 MB a call, here for three dtypes and twice.
READ_AHEAD = 10 * MEGABYTE
HOSTS = ("/job:worker/replica:0/task:0", "/job:worker/replica:0/task:1")
SERVERS = ("worker:0", "worker:1")


# ---- What clients do -------------------------------------------------------------------------------------


def large(count: int = 4, side: int = 1024) -> dict[str, Any]:
    """Arrays of 4 MB each."""
    import numpy as np

    return {f"v{i}": np.random.default_rng(i).normal(size=(side, side)).astype(np.float32) for i in range(count)}


def small(count: int = 90) -> dict[str, Any]:
    """Enough small arrays, of several dtypes and shapes, that calls of every length occur."""
    import numpy as np

    few = {"scalar": np.float32(3.0), "step": np.int64(7), "empty": np.zeros((0, 3), np.float32)}
    few["flags"] = np.array([True, False])
    return few | {f"s{i}": np.random.default_rng(i).normal(size=(3, 5)).astype(np.float32) for i in range(count)}


def saved(values: dict[str, Any], path: str) -> tuple[str, int]:
    """A checkpoint of the values, saved before any cluster is joined; and its size."""
    import tensorflow as tf

    prefix = tf.train.Checkpoint(**{k: tf.Variable(v) for k, v in values.items()}).save(path)
    return prefix, os.path.getsize(f"{prefix}.data-00000-of-00001")


def connect(cluster: Cluster) -> None:
    import tensorflow as tf

    tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster.jobs))


def scattered(values: dict[str, Any]) -> dict[str, Any]:
    """A variable for each value, on the devices of both hosts in turn."""
    import tensorflow as tf

    live = {}
    for number, (name, value) in enumerate(values.items()):
        with tf.device(f"{HOSTS[number % 2]}/device:CPU:{number // 2 % 2}"):
            live[name] = tf.Variable(tf.zeros_like(value))
    return live


def equal(live: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether every component of every variable holds its value."""
    import numpy as np

    parts = {name: getattr(v, "values", (v,)) for name, v in live.items()}
    return all(np.array_equal(part.numpy(), values[name]) for name, found in parts.items() for part in found)


def restored(cluster: Cluster, root: Any, path: str, **options: Any) -> dict[str, Any]:
    """What a restore did: its traffic and its report, or its error, and how long it took."""
    import tensorflow as tf

    import dist_restore as dr

    start = time.monotonic()
    said: dict[str, Any] = {"error": "", "text": ""}
    with cluster.counting() as traffic:
        try:
            report = dr.DistributedRestorer(tf.train.Checkpoint(**root), **options).restore(path)
            said |= {"verified": report.verified, "bytes_read": list(report.bytes_read), "hashes": len(report.hashes)}
        except dr.RestoreError as error:
            said |= {"error": type(error).__name__, "text": str(error), "names": error.names}
    return said | {"seconds": time.monotonic() - start, "traffic": dataclasses.asdict(traffic[0])}


def seen_by_all(cluster: Cluster, folder: str) -> dict[str, Any]:
    """The usual case: both hosts see the files."""
    values = large() | small()
    path, size = saved(values, f"{folder}/ckpt")
    connect(cluster)
    live = scattered(values)
    plain = restored(cluster, live, path)
    plain |= {"equal": equal(live, values), "size": size}

    for variable in live.values():
        variable.assign(variable * 0 if variable.dtype.is_floating else variable)
    turned = {k: live[k] for k in ("v0", "v1", "v2", "v3")}
    through_ops = restored(cluster, turned, path, rules=_rules(turned), unmatched="keep")
    through_ops["equal"] = equal(turned, {k: values[k].T for k in turned})

    for name in turned:
        turned[name].assign(turned[name] * 0)
    _flip(f"{path}.data-00000-of-00001", values["v1"].tobytes()[:64])
    damaged = restored(cluster, turned, path)
    damaged["zero"] = equal(turned, {k: values[k] * 0 for k in turned})
    return {"plain": plain, "through_ops": through_ops, "damaged": damaged, "changed": _changed(live["v0"], live["v1"])}


def _changed(*variables: Any) -> str:
    """What verification says of components of which the second one holds something else than expected."""
    import numpy as np

    from dist_restore.core.errors import VerificationError
    from dist_restore.core.tensors import TensorSpec
    from dist_restore.distribute.hosts.fingerprints import Held, Holdings
    from dist_restore.distribute.hosts.functions import Placed, fingerprint

    held = Holdings()
    for number, variable in enumerate(variables):
        expected = np.asarray(variable.numpy())
        mark = fingerprint(expected).numpy().tobytes()
        spec = TensorSpec(expected.shape, "float32")
        held.add(HOSTS[number], [Held(f"v{number}", 0, variable, spec, mark)])
    variables[1].scatter_nd_update([[5, 5]], [1e-30])
    try:
        held.verify(Placed("", "/job:localhost/replica:0/task:0"), 60.0, MEGABYTE)
    except VerificationError as error:
        return str(error)
    return ""


def _rules(names: Any) -> Any:
    import dist_restore as dr

    ops = "[{ transpose = { perm = [1, 0] } }]"
    text = "".join(f'[[rule]]\nfrom = "{n}"\nto = "{n}"\nops = {ops}\n' for n in names)
    return dr.RuleSet.from_toml(text)


def _flip(path: str, data: bytes) -> None:
    """Flips a bit of the tensor that begins with these bytes."""
    content = bytearray(pathlib.Path(path).read_bytes())
    content[content.index(data) + 1_000_000] ^= 4
    pathlib.Path(path).write_bytes(content)


def seen_by_one(cluster: Cluster, blind: str) -> dict[str, Any]:
    """The second host sees nothing under the path, and then another checkpoint."""
    import numpy as np
    import tensorflow as tf

    values = large() | small(3)
    path, size = saved(values, "/proc/self/cwd/ckpt")
    other = tf.train.Checkpoint(**{k: tf.Variable(v + np.ones((), v.dtype)) for k, v in values.items() if k != "flags"})
    connect(cluster)
    live = scattered(values)
    nothing = restored(cluster, live, path)
    nothing |= {"equal": equal(live, values), "size": size}
    with tf.device("/job:localhost/task:0/device:CPU:0"):
        other.save(f"{blind}/ckpt")
    for variable in live.values():
        variable.assign(variable * 0 if variable.dtype.is_floating else variable)
    others = restored(cluster, live, path)
    others["zero"] = all(not live[k].numpy().any() for k in ("v0", "v1", "v2", "v3"))
    return {"nothing": nothing, "others": others}


def dense() -> tuple[Any, Any]:
    """A model of two layers, and Adam with its slots."""
    import keras

    layers = [keras.layers.Dense(512, name="a"), keras.layers.Dense(64, name="b")]
    model, optimizer = keras.Sequential([keras.Input((256,)), *layers]), keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return model, optimizer


def replicated(cluster: Cluster, folder: str, policies: bool) -> dict[str, Any]:
    """TPUStrategy's variables on the devices of both hosts: a model, Adam's slots, and totals read on demand."""
    import numpy as np
    import tensorflow as tf

    from tpu_standin import tpu_strategy

    values = large(3)
    totals = {"total": np.int64(7), "mean": np.float32(0.5), "first": np.float32(2.5)}
    path, size = saved(values | totals, f"{folder}/ckpt")
    model, optimizer = dense()
    for number, variable in enumerate([*model.variables, *optimizer.variables]):
        if variable.dtype == "float32":
            variable.assign(np.random.default_rng(number).uniform(0.1, 2.0, variable.shape))
    expected = [v.numpy() for v in [*model.variables, *optimizer.variables]]
    whole = tf.train.Checkpoint(model=model, optimizer=optimizer).save(f"{folder}/model")

    connect(cluster)
    strategy = tpu_strategy(policies=policies, devices=[f"{h}/device:CPU:{i}" for h in HOSTS for i in range(2)])
    on_read, kinds = tf.VariableSynchronization.ON_READ, tf.VariableAggregation
    with strategy.scope():
        live = {name: tf.Variable(tf.zeros(value.shape)) for name, value in values.items()}
        read = {
            "total": tf.Variable(0, dtype=tf.int64, synchronization=on_read, aggregation=kinds.SUM),
            "mean": tf.Variable(0.0, synchronization=on_read, aggregation=kinds.MEAN),
            "first": tf.Variable(0.0, synchronization=on_read, aggregation=kinds.ONLY_FIRST_REPLICA),
        }
    said = restored(cluster, live | read, path)
    said |= {"size": size, "equal": equal(live, values), "devices": [v.device for v in live["v0"].values]}
    said["totals"] = {k: [float(part.numpy()) for part in v.values] for k, v in read.items()}

    with strategy.scope():
        again, adam = dense()
    import dist_restore as dr

    dr.DistributedRestorer(tf.train.Checkpoint(model=again, optimizer=adam)).restore(whole)
    found = [v.value for v in [*again.variables, *adam.variables]]
    said["model"] = equal(dict(enumerate(found)), dict(enumerate(expected)))
    said["on_hosts"] = sorted({part.device[: len(HOSTS[0])] for v in found for part in v.values})
    return said


def parameter_servers(cluster: Cluster, folder: str) -> dict[str, Any]:
    """Plain variables on two parameter servers; and a sharded one."""
    import numpy as np
    import tensorflow as tf

    values = large() | small(9)
    path, size = saved(values, f"{folder}/ckpt")
    spec = tf.train.ClusterSpec(cluster.jobs)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(
        resolver, variable_partitioner=tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    )
    plain = tf.distribute.ParameterServerStrategy(resolver)
    with plain.scope():
        live = {name: tf.Variable(tf.zeros_like(value)) for name, value in values.items()}
    said = restored(cluster, live, path)
    said |= {"size": size, "equal": equal(live, values), "devices": sorted({v.device for v in live.values()})}
    with strategy.scope():
        sharded = tf.Variable(tf.zeros((1024, 1024)))
    found = restored(cluster, {"v0": sharded}, path, unmatched="keep") | {"kind": type(sharded).__name__}
    rows = np.concatenate([part.numpy() for part in sharded.variables])
    said["sharded"] = found | {"parts_equal": bool(np.array_equal(rows, values["v0"]))}
    return said


def lost(cluster: Cluster, folder: str) -> dict[str, Any]:
    """A host that stops answering, and one that is killed."""
    path, _ = saved(large(), f"{folder}/ckpt")
    connect(cluster)
    live = scattered(large())
    restored(cluster, live, path)
    cluster.signal("worker:1", signal.SIGSTOP)
    stopped = restored(cluster, live, path, timeout=3.0)
    cluster.signal("worker:1", signal.SIGCONT)
    assigning = _killed_before_assignment(cluster, live, path)
    return {"stopped": stopped, "assigning": assigning, "killed": restored(cluster, live, path, timeout=60.0)}


def _killed_before_assignment(cluster: Cluster, live: dict[str, Any], path: str) -> dict[str, Any]:
    """What the assignment says when a host is killed after it has checked its tensors."""
    import tensorflow as tf

    import dist_restore as dr
    from dist_restore.distribute.hosts.hosts import Remote
    from dist_restore.engine.budget import Limits
    from dist_restore.engine.ledger import Ledger
    from dist_restore.engine.units import make_units
    from dist_restore.report.progress import progress
    from dist_restore.targets.assigner import Assigner
    from dist_restore.targets.targets import find_targets

    root = tf.train.Checkpoint(**live)
    handles, units = dict(find_targets(root).handles), make_units(dr.DistributedRestorer(root).plan(path).entries)
    with progress(0, False) as bar:
        ledger = Ledger(handles, Assigner(tf.distribute.get_strategy()), bar)
        remote = Remote(units, dr.open_checkpoint(path), handles, ledger.assigner, Limits(64 * MEGABYTE, 60.0))
        remote.check(bar)
        cluster.signal("worker:1", signal.SIGKILL)
        start = time.monotonic()
        try:
            remote.assign(ledger)
        except dr.RestoreError as error:
            return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": "", "text": "", "seconds": 0.0}


# ---- What tests see --------------------------------------------------------------------------------------


def traffic(said: dict[str, Any]) -> Traffic:
    return Traffic(**said["traffic"])


@pytest.fixture(scope="module")
def visible(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_client(seen_by_all, {"worker": 2}, folder=str(tmp_path_factory.mktemp("visible")))


def test_hosts_that_see_the_files_read_their_shares_and_the_client_reads_none(visible: dict[str, Any]) -> None:
    said = visible["plain"]
    assert said["error"] == "", said["text"]
    assert said["equal"] and said["verified"] and said["hashes"] == 99  # with save_counter, which is in the client
    seen, size = traffic(said), said["size"]
    # Each host reads its half twice: once to check it, once to assign it.
    for server in SERVERS:
        assert size <= seen.server_read[server] < size + READ_AHEAD
    assert seen.client_read < size / 10
    assert sum(seen.sent.values()) + sum(seen.received.values()) < size / 5
    assert sum(said["bytes_read"]) > 1.9 * size


def test_what_goes_through_ops_is_read_by_the_client_and_sent_to_each_host_once(visible: dict[str, Any]) -> None:
    said = visible["through_ops"]
    assert said["error"] == "", said["text"]
    assert said["equal"]
    for server in SERVERS:
        assert 8 * MEGABYTE <= traffic(said).sent[server] < 9 * MEGABYTE
        assert traffic(said).received[server] < MEGABYTE
        assert traffic(said).server_read[server] < MEGABYTE


def test_bytes_that_a_host_finds_damaged_are_named_before_anything_changes(visible: dict[str, Any]) -> None:
    said = visible["damaged"]
    assert said["error"] == "CheckpointCorruptError"
    assert "'v1'" in said["text"] and HOSTS[1] in said["text"] and said["names"] == ["v1"]
    assert said["zero"]


def test_a_component_that_holds_something_else_is_named(visible: dict[str, Any]) -> None:
    assert f"1 component(s) do not hold what was assigned: 'v1' on replica 0 ({HOSTS[1]}" in visible["changed"]


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, blind = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("blind")
    return run_client(seen_by_one, {"worker": 2}, folders={"worker:1": blind}, cwd=folder, blind=str(blind))


def test_a_host_that_sees_no_files_is_sent_each_of_its_tensors_once(views: dict[str, Any]) -> None:
    said = views["nothing"]
    assert said["error"] == "", said["text"]
    assert said["equal"]
    seen = traffic(said)
    assert seen.server_read["worker:1"] < MEGABYTE and 8 * MEGABYTE <= seen.sent["worker:1"] < 9 * MEGABYTE
    assert seen.server_read["worker:0"] >= 16 * MEGABYTE and seen.sent["worker:0"] < MEGABYTE
    assert seen.received["worker:1"] < MEGABYTE


def test_a_host_that_sees_other_files_is_refused(views: dict[str, Any]) -> None:
    said = views["others"]
    assert said["error"] == "PlanMismatchError"
    assert HOSTS[1] in said["text"] and HOSTS[0] not in said["text"]
    assert said["zero"]


@pytest.mark.parametrize("policies", [True, False])
def test_replicas_on_several_hosts_are_filled_by_one_read_a_host(tmp_path: pathlib.Path, policies: bool) -> None:
    said = run_client(replicated, {"worker": 2}, folder=str(tmp_path), policies=policies)
    assert said["error"] == "", said["text"]
    assert said["equal"] and said["model"]
    assert said["devices"] == [f"{host}/device:CPU:{i}" for host in HOSTS for i in range(2)]
    assert said["on_hosts"] == list(HOSTS)
    assert sum(said["totals"]["total"]) == 7
    assert said["totals"]["first"] == [2.5] * 4 and said["totals"]["mean"] == [0.5] * 4
    seen, size = traffic(said), said["size"]
    for server in SERVERS:
        assert 2 * size <= seen.server_read[server] < 2 * size + READ_AHEAD
    assert seen.client_read < size / 10 and sum(seen.sent.values()) < size / 10


def test_plain_variables_on_parameter_servers_are_read_there(tmp_path: pathlib.Path) -> None:
    said = run_client(parameter_servers, {"worker": 2, "ps": 2}, cpus=1, folder=str(tmp_path))
    assert said["error"] == "", said["text"]
    assert said["equal"]
    assert said["devices"] == [f"/job:ps/replica:0/task:{i}/device:CPU:0" for i in range(2)]
    seen, size = traffic(said), said["size"]
    assert seen.server_read["worker:0"] < MEGABYTE and seen.client_read < size / 10
    assert all(0.99 * size < seen.server_read[f"ps:{i}"] < size + READ_AHEAD for i in range(2))
    assert said["sharded"]["kind"] == "ShardedVariable"
    assert said["sharded"]["error"] == "" and said["sharded"]["verified"] and said["sharded"]["parts_equal"]


def test_a_host_that_is_gone_ends_the_restore_by_name(tmp_path: pathlib.Path) -> None:
    said = run_client(lost, {"worker": 2}, folder=str(tmp_path))
    assert "variable(s) had changed already" in said["assigning"]["text"]
    assert "had changed" not in said["stopped"]["text"] + said["killed"]["text"]
    for outcome in said.values():
        assert outcome["error"] == "WorkerError"
        assert HOSTS[1] in outcome["text"] and HOSTS[0] not in outcome["text"]
        assert outcome["seconds"] < 30
