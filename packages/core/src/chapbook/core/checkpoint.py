"""Checkpoints that can be restored on any mesh: five methods over Orbax's manager.

A step is a folder that holds `state`, the arrays of a tree by their dotted paths, and `extra`, a
small JSON document. Orbax writes it in the background, and puts the folder in place only when it
is whole. Static fields and functions are not saved; restoring takes them from `like`.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint import checkpoint_managers as policies

from chapbook.core.errors import Error
from chapbook.core.trees import filled, named

_log = logging.getLogger(__name__)


class Checkpoints(AbstractContextManager):
    """The checkpoints of one run.

    Half-written steps that a killed process left are removed when the folder is opened. Use it as
    a context manager, or close it: a save that is under way when the interpreter exits is lost.

    Args:
        folder: Where the steps lie; made if missing.
        keep: How many of the latest steps to keep.
        keep_every: Also keep every step that is a multiple of this.
        every_minutes: `save` does nothing until so long after the last saved step.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        keep_every: int | None = None,
        every_minutes: float | None = None,
    ):
        # Orbax takes absolute paths only; Path would mangle the "//" of a remote address.
        self.folder = str(folder) if "://" in str(folder) else str(Path(folder).absolute())
        self._unreadable: set[int] = set()
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every is not None:
            kept.append(policies.EveryNSteps(keep_every))
        seconds = None if every_minutes is None else round(60 * every_minutes)
        due = policies.ContinuousCheckpointingPolicy(minimum_interval_secs=seconds)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            save_decision_policy=None if seconds is None else due,
            cleanup_tmp_directories=True,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any] | None = None, force: bool = False
    ) -> bool:
        """Starts saving a step; returns as soon as its arrays may be changed or donated.

        Args:
            step: The number of updates that the state has seen; greater than the latest saved.
            state: Any tree. Arrays, typed PRNG keys and numbers are saved, all else is left out.
            extra: Values for JSON: the data's position, say.
            force: Save even if `every_minutes` have not passed.

        Returns:
            Whether the step is being saved. It is not when it is not due, or not newer than the
            latest.
        """
        extra = dict(extra or {})
        json.dumps(extra)  # raises here, where the caller sees it, not in the writing thread
        latest = self.latest()
        if latest is not None and step <= latest:
            return False
        arrays, keys = {}, {}
        for path, leaf in named(state, _is_data).items():
            if _is_key(leaf):
                keys[path] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            arrays[path] = leaf if isinstance(leaf, jax.Array) else np.array(leaf)
        if self._unreadable:
            self._set_aside()
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays, custom_metadata={"keys": keys}),
            extra=ocp.args.JsonSave(extra),
        )
        return self._manager.save(step, args=items, force=force)

    def restore(self, like: Any, step: int | None = None, *, cast: bool = False) -> tuple[Any, Any]:
        """Reads a step onto the devices that `like` names.

        Args:
            like: The tree to fill: arrays, or `jax.ShapeDtypeStruct`s with shardings; without one,
                an array goes uncommitted to the default device. A dict may leave out whole
                entries of the saved top level (`{"params": ...}`); they are not read.
            step: Which step; the latest that can be read if not given.
            cast: Convert arrays whose type differs from `like`'s.

        Returns:
            The tree, and the `extra` that was saved with it.

        Raises:
            Error: If there is no such step, no step can be read, or the saved tree does not fit.
        """
        self.wait()
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no step {step}"
            found = f"; it has {', '.join(map(str, steps))}" if steps else ""
            raise Error(f"{self.folder}: {wanted}{found}")
        candidates = [step] if step is not None else steps
        while True:
            candidate = candidates.pop()
            try:
                return self._read(candidate, like, cast)
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).strip().partition("\n")[0][:200]
                told = f"{self.folder}: step {candidate} cannot be read ({reason})"
                if not candidates:
                    raise Error(told, "pick another step, or start again with --fresh") from error
            _log.warning("%s; going back to the step before", told)
            self._unreadable.add(candidate)

    def _read(self, step: int, like: Any, cast: bool) -> tuple[Any, Any]:
        saved = self._manager.item_metadata(step).state
        if saved is None:
            raise ValueError("its description of the arrays is missing")
        keys = (saved.custom_metadata or {}).get("keys", {})
        wanted = named(like, _is_data)
        if problems := _differences(wanted, saved.tree, keys, isinstance(like, dict), cast):
            more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
            listed = "; ".join(problems[:20])
            raise Error(f"{self.folder}: step {step} does not fit: {listed}{more}")
        items: dict[str, Any] = {"extra": ocp.args.JsonRestore()}
        if wanted:
            items["state"] = ocp.args.PyTreeRestore(
                item=dict.fromkeys(wanted, 0),
                restore_args={path: _how(leaf, cast) for path, leaf in wanted.items()},
                partial_restore=True,
            )
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        values = {path: _as(x, found["state"][path], keys.get(path)) for path, x in wanted.items()}
        for path, leaf in named(like).items():
            if isinstance(leaf, jax.ShapeDtypeStruct) and path not in values:
                values[path] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        return filled(like, values), found["extra"]

    def _set_aside(self) -> None:
        """Renames the steps that could not be read: they no longer count, yet nothing is lost."""
        if jax.process_index() == 0:
            for step in self._unreadable:
                folder = self._manager.directory / str(step)
                folder.rename(f"{folder}.unreadable-{time.strftime('%Y%m%dT%H%M%S')}")
        sync_global_devices("chapbook.core.checkpoint: unreadable steps renamed")
        self._manager.reload()
        self._unreadable.clear()

    def steps(self) -> list[int]:
        """Returns the saved steps, in order."""
        return sorted(set(self._manager.all_steps()) - self._unreadable)

    def latest(self) -> int | None:
        """Returns the latest saved step, if there is any."""
        return max(self.steps(), default=None)

    def wait(self) -> None:
        """Waits until the last save is on disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._manager.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_data(leaf: Any) -> bool:
    """Returns whether a leaf is saved; Orbax cannot store arrays of size 0."""
    kinds = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, bool, int, float, complex)
    return isinstance(leaf, kinds) and getattr(leaf, "size", 1) > 0


def _differences(
    wanted: dict[str, Any], saved: dict[str, Any], keys: dict[str, str], partial: bool, cast: bool
) -> list[str]:
    """Returns what keeps the saved arrays from filling the wanted ones, a phrase each."""
    tops = {path.partition(".")[0] for path in (wanted if partial else saved)}
    problems = [f"missing {path}" for path in wanted if path not in saved]
    for path, there in saved.items():
        if path not in wanted:
            if path.partition(".")[0] in tops:
                problems.append(f"unexpected {path}")
            continue
        dtype, shape, here = there.dtype, tuple(there.shape), wanted[path]
        if path in keys:
            dtype, shape = jax.random.key(0, impl=keys[path]).dtype, shape[:-1]
        if shape != np.shape(here):
            problems.append(f"{path} is {shape}, not {np.shape(here)}")
        elif dtype != _dtype(here) and (not cast or path in keys or _is_key(here)):
            problems.append(f"{path} is {dtype}, not {_dtype(here)} (cast=True converts numbers)")
    return problems


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.dtype(type(leaf))


def _how(leaf: Any, cast: bool) -> ocp.RestoreArgs:
    """Returns how Orbax reads a leaf: onto its devices if they are fixed, else into NumPy."""
    dtype = leaf.dtype if cast and hasattr(leaf, "dtype") and not _is_key(leaf) else None
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype)


def _as(leaf: Any, value: Any, key_impl: str | None) -> Any:
    """Returns a value that was read as the kind of leaf that was asked for."""
    if key_impl is not None:
        return jax.random.wrap_key_data(value, impl=key_impl)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jnp.asarray(value)
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(value)[()] if isinstance(leaf, np.generic) else value
    return type(leaf)(value.item())
