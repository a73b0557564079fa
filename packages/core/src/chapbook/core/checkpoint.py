"""Checkpoints that can be restored on any mesh: five methods over Orbax's manager.

A step is a folder that holds `state`, the arrays of a tree by their dotted paths, and `extra`, a
small JSON document. Orbax writes it in the background, and puts the folder in place only when it
is whole. Static fields and functions are not saved; restoring takes them from `like`.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint import checkpoint_managers as policies

from chapbook.core.errors import Error

_log = logging.getLogger(__name__)
_SHOWN = 20


class Checkpoints:
    """The checkpoints of one run.

    Half-written steps that a killed process left are removed when the folder is opened. Use it as
    a context manager, or close it: a save that is under way when the interpreter exits is lost.

    Args:
        folder: Where the steps lie; made if missing.
        keep: How many of the latest steps to keep.
        keep_every: Also keep every step that is a multiple of this.
        every_minutes: `save` does nothing until so long after the last saved step.
        read_only: Open the folder of a run that another process may still be writing: nothing is
            made, saved or removed.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        keep_every: int | None = None,
        every_minutes: float | None = None,
        *,
        read_only: bool = False,
    ):
        # Orbax takes absolute paths only; Path would mangle the "//" of a remote address.
        self.folder = str(folder) if "://" in str(folder) else str(Path(folder).absolute())
        self._read_only = read_only
        self._manager = self._open(keep, keep_every, every_minutes)
        self._unreadable: set[int] = set()

    def _open(
        self, keep: int, keep_every: int | None, every_minutes: float | None
    ) -> ocp.CheckpointManager:
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every is not None:
            kept.append(policies.EveryNSteps(keep_every))
        due = None
        if every_minutes is not None:
            due = policies.ContinuousCheckpointingPolicy(
                minimum_interval_secs=round(60 * every_minutes)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            save_decision_policy=due,
            cleanup_tmp_directories=not self._read_only,
            create=not self._read_only,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

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
        if self._read_only:
            raise Error(f"{self.folder}: opened with read_only=True, so step {step} is not saved")
        extra = dict(extra or {})
        json.dumps(extra)  # raises here, where the caller sees it, not in the writing thread
        arrays, keys = {}, {}
        for path, leaf in _leaves(state).items():
            if _is_key(leaf):
                keys[path] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            arrays[path] = leaf if isinstance(leaf, jax.Array) else np.array(leaf)
        latest = self.latest()
        if latest is not None and step <= latest:
            return False
        if self._unreadable:
            self._set_aside()
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays, custom_metadata={"keys": keys}),
                extra=ocp.args.JsonSave(extra),
            ),
            force=force,
        )

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
        for candidate in [step] if step is not None else reversed(steps):
            try:
                return self._read(candidate, like, cast)
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).strip().partition("\n")[0][:200]
                said = f"{self.folder}: step {candidate} cannot be read ({reason})"
                if candidate == (step if step is not None else steps[0]):
                    raise Error(said, "pick another step, or start again with --fresh") from error
                _log.warning("%s; going back to the step before", said)
                self._unreadable.add(candidate)
        raise AssertionError

    def _read(self, step: int, like: Any, cast: bool) -> tuple[Any, Any]:
        saved = self._manager.item_metadata(step).state
        if saved is None:
            raise ValueError("its description of the arrays is missing")
        keys = (saved.custom_metadata or {}).get("keys", {})
        wanted = _leaves(like)
        problems = _differences(wanted, like, saved.tree, keys, cast)
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            listed = "; ".join(problems[:_SHOWN])
            raise Error(f"{self.folder}: step {step} does not fit: {listed}{more}")
        items: dict[str, Any] = {"extra": ocp.args.JsonRestore()}
        if wanted:
            items["state"] = ocp.args.PyTreeRestore(
                item=dict.fromkeys(wanted, 0),
                restore_args={path: _how(leaf, cast) for path, leaf in wanted.items()},
                partial_restore=True,
            )
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        flat, structure = jax.tree_util.tree_flatten_with_path(like)
        leaves = [
            _as(leaf, found["state"][name], keys.get(name)) if name in wanted else _empty(leaf)
            for name, leaf in ((_name(path), leaf) for path, leaf in flat)
        ]
        return jax.tree.unflatten(structure, leaves), found["extra"]

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

    def reached_preemption(self, step: int) -> bool:
        """Returns whether the machine is to be taken away; all processes agree on the step."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until the last save is on disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves that hold data by dotted path; Orbax cannot store arrays of size 0."""
    kinds = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, bool, int, float, complex)
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, kinds) and getattr(leaf, "size", 1) > 0:
            if _name(path) in found:
                raise Error(f"two leaves of the state are called {_name(path)}; rename one")
            found[_name(path)] = leaf
    return found


def _differences(
    wanted: dict[str, Any],
    like: Any,
    saved: Mapping[str, Any],
    keys: Mapping[str, str],
    cast: bool,
) -> list[str]:
    """Returns what keeps the saved arrays from filling the wanted ones, a phrase each."""
    problems = [f"missing {path}" for path in wanted if path not in saved]
    tops = {path.partition(".")[0] for path in wanted} if isinstance(like, dict) else None
    problems += [
        f"unexpected {path}"
        for path in saved
        if path not in wanted and (tops is None or path.partition(".")[0] in tops)
    ]
    for path, leaf in wanted.items():
        if path not in saved:
            continue
        there, here = saved[path], leaf
        if _is_key(leaf) or path in keys:
            kind = jax.random.key(0, impl=keys[path]).dtype if path in keys else there.dtype
            if kind != _type(leaf):
                problems.append(f"{path} is {kind}, not {_type(leaf)}")
                continue
            here = jax.eval_shape(jax.random.key_data, leaf)
        if tuple(there.shape) != np.shape(here):
            problems.append(f"{path} is {tuple(there.shape)}, not {np.shape(here)}")
        elif not cast and not _same_type(np.dtype(there.dtype), here):
            problems.append(f"{path} is {there.dtype}, not {_type(here)} (cast=True converts)")
    return problems


def _type(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__


def _same_type(there: np.dtype, here: Any) -> bool:
    if hasattr(here, "dtype"):
        return there == here.dtype
    return there.kind == np.dtype(type(here)).kind


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


def _empty(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return leaf
