"""One function that trains: `fit`, which survives a kill, and what it is made of.

`fit` is written with `compile_step`, `Checkpoints`, `Batches` and `Log` alone. A loop of another
kind (several losses, reinforcement learning) is written with these four directly.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from jax.experimental.multihost_utils import reached_preemption_sync_point
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Key, PyTree

from chapbook.core.checkpoint import Checkpoints
from chapbook.core.data import Placed, place
from chapbook.core.errors import Error
from chapbook.core.log import Log, peak_flops
from chapbook.core.meshes import mesh as mesh_of
from chapbook.core.meshes import replicated
from chapbook.core.run import Run
from chapbook.core.sharding import RULES, Patterns, Rules, like, shardings, use
from chapbook.core.step import Policy, State, Step, Update, cast, compile_step, update

__all__ = [
    "Log", "Policy", "Result", "State", "Step", "Stop", "Update",
    "compile_step", "fit", "mean_over", "update",
]  # fmt: skip

# No step reaches the last number that a key can be folded with.
EVALUATION = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Stop:
    """Stops training early, and keeps the best model apart.

    Args:
        metric: The name of an evaluation's metric, such as `valid/loss`.
        patience: Evaluations without improvement after which training stops.
        mode: Whether the least (`min`) or the greatest (`max`) value is best.
        min_delta: By how much a value must be better to count as an improvement.
    """

    metric: str
    patience: int = 5
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise Error(f'Stop: mode="{self.mode}" is neither min nor max')

    def improves(self, value: float, best: float | None) -> bool:
        """Returns whether a value counts as better than the best before; NaN never does."""
        if best is None:
            return value == value
        gain = best - value if self.mode == "min" else value - best
        return gain > self.min_delta


@dataclasses.dataclass(frozen=True)
class Result:
    """What `fit` returns.

    Attributes:
        model: The trained model; with `stop`, the best one, of step `best`.
        extra: The non-trained state that belongs to the model.
        step: The steps that were done.
        metrics: One row per window of steps.
        reason: Why training ended: `steps`, `data` (the batches ended), `early stop`, `preempted`
            (SIGTERM), `interrupted` (Ctrl-C) or `nan`.
        best: The step of the best evaluation, if `stop` was given.
    """

    model: PyTree
    extra: PyTree
    step: int
    metrics: pl.DataFrame
    reason: str
    best: int | None = None

    @property
    def exit_code(self) -> int:
        """What a command line exits with: 143 when preempted, 130 when interrupted, else 0."""
        return {"preempted": 143, "interrupted": 130}.get(self.reason, 0)


def fit(
    loss: Callable[..., Any],
    model: PyTree,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Mapping[str, Any]],
    *,
    steps: int,
    key: Key[Array, ""],
    run: Run | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    patterns: Patterns = (),
    accumulate: int = 1,
    steps_per_dispatch: int = 1,
    precision: str | Policy = "float32",
    evaluate: Callable[..., Mapping[str, Any]] | None = None,
    evaluate_every: int = 500,
    stop: Stop | None = None,
    save_every: int = 500,
    keep: int = 3,
    log_every: int = 20,
    on_nan: str = "skip",
    nan_limit: int = 5,
    spike: float | Callable[[Iterable[float]], float] | None = None,
    spike_steps: int = 1,
    flops: float | None = None,
    units: int | None = None,
    profile: str | None = None,
    trainable: Any = eqx.is_inexact_array,
    extra: PyTree = None,
    callbacks: Iterable[Callable[[int, Callable[[], PyTree], dict[str, Any]], Any]] = (),
    quiet: bool = False,
) -> Result:
    """Trains a model; a run that was killed goes on when the same call is made again.

    Step `s` updates the parameters by the gradient of `loss(model, batch, fold_in(key, s))`, so
    that nothing random is carried along. With a `run`, the folder holds all that the next step
    depends on (parameters, optimizer, `extra`, step, the data's position, early stopping, open
    metrics), and a run that was killed at any point ends with the same parameters and rows as an
    unbroken one.

    Args:
        loss: `loss(model, batch, key)`, or `loss(model, batch, key, extra)` if `extra` is given.
            Returns a scalar mean, or the scalar and a dict: metrics by name, `weight`, the count
            behind the mean (default 1), and `extra`, the next non-trained state.
        model: A tree of arrays, an `eqx.Module` say. It is copied, not consumed.
        optimizer: An Optax transformation. Clipping, decay and averages belong to its chain.
        batches: `Batches`, what `place` returns on the same mesh, or any iterable of dicts of
            arrays, rows first. To resume, it needs `get_state` and `set_state`, as in grain.
        steps: Steps in all, those of the resumed run among them.
        key: From which all of the training's randomness is folded.
        run: The folder; None keeps everything in memory.
        mesh: The devices; all that are visible, on `data`, if not given.
        rules: From logical names to mesh axes.
        patterns: Names for modules without `axes` fields, as `shardings` takes them.
        accumulate: Microbatches per step; the result is that of the whole batch.
        steps_per_dispatch: Steps that one call of the compiled program makes at most, in a loop
            over as many batches. Gains where a step takes less than about a millisecond. Calls are
            shorter where an evaluation, a checkpoint or a row is due, so let it divide
            `evaluate_every`, `save_every` and `log_every`. A signal waits for the end of a call.
        precision: `float32`, `bfloat16` (parameters stay float32), or a `Policy`.
        evaluate: `evaluate(model, key)`, or `evaluate(model, key, extra)` if `extra` is given,
            returns metrics; names without a slash are put under `valid/`. See `mean_over`.
        evaluate_every: Steps between evaluations; the last step is evaluated too.
        stop: When to stop early. The best model is saved at once, in `best/`, and returned.
        save_every: Steps between checkpoints; the last step is saved too.
        keep: Checkpoints that are kept.
        log_every: Steps per row of metrics.
        on_nan: Where the loss or gradient is not finite: `skip` the update; `rewind` to the last
            good checkpoint after `nan_limit` skips in a row, or losses above `spike`, and go on
            with the data after those, three times at most; `stop` with the parameters before; or
            `off`. What happens is in `events.jsonl`.
        nan_limit: Skips in a row before rewinding.
        spike: How often the median of the last 100 losses counts as divergence, or a function from
            those losses, 20 at least, to the bound; needs `rewind`.
        spike_steps: Losses above it, or skipped, in a row before rewinding. A checkpoint is healthy
            if the trouble began as many steps after it, or more; the oldest one serves if none is.
        flops: Model FLOPs of a step, for `mfu`; without it the compiler's count gives `mfu`, or
            `hfu` if the step recomputes activations.
        units: Tokens in a step, for `tokens/s`; the size of the batch's `tokens` if not given.
        profile: `"10:15"` traces steps 10 to 15 into the run's `profile` folder.
        trainable: Which leaves are trained: a function of a leaf, or a tree of booleans.
        extra: Non-trained state, such as batch statistics; a tree of arrays.
        callbacks: Called as `(step, model_fn, row)` at the end of every window of steps;
            `model_fn()` copies the model of `step`. Rows come one window late: the first is empty,
            later `row["step"]` may be before `step`, and the last call has the last row.
        quiet: Whether to show no progress.

    Returns:
        The model, the metrics, and why training ended.

    Raises:
        Error: An option is wrong, the data cannot be resumed, or a step needs too much memory.
    """
    if on_nan not in ("skip", "rewind", "stop", "off"):
        raise Error(f'on_nan="{on_nan}" is none of skip, rewind, stop and off')
    if spike is not None and on_nan != "rewind":
        raise Error(f'spike needs on_nan="rewind", not "{on_nan}"')
    if run is None and (on_nan == "rewind" or profile):
        raise Error(f"{'profile' if profile else 'on_nan=rewind'} needs a run to write to")
    if steps_per_dispatch < 1:
        raise Error(f"steps_per_dispatch={steps_per_dispatch} is below 1")
    policy, window = Policy.of(precision), _window(profile)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    with contextlib.ExitStack() as stack:
        mesh = mesh or mesh_of("auto")
        stack.enter_context(use(mesh, rules))
        params, frozen, static, plan = _split(model, trainable, policy, mesh, rules, patterns)

        def assemble(params: PyTree) -> PyTree:
            return eqx.combine(params, frozen, static)

        data = stack.enter_context(_placed(batches, mesh, rules))
        guard = _Guard(on_nan, nan_limit, spike, spike_steps, run)
        keeper = _Keeper(run, stop, data, guard)
        if run:
            keeper.rolling = stack.enter_context(Checkpoints(run.checkpoints, keep))
        if run and stop:
            keeper.apart = stack.enter_context(Checkpoints(run.path / "best", keep=1))
        state, log_state = keeper.resume(
            _first_state(params, plan, optimizer, extra, replicated(mesh)), steps
        )
        del params  # the state's own from now on, which the steps consume
        step = int(state.step)
        reason = "early stop" if keeper.exhausted else "steps" if step >= steps else None
        first = next(data, None) if reason is None else None
        if first is None:
            if step == 0 < steps:
                raise Error("the data holds no batch")
            rows = run.rows() if run else []
            return keeper.result(state, assemble, step, rows, reason or "data")
        program = compile_step(
            update(
                loss, optimizer, static, key_impl=jax.random.key_impl(key), accumulate=accumulate,
                policy=policy, on_nan=on_nan, plan=plan,
            ),
            state,
            # A typed key among the arguments would leave the fast path of every call.
            (frozen, _put(jax.random.key_data(key), replicated(mesh))),
            first,
            steps_per_dispatch=steps_per_dispatch,
        )  # fmt: skip
        del state
        log = Log(
            program.names, run=run, every=log_every, steps=steps, counts=_counts(first, units),
            ideal=_ideal(program, flops, mesh), quiet=quiet, watch=guard.see,
        )  # fmt: skip
        stack.callback(log.close)
        log.set_state(log_state, step)
        if run:
            run.describe(**_facts(program, mesh))
        if on_nan == "rewind":
            keeper.save(step, program, log)
        told = len(log.rows)

        def tell(closed: bool) -> None:
            nonlocal told
            for row in log.rows[told:] or [{}] * (closed and not told):
                for callback in callbacks:
                    callback(step, lambda: assemble(_copy(program.state.params)), row)
            told = len(log.rows)

        trace = stack.enter_context(contextlib.ExitStack())
        caught = stack.enter_context(_signals())
        every = (log_every, save_every, *([evaluate_every] if evaluate else []))
        once = (steps, *((window[0] - 1, window[1]) if window else ()))
        groups = _groups(first, data, step, steps_per_dispatch, every, once)
        for turn, group in enumerate(groups, 1):
            if run and window and step + 1 == window[0]:
                trace.enter_context(_tracing(program, log, run))
            values = program(*(batch for batch, _ in group))
            for row, (_, position) in enumerate(group):
                step += 1
                log.add(step, values, position, row)
            if window and step == window[1]:
                trace.close()
            found = None
            if evaluate and (step % evaluate_every == 0 or step == steps):
                program.wait()
                with log.pause():
                    found = _evaluate(evaluate, assemble, program.state, key)
                log.attach(found)
            if closed := bool(found) or step % log_every == 0 or step == steps:
                if on_nan == "rewind":
                    log.flush()
                if guard.bad and not keeper.rewind(step, program, log):
                    reason = "nan"
                    break
                if found and keeper.judge(step, program, log, found):
                    reason = "early stop"
            if step % save_every == 0:
                keeper.save(step, program, log)
            tell(closed)
            reason = reason or ("steps" if step == steps else caught(turn))
            if reason:
                break
        else:
            reason = "data"
        trace.close()
        if reason in ("steps", "data"):
            log.close_window()
        if reason != "nan":
            keeper.save(step, program, log)
        if guard.bad and on_nan == "stop":
            reason = "nan"
        tell(closed=False)
        step = int(program.state.step)
        if ending := _ending(reason, step, run, guard):
            log.say(ending)
        return keeper.result(program.state, assemble, step, log.rows, reason)


class _Guard:
    """Watches the loss of every step, in order, for what `on_nan` acts upon."""

    def __init__(self, on_nan: str, skips: int, spike: Any, steps: int, run: Run | None):
        self.on_nan, self.skips, self.steps, self.run = on_nan, skips, steps, run
        self.spike: Any = spike if callable(spike) or spike is None else lambda x: spike * median(x)
        self.bad: str | None = None
        self.streak = self.since = self.rewinds = 0
        self.losses: deque[float] = deque(maxlen=100)

    def see(self, step: int, values: dict[str, float], position: Any) -> None:
        if self.bad and self.on_nan == "stop":
            return
        loss = values["loss"]
        bound = self.spike(self.losses) if self.spike and len(self.losses) >= 20 else math.inf
        if values["ok"] and not loss > bound:
            self.streak = 0
            self.losses.append(loss)
            return
        kind = "spike" if values["ok"] else "skipped"
        if self.run:
            if isinstance(position, dict):
                position = {k: v for k, v in position.items() if k != "fingerprint"}
            self.run.event(kind, step=step, loss=str(loss), data=position)
        self.streak += 1
        if self.streak == 1 and not self.bad:
            self.since = step
        if self.on_nan == "stop":
            self.bad = f"the loss is {loss} and its gradient's norm {values['grad_norm']}"
        elif self.on_nan == "rewind" and kind == "spike" and self.streak >= self.steps:
            self.bad = f"the loss {loss:.4g} is above {bound:.4g}, too much for the last ones"
        elif self.on_nan == "rewind" and kind == "skipped" and self.streak >= self.skips:
            self.bad = f"{self.streak} updates in a row were not finite"

    def get_state(self) -> dict[str, Any]:
        names = ("bad", "streak", "since", "rewinds")
        return {name: getattr(self, name) for name in names} | {"losses": [*self.losses]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.losses = deque(state["losses"], maxlen=100)


class _Keeper:
    """What outlives a kill: checkpoints, and all that is saved with the arrays."""

    def __init__(self, run: Run | None, stop: Stop | None, data: Placed, guard: _Guard):
        self.run, self.stop, self.data, self.guard = run, stop, data, guard
        self.rolling: Checkpoints | None = None
        self.apart: Checkpoints | None = None
        self.score: dict[str, Any] = {"value": None, "step": None, "worse": 0}
        self.best: Any = None

    @property
    def exhausted(self) -> bool:
        return self.stop is not None and self.score["worse"] >= self.stop.patience

    def resume(self, state: State, steps: int) -> tuple[State, dict[str, Any]]:
        """Returns the state of the latest checkpoint, or the first one, and the log's."""
        if not self.rolling or not self.run or self.rolling.latest() is None:
            if self.run:
                self.run.cut(0)
            return state, {"seconds": 0.0, "open": []}
        state, saved = self._load(self.rolling, state, None)
        step = int(state.step)
        self.run.cut(step)
        if told := saved["data"]:
            self.data.set_state(told["bytes"].encode() if set(told) == {"bytes"} else told)
        elif step < steps:
            raise Error("these batches cannot be resumed: they have no get_state and set_state")
        self.guard.set_state(saved["guard"])
        self.score = saved["score"]
        # A kill between the two saves of an improvement leaves the second to be made good.
        if self.apart and self.score["step"] == step:
            self.apart.save(step, (state.params, state.extra), force=True)
        return state, saved["log"]

    def save(self, step: int, program: Step, log: Log) -> None:
        log.flush()
        if self.guard.bad or not self.rolling:
            return
        if self.apart:
            self.apart.wait()
        told = self.data.get_state()
        extra = {
            "data": {"bytes": told.decode()} if isinstance(told, bytes) else told,  # grain's loader
            "guard": self.guard.get_state(), "score": self.score, "log": log.get_state(),
        }  # fmt: skip
        with log.pause():
            self.rolling.save(step, program.state, extra, force=True)

    def judge(self, step: int, program: Step, log: Log, found: Mapping[str, Any]) -> bool:
        """Counts an evaluation; returns whether training is to stop."""
        if not self.stop:
            return False
        if self.stop.metric not in found:
            raise Error(f"stop: no metric {self.stop.metric}; evaluate gives {', '.join(found)}")
        value = found[self.stop.metric]
        if not self.stop.improves(value, self.score["value"]):
            self.score = {**self.score, "worse": self.score["worse"] + 1}
            return self.exhausted
        self.score = {"value": value, "step": step, "worse": 0}
        best = (program.state.params, program.state.extra)
        if self.rolling and self.apart:
            # In this order, no checkpoint speaks of a best model that is not the one kept.
            self.save(step, program, log)
            self.rolling.wait()
            self.apart.save(step, best, force=True)
        else:
            self.best = _copy(best)
        return False

    def rewind(self, step: int, program: Step, log: Log) -> bool:
        """Puts back the last good state, and goes on with the data as it stands."""
        guard = self.guard
        if guard.on_nan != "rewind" or not self.rolling or not self.run:
            return False
        before = [s for s in self.rolling.steps() if s < guard.since]
        if not before or guard.rewinds == 3:
            return False
        good = max((s for s in before if s + guard.steps <= guard.since), default=min(before))
        counts = _copy({"step": program.state.step, "skipped": program.state.skipped})
        state, _ = self._load(self.rolling, program.state, good)
        program.state = state._replace(**counts)
        self.run.event("rewind", step=step, to=good, since=guard.since, why=guard.bad)
        log.say(f"step {step}: {guard.bad}; back to the parameters of step {good}")
        guard.bad, guard.streak, guard.rewinds = None, 0, guard.rewinds + 1
        self.save(step, program, log)
        return True

    def _load(self, checkpoints: Checkpoints, tree: PyTree, step: int | None) -> tuple[Any, Any]:
        """Restores into the place of a tree, which is given up first to make room."""
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        jax.tree.map(lambda x: x.delete(), tree)
        return checkpoints.restore(shapes, step)

    def result(
        self, state: State, assemble: Callable[..., PyTree], step: int, rows: list, reason: str
    ) -> Result:
        params, extra, best = state.params, state.extra, self.score["step"]
        if best is not None and best != step:
            if self.apart:
                self.best, _ = self._load(self.apart, (params, extra), best)
            params, extra = self.best
        table = pl.from_dicts(rows, infer_schema_length=None) if rows else pl.DataFrame()
        return Result(assemble(params), extra, step, table, reason, best)


def _ending(reason: str, step: int, run: Run | None, guard: _Guard) -> str | None:
    if reason == "nan":
        return f"stopped at step {step}: {guard.bad}; restart with another seed, rate or on_nan"
    told = {"preempted": "SIGTERM", "interrupted": "Ctrl-C"}.get(reason)
    saved = "saved; the same command goes on from there" if run else "not saved: no run folder"
    return told and f"stopped by {told} at step {step}, {saved}"


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], str | None]]:
    """Gives a function that returns, after the n-th call, why to stop; all processes agree."""
    numbers: list[int] = []
    several = jax.process_count() > 1

    def note(number: int, frame: Any) -> None:
        if numbers:
            raise KeyboardInterrupt
        numbers.append(number)
        if several:  # JAX tells the other processes of a SIGTERM, and of nothing else
            os.kill(os.getpid(), signal.SIGTERM)

    def caught(turn: int) -> str | None:
        # JAX agrees on the next of consecutive numbers, which steps of several at once are not.
        if not (reached_preemption_sync_point(turn) if several else numbers):
            return None
        return "interrupted" if signal.SIGINT in numbers else "preempted"

    before = {}
    if threading.current_thread() is threading.main_thread():
        # With several processes, SIGTERM belongs to JAX's own notifier.
        for number in (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _placed(batches: Any, mesh: Mesh, rules: Rules) -> Iterator[Placed]:
    if isinstance(batches, Placed):
        yield batches
        return
    with place(batches, mesh, rules) as data:
        yield data
        # What was read ahead goes back, so that the caller's batches stand where training ended.
        if hasattr(batches, "set_state") and (state := data.get_state()) is not None:
            data.set_state(state)


def _groups(
    first: Any, data: Placed, step: int, most: int, every: tuple[int, ...], once: tuple[int, ...]
) -> Iterator[list[tuple[Any, Any]]]:
    """Yields the batches of each call, with the data's state after each.

    No group goes beyond a step at which something is due: a multiple of `every`, or one of `once`.
    """
    queue = itertools.chain([first], data)
    while True:
        due = [n - step % n for n in every] + [last - step for last in once if last > step]
        taken = itertools.islice(queue, min(most, *due))
        group = [(batch, data.get_state()) for batch in taken]
        if not group:
            return
        yield group
        step += len(group)


@contextlib.contextmanager
def _tracing(program: Step, log: Log, run: Run) -> Iterator[None]:
    with log.pause(), jax.profiler.trace(run.path / "profile"):
        yield
        program.wait()
    log.say(f"profile in {run.path / 'profile'}")


def _window(profile: str | None) -> tuple[int, int] | None:
    if profile is None:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise Error(f'profile="{profile}" is not first:last, such as 10:15')
    return int(first), int(last)


def _split(
    model: PyTree, trainable: Any, policy: Policy, mesh: Mesh, rules: Rules, patterns: Patterns
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """Returns copies of the trained arrays, the frozen arrays, all else, and the first's plan."""
    params, rest = eqx.partition(model, trainable)
    frozen, static = eqx.partition(rest, eqx.is_array)
    if not jax.tree.leaves(params):
        raise Error("the model has no parameters to train")
    wide = {axis for axis, size in mesh.shape.items() if size > 1}
    if rules is RULES and wide <= {"data"}:
        whole = jax.tree.map(lambda _: replicated(mesh), eqx.filter(model, eqx.is_array))
    else:
        whole = shardings(eqx.filter(model, eqx.is_array), mesh, rules, patterns)

    def planned(part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, s: None if x is None else s, part, whole, is_leaf=lambda x: x is None
        )

    plan = planned(params)
    params = jax.tree.map(_put, cast(params, policy.param), plan)
    return params, jax.tree.map(_put, frozen, planned(frozen)), static, plan


def _first_state(
    params: PyTree,
    plan: PyTree,
    optimizer: optax.GradientTransformation,
    extra: PyTree,
    whole: Sharding,
) -> State:
    # Without out_shardings, jit puts the optimizer's state on one device.
    init = jax.jit(optimizer.init, out_shardings=like(optimizer, params, plan))
    extra = jax.tree.map(lambda x: _put(x, whole), extra)
    step, skipped = (_put(np.int32(0), whole) for _ in range(2))
    return State(params, init(params), extra, step, skipped)


def _put(x: Any, sharding: Sharding) -> Array:
    """Copies an array to where it is to be; of several processes, each gives its own part."""
    if not isinstance(x, jax.Array) or getattr(x, "weak_type", False):
        x = jnp.asarray(x, jnp.result_type(x))
    if x.sharding == sharding:
        return jnp.copy(x)
    if sharding.is_fully_addressable or not x.is_fully_addressable:
        # On several devices, `device_put` shares the part that lies where it should already, in
        # spite of `may_alias=False`; what is shared would be given away with the first step.
        return jax.device_put(jnp.copy(x), sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _counts(batch: Mapping[str, Any], units: int | None) -> dict[str, int]:
    tokens = units or getattr(batch.get("tokens"), "size", None)
    return {"examples": len(jax.tree.leaves(batch)[0])} | ({"tokens": tokens} if tokens else {})


def _ideal(program: Step, flops: float | None, mesh: Mesh) -> dict[str, float]:
    """Returns the seconds of a step at the devices' peak, under the name of the utilisation."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    work = flops or program.flops
    name = "hfu" if flops is None and program.recomputes else "mfu"
    return {name: work / (peak * mesh.size)} if peak and work else {}


def _facts(program: Step, mesh: Mesh) -> dict[str, Any]:
    return {
        "device": mesh.devices.flat[0].device_kind,
        "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        "parameters": sum(x.size for x in jax.tree.leaves(program.state.params)),
        "compile_seconds": round(program.seconds, 3),
        "flops_per_step": program.flops,
    }


def _evaluate(
    evaluate: Callable[..., Mapping[str, Any]],
    assemble: Callable[[PyTree], PyTree],
    state: State,
    key: Array,
) -> dict[str, float]:
    inputs = (assemble(state.params), jax.random.fold_in(key, EVALUATION))
    found = evaluate(*inputs) if state.extra is None else evaluate(*inputs, state.extra)
    return {n if "/" in n else f"valid/{n}": float(value) for n, value in found.items()}


def mean_over(
    fn: Callable[..., Mapping[str, Any]],
    batches: Iterable[Mapping[str, Any]],
    *,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Callable[..., dict[str, float]]:
    """Makes an evaluation: the mean of each metric over all examples of all processes.

    `mean = sum_i w_i x_i / sum_i w_i` over the examples `i`, with `w_i = 0` where the batch's
    `mask` is False.

    Args:
        fn: `fn(model, batch, key)`, or with `extra` last if `fit` has it. Returns metrics by name,
            one value per example (`[batch]`, or more dimensions), and optionally `weight`, the
            weight of each value, such as 1 for a token and 0 for padding.
        batches: What is iterated anew for each evaluation, such as
            `Batches(source, 256, shuffle=False, epochs=1, drop_last=False)`.
        mesh: As for `fit`.
        rules: As for `fit`.

    Returns:
        `evaluate(model, key, *extra) -> {name: mean}`, for `fit`.
    """

    def pairs(model: PyTree, batch: Mapping[str, Any], key: Array, extra: Any) -> dict[str, Array]:
        values = {n: jnp.asarray(v, jnp.float32) for n, v in fn(model, batch, key, *extra).items()}
        given, mask = values.pop("weight", jnp.float32(1)), batch.get("mask")

        def pair(value: Array) -> Array:
            weight = jnp.broadcast_to(_rows(given, value.ndim), value.shape)
            if mask is not None:
                if value.ndim == 0:
                    raise Error("mean_over: give one value per example, for the batch has a mask")
                weight = jnp.where(_rows(mask, value.ndim), weight, 0)
            # Padding may well give NaN, which 0 * NaN would keep.
            return jnp.stack([jnp.sum(jnp.where(weight > 0, weight * value, 0)), weight.sum()])

        return {name: pair(value) for name, value in values.items()}

    compiled = eqx.filter_jit(pairs)

    def evaluate(model: PyTree, key: Array, *extra: Any) -> dict[str, float]:
        on, found = mesh or mesh_of("auto"), []
        with use(on, rules), place(batches, on, rules) as data:
            for index, batch in enumerate(data):
                found.append(compiled(model, batch, jax.random.fold_in(key, index), extra))
                if on.devices.flat[0].platform == "cpu":
                    jax.block_until_ready(found[-1])  # see Step: one program in flight at most
        if not found:
            raise Error("mean_over: the data holds no batch")
        sums = jax.tree.map(lambda *x: np.sum(x, 0, np.float64), *jax.device_get(found))
        return {name: float(total / weight) for name, (total, weight) in sums.items()}

    return evaluate


def _rows(weight: Array, ndim: int) -> Array:
    """Puts dimensions of size 1 after those of a weight, so that it lines up with the values."""
    return weight.reshape(*weight.shape, *[1] * (ndim - weight.ndim))
