"""Device meshes from a line of text, simulated devices, and many processes as one.

The module is called `meshes` so that `chapbook.core.mesh` can be the function.
"""

import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # the only door to JAX's launcher detection
from jax._src.xla_bridge import backends_are_initialized
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chapbook.core.errors import Error

GRAMMAR = (
    "write name=size pairs with commas between them, such as data=4,model=2; a size is a whole "
    "number, -1 (the rest, once) or AxB (A slices or hosts with B devices in each)"
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
    if coordinator is None or processes is None or process is None:
        raise Error(
            f"several processes are meant, but not all of {values} are known",
            "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process",
        )
    host, _, port = coordinator.rpartition(":")
    if not 0 <= process < processes or not host or not port.isdecimal():
        raise Error(
            f"{values} do not fit together",
            "the coordinator is host:port, and process is a number from 0 to processes - 1",
        )
    if backends_are_initialized():
        raise Error("call chapbook.core.init() before any JAX computation")
    try:
        if process > 0:
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


def _await_port(host: str, port: int, timeout: float) -> None:
    """Waits until process 0 listens: where it does not, JAX would abort the whole process."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), max(0.1, end - time.monotonic())).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def _whole(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise Error(f"{variable}={text} is not a whole number")


def _cluster(launcher: str | None) -> type[ClusterEnv] | None:
    """Returns JAX's view of the launcher that started this process, if there is one."""
    for cluster in ClusterEnv._cluster_types:
        if cluster.name != launcher and (launcher or cluster.opt_in_only_method):
            continue
        # A pod that is not of an indexed job stands alone.
        if cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in os.environ:
            continue
        if cluster.is_env_present():
            return cluster
    if launcher:
        raise Error(f"no launcher {launcher} was found around this process")
    return None


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


@dataclass(frozen=True)
class _Axis:
    name: str
    outer: int  # across slices or hosts
    inner: int  # inside each; -1 for the rest
    hybrid: bool


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
    parsed = _fill(_parse(text), len(found), given=devices is not None)
    names = tuple(axis.name for axis in parsed)
    kind = AxisType.Explicit if explicit else AxisType.Auto
    kinds = (kind,) * len(names)
    if any(axis.hybrid for axis in parsed):
        return Mesh(_hybrid(parsed, found), names, axis_types=kinds)
    return jax.make_mesh(_sizes(parsed), names, axis_types=kinds, devices=found)


def _parse(text: str) -> list[_Axis]:
    stripped = text.replace(" ", "")
    parsed = []
    for pair in ("data=-1" if stripped in ("", "auto") else stripped).split(","):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)=(?:(\d+)x)?(\d+|-1)", pair)
        if match is None or (match[2] and match[3] == "-1"):
            raise Error(f'mesh {text}: "{pair}" is not understood; {GRAMMAR}')
        parsed.append(_Axis(match[1], int(match[2] or 1), int(match[3]), bool(match[2])))
    if repeated := [n for n, count in Counter(axis.name for axis in parsed).items() if count > 1]:
        raise Error(f"mesh {text}: {repeated[0]} stands there twice; {GRAMMAR}")
    if empty := [axis.name for axis in parsed if 0 in (axis.outer, axis.inner)]:
        raise Error(f"mesh {text}: {empty[0]} has size 0; {GRAMMAR}")
    if sum(axis.inner == -1 for axis in parsed) > 1:
        raise Error(f"mesh {text}: -1 stands there more than once; {GRAMMAR}")
    return parsed


def _fill(parsed: list[_Axis], count: int, *, given: bool) -> list[_Axis]:
    """Puts the rest in the place of -1, and holds the product against the devices."""
    wild = any(axis.inner == -1 for axis in parsed)
    fixed = math.prod(size for size in _sizes(parsed) if size != -1)
    rest, left = divmod(count, fixed)
    if not left and (rest == 1 or wild) and rest:
        return [replace(axis, inner=rest) if axis.inner == -1 else axis for axis in parsed]
    # The first axis is the one that people have to spare: data.
    others = _sizes(parsed)[1:]
    fitting, left = divmod(count, math.prod(size for size in others if size != -1))
    mended = [fitting, *(1 if size == -1 else size for size in others)]
    if left or not fitting:
        mended = [count, *(1 for _ in others)]
    wanted = math.ceil(count / fixed) * fixed if wild else fixed
    fix = "try " + ",".join(f"{a.name}={size}" for a, size in zip(parsed, mended, strict=True))
    if not given:
        fix += f", or simulate {wanted} with --devices {wanted}"
    need = f"a multiple of {fixed}" if wild else fixed
    raise Error(
        f"mesh {_text(parsed)} needs {need} device{'s' * (need != 1)}, "
        f"{count} {'is' if count == 1 else 'are'} {'given' if given else 'visible'}; {fix}"
    )


def _hybrid(parsed: list[_Axis], devices: list[Any]) -> np.ndarray:
    """Lays the devices out with the outer factors across slices, or across hosts."""
    slices = Counter(getattr(device, "slice_index", None) for device in devices)
    hosts = Counter(device.process_index for device in devices)
    groups = slices if len(slices) > 1 else hosts
    outer = math.prod(axis.outer for axis in parsed)
    if outer != len(groups) or len(set(groups.values())) > 1:
        flat = ",".join(f"{axis.name}={axis.outer * axis.inner}" for axis in parsed)
        raise Error(
            f"mesh {_text(parsed)} spans {outer} slices or hosts with {len(devices) // outer} "
            f"devices in each, the devices lie as {'+'.join(map(str, groups.values()))}; try {flat}"
        )
    return create_hybrid_device_mesh(
        [axis.inner for axis in parsed],
        [axis.outer for axis in parsed],
        devices,
        process_is_granule=groups is hosts,
    )


def _sizes(parsed: list[_Axis]) -> tuple[int, ...]:
    return tuple(axis.outer * axis.inner for axis in parsed)


def _text(parsed: list[_Axis]) -> str:
    return ",".join(
        f"{axis.name}={axis.outer}x{axis.inner}" if axis.hybrid else f"{axis.name}={axis.inner}"
        for axis in parsed
    )


def local_batch(global_batch: int, mesh: Mesh, axis: str | tuple[str, ...] = "data") -> int:
    """Returns how many rows of the global batch this process holds, sharded over `axis`."""
    wanted = (axis,) if isinstance(axis, str) else axis
    spec = PartitionSpec(tuple(name for name in wanted if name in mesh.shape))
    try:
        rows = NamedSharding(mesh, spec).addressable_devices_indices_map((global_batch,))
    except ValueError as error:
        raise Error(f"a batch of {global_batch} does not divide over {spec} of {mesh}") from error
    return sum(b - a for a, b in {i[0].indices(global_batch)[:2] for i in rows.values() if i})


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
