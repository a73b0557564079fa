"""Meshes from text, simulated devices, and several processes."""

import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chapbook.core.checkpoint import Checkpoints
from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.core.meshes import init, mesh
from chapbook.core.weights import load_weights


@pytest.fixture
def visible(monkeypatch):
    """Makes `mesh` believe in a number of devices, for errors that come before it uses them."""
    return lambda count: monkeypatch.setattr(jax, "devices", lambda: [object()] * count)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        (
            "data=4,model=2",
            6,
            "mesh data=4,model=2 needs 8 devices, 6 are visible; "
            "try data=3,model=2, or simulate 8 with --devices 8",
        ),
        (
            "data=2",
            1,
            "mesh data=2 needs 2 devices, 1 is visible; try data=1, or simulate 2 with --devices 2",
        ),
        (
            "data=1",
            4,
            "mesh data=1 needs 1 device, 4 are visible; try data=4, or simulate 1 with --devices 1",
        ),
        (
            "data=2,model=4",
            6,
            "mesh data=2,model=4 needs 8 devices, 6 are visible; "
            "try data=6, or simulate 8 with --devices 8",
        ),
        (
            "data=-1,model=4",
            6,
            "mesh data=-1,model=4 needs a multiple of 4 devices, 6 are visible; "
            "try data=6, or simulate 8 with --devices 8",
        ),
        (
            "data=2x2,model=4",
            8,
            "mesh data=2x2,model=4 needs 16 devices, 8 are visible; "
            "try data=2,model=4, or simulate 16 with --devices 16",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_says_which_would(visible, text, count, message):
    visible(count)
    with pytest.raises(Error) as caught:
        mesh(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data", 'mesh data: "data" is not understood'),
        ("data=4;model=2", 'mesh data=4;model=2: "data=4;model=2" is not understood'),
        ("Data=4", 'mesh Data=4: "Data=4" is not understood'),
        ("4=data", 'mesh 4=data: "4=data" is not understood'),
        ("data=2x-1", 'mesh data=2x-1: "data=2x-1" is not understood'),
        ("data=-2", 'mesh data=-2: "data=-2" is not understood'),
        ("data=4,", 'mesh data=4,: "" is not understood'),
        ("data=2,data=2", 'mesh data=2,data=2: "data=2" is not understood'),
        ("data=-1,model=-1", 'mesh data=-1,model=-1: "model=-1" is not understood'),
        ("data=0", 'mesh data=0: "data=0" is not understood'),
        ("data=0x4", 'mesh data=0x4: "data=0x4" is not understood'),
    ],
)
def test_a_text_that_is_no_mesh_shows_the_grammar_in_one_line(visible, text, problem):
    visible(4)
    with pytest.raises(Error) as caught:
        mesh(text)
    assert str(caught.value).startswith(problem + "; write name=size pairs")
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="data=mode,l-1248x ", max_size=14))
def test_any_text_gives_a_mesh_of_all_devices_or_a_one_line_error(text):
    try:
        made = mesh(text)
    except Error as error:
        assert "\n" not in str(error)
    else:
        assert made.size == jax.device_count()


def test_given_devices_must_all_be_used():
    with pytest.raises(Error, match=r"^mesh data=2 needs 2 devices, 1 is given; try data=1$"):
        mesh("data=2", jax.devices()[:1])


@pytest.fixture
def alone(monkeypatch):
    """Clears what a launcher around the tests may have set, and records calls to JAX."""
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setattr("chapbook.core.meshes.backends_are_initialized", lambda: False)
    monkeypatch.setattr("chapbook.core.meshes._await_port", lambda *_: None)
    return calls


def slurm(monkeypatch, tasks):
    settings = {"JOB_ID": 7, "STEP_NODELIST": "node[3-4]", "NTASKS": tasks, "PROCID": 0}
    for name, value in (settings | {"LOCALID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_init_of_a_lone_process_does_nothing(alone, monkeypatch):
    init()
    init(processes=1)
    slurm(monkeypatch, tasks=1)
    init()
    assert alone == []


def test_init_takes_arguments_then_the_environment_then_the_launcher(alone, monkeypatch):
    slurm(monkeypatch, tasks=2)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    init()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    init()
    init("elsewhere:5", process=2)
    assert alone == [("node3:1234", 2, 0), ("node3:1234", 3, 1), ("elsewhere:5", 3, 2)]


def test_init_names_what_it_does_not_know(alone, monkeypatch):
    for known in ((None, 2, None), ("host:1", 2, 2), ("host", 2, 1)):
        with pytest.raises(Error, match=r"but coordinator=.*, processes=2, process=.* do not say"):
            init(*known)
    with pytest.raises(Error, match="no launcher mpi5py was found"):
        init(launcher="mpi5py")
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(Error, match="JAX_PROCESS_ID=one is not a whole number"):
        init()


def test_init_after_a_computation_is_refused():
    jnp.zeros(1).block_until_ready()
    with pytest.raises(Error, match=r"^call chapbook.core.init\(\) before any JAX computation$"):
        init("localhost:1234", 2, 0)


def free_port():
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


def test_an_unreachable_coordinator_is_one_line_after_the_timeout(monkeypatch):
    monkeypatch.setattr("chapbook.core.meshes.backends_are_initialized", lambda: False)
    address = f"localhost:{free_port()}"
    started = time.monotonic()
    with pytest.raises(Error) as caught:
        init(address, 2, 1, timeout=0.5)
    assert time.monotonic() - started >= 0.5
    assert str(caught.value).startswith(
        f"no meeting at {address} within 0.5 s (coordinator={address}, processes=2, process=1): "
    )
    assert "\n" not in str(caught.value)


JOB = """
import sys
import jax, jax.numpy as jnp, numpy as np
from chapbook.core.checkpoint import Checkpoints
from chapbook.core.data import Batches, arrays, place
from chapbook.core.meshes import init, local_batch, mesh, simulate
from chapbook.core.weights import load_weights, save_weights
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec as P

simulate(4)
init()
init()  # a second call does nothing
made = mesh("data=2x2,model=2")
hosts = np.vectorize(lambda device: device.process_index)(made.devices)
assert (hosts[:2] == 0).all() and (hosts[2:] == 1).all(), hosts
assert local_batch(16, made) == 8
batches = Batches(arrays(row=np.arange(64, dtype=np.int32)), 16, seed=9)
with place(batches, made) as placed, Checkpoints(sys.argv[1] + "/steps") as checkpoints:
    for _ in range(6):
        rows = next(placed)["row"]
    assert rows.shape == (16,) and not rows.is_fully_addressable
    assert sum(len(s.data) for s in rows.addressable_shards if s.replica_id == 0) == 8
    assert checkpoints.save(6, {"row": rows, "step": 6}, extra=placed.get_state())

table = np.arange(24.0).reshape(4, 6)
sharding = NamedSharding(made, P("data", "model"))
w = jax.make_array_from_callback((4, 6), sharding, lambda index: table[index])
save_weights({"w": w}, sys.argv[1] + "/w.safetensors")
sync_global_devices("saved")
back = load_weights(sys.argv[1] + "/w.safetensors", {"w": jnp.zeros_like(w)})["w"]
assert back.sharding == w.sharding
for a, b in zip(back.addressable_shards, w.addressable_shards, strict=True):
    np.testing.assert_array_equal(a.data, b.data)
print(jax.device_count(), dict(made.shape), float(jnp.sum(w)))
"""


def test_two_processes_share_a_mesh_a_batch_a_checkpoint_and_a_file_of_weights(tmp_path):
    task = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    task["JAX_COORDINATOR_PORT"] = str(free_port())
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path)],
            env={**os.environ, **task, "SLURM_PROCID": index, "SLURM_LOCALID": index},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in "01"
    ]
    try:
        for job in jobs:
            text, _ = job.communicate(timeout=180)
            assert job.returncode == 0, text
            assert "8 {'data': 4, 'model': 2} 276.0" in text.splitlines()
    finally:
        for job in jobs:
            job.kill()
    # One process takes up what the two left, and the batch is the one that it would have read.
    alone = Batches(arrays(row=np.arange(64, dtype=np.int32)), 16, seed=9)
    expected = [next(alone) for _ in range(6)][-1]
    with Checkpoints(tmp_path / "steps") as checkpoints:
        state, extra = checkpoints.restore({"row": jnp.zeros(16, jnp.int32), "step": 0})
    np.testing.assert_array_equal(state["row"], expected["row"])
    assert (state["step"], extra) == (6, alone.get_state())
    w = load_weights(tmp_path / "w.safetensors", {"w": jnp.zeros((4, 6))})["w"]
    np.testing.assert_array_equal(w, np.arange(24.0).reshape(4, 6))
