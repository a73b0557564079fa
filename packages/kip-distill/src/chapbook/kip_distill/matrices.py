"""Kernel matrices in files, written block by block, so that an interrupted one goes on."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic, write_json
from chapbook.kip_distill.arrays import fingerprint, read_arrays, write_arrays
from chapbook.kip_distill.kernels import Kernel
from chapbook.kip_distill.precision import computing_in


def write_matrices(
    path: str | Path,
    kernel: Kernel,
    x1: Float[np.ndarray, "n1 ..."],
    x2: Float[np.ndarray, "n2 ..."] | None = None,
    *,
    arch: str,
    get: tuple[str, ...] = ("ntk",),
    rows: int = 256,
    precision: str = "float32",
    mesh: Mesh | None = None,
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> None:
    """Writes kernel matrices to an `npz` or `safetensors` file, an array for each name in `get`.

    Finished rows lie in a folder of the same name and `.parts` until the file is whole.

    Args:
        path: Of the file.
        kernel: Of the network.
        x1: Inputs, a row of the matrix each.
        x2: Inputs, a column each; `x1` if None.
        arch: Name of the kernel, by which interrupted work is known again.
        get: `ntk`, `nngp` or both.
        rows: Of a block.
        precision: Of kernel values, `float32` or `float64`, whatever `jax_enable_x64` says.
        mesh: Devices, with axes `target` and `support`; None for one.
        watch: What the numbers of the missing blocks go through, such as a bar of progress.

    Raises:
        Error: The suffix or the precision is unknown, or the parts belong to other inputs or
            settings.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise Error(f"{path}: the suffix is neither .npz nor .safetensors")
    wide = computing_in(precision)
    x1 = x1.astype(precision)
    other = x1 if x2 is None else x2.astype(precision)
    kernel.check(x1.shape)
    kernel.check(other.shape, x1.shape)
    parts = path.with_name(path.name + ".parts")
    inputs = [fingerprint(x1), fingerprint(other)]
    facts = {"arch": arch, "get": list(get), "rows": rows, "inputs": inputs}
    told = parts / "facts.json"
    if told.exists() and json.loads(told.read_text()) != facts:
        raise Error(f"{parts}: finished rows of other inputs or settings; remove the folder")
    parts.mkdir(parents=True, exist_ok=True)
    write_json(told, facts)
    starts = range(0, len(x1), rows)
    files = [parts / f"rows-{start:08}.npz" for start in starts]
    missing = [place for place, file in enumerate(files) if not file.exists()]
    for place in watch(missing):
        part = x1[starts[place] : starts[place] + rows]
        with wide:
            found = kernel(part, other, get=get, mesh=mesh)
        _save(files[place], dict(zip(get, map(np.asarray, found), strict=True)))
    blocks = [read_arrays(file) for file in files]
    _save(path, {name: np.concatenate([each[name] for each in blocks]) for name in get})
    shutil.rmtree(parts)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        write_arrays(path, arrays)
        return
    from safetensors.numpy import save_file

    write_atomic(path, lambda part: save_file(arrays, part))
