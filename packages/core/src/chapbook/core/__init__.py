"""The small base that every chapbook package stands on.

Names are imported on first use, so that a package without JAX never loads it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chapbook.core.errors import Error, MissingExtra, TableError

if TYPE_CHECKING:
    from chapbook.core import cli, datasets, experts, io, transformer
    from chapbook.core.checkpoint import Checkpoints
    from chapbook.core.compilation import compiled_once
    from chapbook.core.config import configure
    from chapbook.core.data import Batches, arrays, frame, place, tokens
    from chapbook.core.io import append_jsonl, write_atomic
    from chapbook.core.meshes import init, local_batch, mesh, replicated, simulate
    from chapbook.core.run import Run
    from chapbook.core.sharding import (
        RULES,
        axes,
        constrain,
        create,
        describe,
        like,
        names,
        shardings,
        specs,
        use,
    )
    from chapbook.core.tables import expand, read_table, scan_table, write_table
    from chapbook.core.train import Log, Policy, Result, Stop, compile_step, fit, mean_over
    from chapbook.core.weights import load_weights, save_weights

_HOMES = {
    "checkpoint": "Checkpoints",
    "compilation": "compiled_once",
    "config": "configure",
    "data": "Batches arrays frame place tokens",
    "io": "append_jsonl write_atomic",
    "meshes": "init local_batch mesh replicated simulate",
    "run": "Run",
    "sharding": "RULES axes constrain create describe like names shardings specs use",
    "tables": "expand read_table scan_table write_table",
    "train": "Log Policy Result Stop compile_step fit mean_over",
    "weights": "load_weights save_weights",
}
_HOME = {name: home for home, held in _HOMES.items() for name in held.split()}
_MODULES = ("cli", "datasets", "experts", "io", "transformer")
_EXTRA = ("jax", "equinox", "optax", "orbax", "safetensors")

__all__ = [
    "RULES", "Batches", "Checkpoints", "Error", "Log", "MissingExtra", "Policy", "Result", "Run",
    "Stop", "TableError", "append_jsonl", "arrays", "axes", "cli", "compile_step", "compiled_once",
    "configure", "constrain", "create", "datasets", "describe", "expand", "experts", "fit", "frame",
    "init", "io", "like", "load_weights", "local_batch", "mean_over", "mesh", "names", "place",
    "read_table", "replicated", "save_weights", "scan_table", "shardings", "simulate", "specs",
    "tokens", "transformer", "use", "write_atomic", "write_table",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("chapbook-core")
    if name not in _MODULES and name not in _HOME:
        raise AttributeError(f"module 'chapbook.core' has no attribute {name!r}")
    try:
        module = import_module(f"chapbook.core.{_HOME.get(name, name)}")
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise MissingExtra(
            f"chapbook.core.{name} needs {'JAX' if problem.name == 'jax' else problem.name}; "
            "install it with: pip install 'chapbook-core[jax]'"
        ) from None
    value = globals()[name] = module if name in _MODULES else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
