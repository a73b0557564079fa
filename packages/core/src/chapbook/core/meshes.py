"""Device meshes from a line of text, simulated devices, and many processes as one.

The module is called `meshes` so that `chapbook.core.mesh` can be the function.
"""

import math
import os
import re
import socket
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # the only door to JAX's launcher detection
from jax._src.xla_bridge import backends_are_initialized
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chapbook.core.errors import Error

GRAMMAR = (
    "write name=size pairs with commas between them, every name once, such as data=4,model=2; a "
    "size is a positive number, -1 (the rest, once) or AxB (A slices or hosts, B devices in each)"
)


def init(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    launcher: str | None = None,
    timeout: float = 60,
) -> None:
    """Joins this process to the others of its job; does nothing when there is only one.

    What is not given is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, then from the launcher as JAX detects it (Slurm, Open MPI, Kubernetes
    indexed jobs, Cloud TPU). A second call does nothing.

    Args:
        coordinator: `host:port` of process 0.
        processes: The number of processes.
        process: The index of this process, from 0.
        launcher: The one detection of JAX to use, such as `"mpi4py"`, which JAX tries only on
            request.
        timeout: How long to wait for the other processes, in seconds.

    Raises:
        Error: JAX has started already, one of the three values is unknown or wrong, or process 0
            does not answer in time. (When it is another process that does not come, JAX ends this
            one with a message of its own.)
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _whole("JAX_NUM_PROCESSES") if processes is None else processes
    process = _whole("JAX_PROCESS_ID") if process is None else process
    if None in (coordinator, processes, process) and (cluster := _cluster(launcher)):
        processes = cluster.get_process_count() if processes is None else processes
        if processes > 1:
            port = os.environ.get("JAX_COORDINATOR_PORT")
            coordinator = coordinator or cluster.get_coordinator_address(int(timeout), port)
            process = cluster.get_process_id() if process is None else process
    if processes == 1 or (coordinator, processes, process) == (None, None, None):
        return
    values = f"coordinator={coordinator}, processes={processes}, process={process}"
    host, _, port = (coordinator or "").rpartition(":")
    if not (host and port.isdecimal() and processes and process in range(processes)):
        raise Error(
            f"several processes are meant, but {values} do not say which",
            "set JAX_COORDINATOR_ADDRESS to host:port of process 0, JAX_NUM_PROCESSES, and "
            "JAX_PROCESS_ID from 0 to one less in every process",
        )
    if backends_are_initialized():
        raise Error("call chapbook.core.init() before any JAX computation")
    try:
        if process:
            _await_port(host.strip("[]"), int(port), timeout)
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=launcher,
            initialization_timeout=math.ceil(timeout),
        )
    except (OSError, RuntimeError) as error:
        raise Error(
            f"no meeting at {coordinator} within {timeout:g} s ({values}): "
            f"{str(error).splitlines()[0]}",
            "check that process 0 runs and that every process reaches its address and port",
        ) from error


def _whole(variable: str) -> int | None:
    try:
        return int(os.environ[variable]) if variable in os.environ else None
    except ValueError as error:
        raise Error(f"{variable}={os.environ[variable]} is not a whole number") from error


def _cluster(launcher: str | None) -> type[ClusterEnv] | None:
    """Returns JAX's view of the launcher that started this process, if there is one."""
    for cluster in ClusterEnv._cluster_types:
        meant = cluster.name == launcher if launcher else not cluster.opt_in_only_method
        # A pod that is not of an indexed job stands alone.
        alone = cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in os.environ
        if meant and not alone and cluster.is_env_present():
            return cluster
    if launcher:
        raise Error(f"no launcher {launcher} was found around this process")
    return None


def _await_port(host: str, port: int, timeout: float) -> None:
    """Waits until process 0 listens: where it does not, JAX would abort the whole process."""
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def simulate(n: int) -> None:
    """Lets JAX show `n` CPU devices in this process, for tests and planning.

    It also turns off asynchronous dispatch, which is not enough by itself: collectives of several
    programs in flight wait for each other's threads, and after 40 s XLA aborts the process. A loop
    must call `block_until_ready` each step, so that one program is in flight.

    Args:
        n: The number of devices.

    Raises:
        Error: JAX has started already with other devices.
    """
    if n < 1:
        raise Error(f"cannot simulate {n} devices; give 1 or more")
    if not backends_are_initialized():
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", n)
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    elif jax.default_backend() != "cpu" or jax.local_device_count() != n:
        raise Error(
            f"cannot simulate {n} devices: JAX has started with "
            f"{jax.local_device_count()} {jax.default_backend()} devices",
            "call chapbook.core.simulate() before any JAX computation",
        )


def mesh(
    text: str = "auto",
    devices: Sequence[Any] | None = None,
    *,
    explicit: bool = False,
) -> Mesh:
    """Makes the mesh that a line of text describes.

    The text holds `name=size` pairs with commas between them; the order of the text is the order
    of the axes, the last one fastest, so `model` goes last. A size is a whole number, `-1` (once:
    the rest), or `AxB`: `A` across slices or hosts on the slow network, `B` inside each. An empty
    text and `auto` mean `data=-1`.

    Args:
        text: The description, such as `data=4,model=2`.
        devices: The devices to use; all of all processes by default. All must be used.
        explicit: Make explicit axes, on which every operation must agree on its shardings, in
            place of automatic ones.

    Returns:
        The mesh, with automatic axes.

    Raises:
        Error: The text is not understood, or does not fit the devices.
    """
    found = list(jax.devices() if devices is None else devices)
    text = text.replace(" ", "")
    text = "data=-1" if text in ("", "auto") else text
    sizes, across = _parse(text)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest, left = divmod(len(found), fixed)
    if left or not rest or (rest > 1 and -1 not in sizes.values()):
        raise _misfit(text, sizes, len(found), given=devices is not None)
    sizes = {name: rest if size == -1 else size for name, size in sizes.items()}
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * len(sizes)
    if across:
        return Mesh(_hybrid(text, sizes, across, found), tuple(sizes), axis_types=kinds)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=found)


def _parse(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the size of every axis, -1 for the rest, and the part `A` of those given as `AxB`."""
    sizes, across = {}, {}
    for pair in text.split(","):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)=(?:(-1)|(?:([1-9]\d*)x)?([1-9]\d*))", pair)
        if match is None or match[1] in sizes or (match[2] and -1 in sizes.values()):
            raise Error(f'mesh {text}: "{pair}" is not understood; {GRAMMAR}')
        name, wild, outer, inner = match.groups()
        sizes[name] = -1 if wild else int(outer or 1) * int(inner)
        if outer:
            across[name] = int(outer)
    return sizes, across


def _misfit(text: str, sizes: dict[str, int], count: int, *, given: bool) -> Error:
    """Returns the error that offers to let the first axis take what the others leave."""
    first, tail = next(iter(sizes)), text.split(",")[1:]
    others = math.prod(size for name, size in sizes.items() if name != first and size != -1)
    mended = [f"{first}={count // others}", *tail] if count % others == 0 else [f"{first}={count}"]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    need, wanted = f"{fixed} device{'s' * (fixed > 1)}", fixed
    if -1 in sizes.values():
        need, wanted = f"a multiple of {need}", math.ceil(count / fixed) * fixed
    seen = f"{count} {'is' if count == 1 else 'are'} {'given' if given else 'visible'}"
    simulated = "" if given else f", or simulate {wanted} with --devices {wanted}"
    return Error(f"mesh {text} needs {need}, {seen}; try {','.join(mended)}{simulated}")


def _hybrid(
    text: str, sizes: dict[str, int], across: dict[str, int], devices: list[Any]
) -> np.ndarray:
    """Lays the devices out with the outer factors across slices, or across hosts."""
    hosts = len({getattr(device, "slice_index", None) for device in devices}) == 1
    outers = [across.get(name, 1) for name in sizes]
    inners = [size // outer for size, outer in zip(sizes.values(), outers, strict=True)]
    try:
        return create_hybrid_device_mesh(inners, outers, devices, process_is_granule=hosts)
    except ValueError as error:
        flat = ",".join(f"{name}={size}" for name, size in sizes.items())
        reason = str(error).splitlines()[0]
        raise Error(f"mesh {text} does not lie as the devices do ({reason}); try {flat}") from error


def local_batch(global_batch: int, mesh: Mesh, axis: str | tuple[str, ...] = "data") -> int:
    """Returns how many rows of the global batch this process holds, sharded over `axis`."""
    wanted = (axis,) if isinstance(axis, str) else axis
    spec = PartitionSpec(tuple(name for name in wanted if name in mesh.shape))
    rows = NamedSharding(mesh, spec).addressable_devices_indices_map((global_batch,))
    return sum(b - a for a, b in {i[0].indices(global_batch)[:2] for i in rows.values() if i})


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
