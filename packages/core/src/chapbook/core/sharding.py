"""Names on the dimensions of parameters and activations, and rules from names to mesh axes.

A module names the dimensions of its parameters next to their declaration:

    class FFN(eqx.Module):
        up: Array = axes("embed", "mlp")
        down: Array = axes("mlp", "embed")

The rules say over which mesh axes each name is sharded. Axes that a mesh does not have are left
out, so that one model runs on `data=8` and on `data=2,model=4`.
"""

import contextlib
import fnmatch
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import polars as pl
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree, Shaped

from chapbook.core.errors import Error
from chapbook.core.trees import dotted, is_array

Rules = Mapping[str, str | Sequence[str] | None]
Patterns = Sequence[tuple[str, tuple[str | None, ...]]]
AnyMesh = Mesh | AbstractMesh  # planning needs no devices
Model = TypeVar("Model")

RULES: Rules = {
    "batch": ("data", "fsdp"), "seq": None, "embed": "fsdp", "mlp": "model", "heads": "model",
    "kv_heads": "model", "head_dim": None, "vocab": "model", "expert": "expert", "layers": None,
}  # fmt: skip

# The mesh and rules in force belong to what a jitted function was traced with, so they live in
# JAX's own kind of context variable: with a plain one, other rules would meet the old compiled
# function.
_in_force = jax.make_user_context((None, tuple(RULES.items())))
_log = logging.getLogger(__name__)


class Names(tuple[str | None, ...]):
    """The logical names of one array's dimensions; a leaf to JAX, as plain tuples are not."""


def axes(*names: str | None, **options: Any) -> Any:
    """Declares a field of an `eqx.Module` whose array has dimensions of these names.

    The names align to the right of the shape: a stacked array has one more dimension, `layers`.

    Args:
        names: One logical name a dimension; None for one that is never sharded.
        options: Whatever else `eqx.field` takes.

    Returns:
        The field, `eqx.field(metadata={"axes": names})`.
    """
    return eqx.field(metadata={"axes": names}, **options)


def names(model: PyTree, patterns: Patterns = ()) -> PyTree:
    """Returns the logical names of every array of a tree.

    Args:
        model: A tree of arrays, or of their shapes as from `eqx.filter_eval_shape`.
        patterns: `("*.linear.weight", ("mlp", "embed"))` pairs for modules without `axes` fields:
            shell patterns on dotted paths. The first that matches wins, and wins over a field.

    Returns:
        A tree like `model` of `Names`, with None where there is no array. Arrays of two or more
        dimensions that nothing names have `Names()`.

    Raises:
        Error: An array has fewer dimensions than names, or two more.
    """

    def names_of(keys: tuple[Any, ...], leaf: Any) -> Names | None:
        if not is_array(leaf):
            return None
        path = _path(model, keys)
        patterned = (found for text, found in patterns if _matches(path, text))
        found = next(patterned, None) or _declared(model, keys)
        if found is None:
            return Names()
        extra = leaf.ndim - len(found)
        if extra not in (0, 1):
            count = f"{len(found)} names for {leaf.ndim} dimensions"
            raise Error(f"{path}: {count}: {_listed(found)} (shape {leaf.shape})")
        return Names(("layers",) * extra + tuple(found))

    return jax.tree_util.tree_map_with_path(names_of, model)


def _path(tree: PyTree, keys: tuple[Any, ...]) -> str:
    """Returns a dotted path, with the class of the tree's root before it if that is a module."""
    root = f"{type(tree).__name__}." if isinstance(tree, eqx.Module) else ""
    return root + dotted(keys)


def _matches(path: str, pattern: str) -> bool:
    """Matches a path with or without the name of the model's class before it."""
    return any(fnmatch.fnmatchcase(text, pattern) for text in (path, path.partition(".")[2]))


def _declared(model: PyTree, keys: tuple[Any, ...]) -> tuple[str | None, ...] | None:
    """Returns the names in the metadata of the innermost field on the way to a leaf."""
    node, found = model, None
    for key in keys:
        match key:
            case jax.tree_util.GetAttrKey(name=name):
                field = getattr(node, "__dataclass_fields__", {}).get(name)
                found = (field and field.metadata.get("axes")) or found
                node = getattr(node, name)
            case jax.tree_util.SequenceKey(idx=at) | jax.tree_util.DictKey(key=at):
                node = node[at]
            case _:
                break
    return found


def specs(
    names: PyTree,
    rules: Rules,
    mesh: AnyMesh,
    shapes: PyTree | None = None,
    replicate_below: int = 0,
) -> PyTree:
    """Returns the partition spec of every array from the names of its dimensions.

    Args:
        names: A tree of names, as from `names`; plain tuples of strings will do.
        rules: From each name to a mesh axis, several, or None.
        mesh: The mesh; axes of the rules that it does not have are left out. Where two dimensions
            claim one mesh axis, the first keeps it.
        shapes: The arrays or their shapes, to check that sizes divide; None to check nothing.
        replicate_below: Arrays with fewer elements stay whole over `fsdp` (needs `shapes`).

    Returns:
        A tree like `names` of `PartitionSpec`.

    Raises:
        Error: A name has no rule, or a size is not divisible by its mesh axes.
    """

    def spec_of(
        keys: tuple[Any, ...], found: tuple[str | None, ...] | None, *given: Any
    ) -> PartitionSpec | None:
        if found is None:
            return None
        path, sizes = _path(names if shapes is None else shapes, keys), dict(mesh.shape)
        shape = given[0].shape if given else None
        if shape is not None and math.prod(shape) < replicate_below:
            sizes.pop("fsdp", None)
        parts = _assign(path, found, rules, sizes)
        for name, size, part in zip(found, shape or (), parts, strict=False):
            if not _divides(size, part, sizes):
                over = ",".join(f"{axis}={sizes[axis]}" for axis in part)
                raise Error(f"{path}: {name}={size} is not divisible by {over} (shape {shape})")
        return PartitionSpec(*map(_entry, parts))

    return jax.tree_util.tree_map_with_path(
        spec_of,
        names,
        *(() if shapes is None else (shapes,)),
        is_leaf=lambda node: node is None or (type(node) is tuple and str in map(type, node)),
    )


def _assign(
    path: str, names: Sequence[str | None], rules: Rules, sizes: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Returns the mesh axes of each dimension; the first to claim an axis keeps it."""
    taken: set[str] = set()
    parts = []
    for name in names:
        if name is not None and name not in rules:
            raise Error(
                f'{path}: no rule for "{name}"; the rules name {", ".join(rules)}',
                f'pass rules={{**RULES, "{name}": ...}} with a mesh axis, or None',
            )
        rule = None if name is None else rules[name]
        wanted = (rule,) if isinstance(rule, str) else rule or ()
        part = tuple(axis for axis in wanted if axis in sizes and axis not in taken)
        taken.update(part)
        parts.append(part)
    return parts


def _divides(size: int, part: tuple[str, ...], sizes: Mapping[str, int]) -> bool:
    return size % math.prod(sizes[axis] for axis in part) == 0


def _entry(part: tuple[str, ...]) -> Any:
    return part[0] if len(part) == 1 else part or None


def shardings(
    tree: PyTree,
    mesh: AnyMesh,
    rules: Rules = RULES,
    patterns: Patterns = (),
    strict: bool = True,
    *,
    replicate_below: int = 0,
) -> PyTree:
    """Returns the sharding of every array of a tree.

    Args:
        tree: Arrays, or their shapes as from `eqx.filter_eval_shape`: planning needs no memory.
        mesh: The mesh.
        rules: From logical names to mesh axes.
        patterns: Names for modules without `axes` fields, as `names` takes them.
        strict: Raise for arrays of two or more dimensions that nothing names; otherwise replicate
            them, and log the list and its size.
        replicate_below: Parameters with fewer elements stay whole over `fsdp`: cutting up small
            arrays costs more than it saves. `2**16` is a good value on many devices.

    Returns:
        A tree like `tree` of `NamedSharding`, with None where there is no array.

    Raises:
        Error: Arrays have no names, a pattern matches nothing, or what `names` and `specs` raise.
    """
    found, arrays = names(tree, patterns), _arrays(tree)
    unnamed = {
        path: leaf
        for (path, leaf), given in zip(arrays.items(), jax.tree.leaves(found), strict=True)
        if not given and leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    listing = ", ".join(f"{path} {leaf.shape}" for path, leaf in unnamed.items())
    if unnamed and strict:
        raise Error(
            f"no names for the dimensions of {listing}",
            "declare the fields with axes(...), or pass patterns=[(path, names), ...]",
        )
    if unnamed:
        size = sum(_bytes(leaf, leaf.shape) for leaf in unnamed.values())
        _log.warning("replicated for want of names: %s (%d bytes)", listing, size)
    for text, _ in patterns if strict else ():
        if not any(_matches(path, text) for path in arrays):
            raise Error(f"the pattern {text} matches none of {', '.join(arrays)}")
    planned = specs(found, rules, mesh, tree, replicate_below)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), planned)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = RULES) -> Iterator[Mesh]:
    """Puts a mesh and its rules in force, for `constrain`, inside a `with` block.

    A function that was jitted under other rules is traced anew. As with `jax.set_mesh`, the block
    holds in its own thread, and cannot be entered inside jit.

    Args:
        mesh: The mesh.
        rules: From logical names to mesh axes.
    """
    frozen = tuple(
        (k, v if v is None or isinstance(v, str) else tuple(v)) for k, v in rules.items()
    )
    with jax.set_mesh(mesh), _in_force((mesh, frozen)):
        yield mesh


def in_force() -> tuple[AbstractMesh, Rules]:
    """Returns the automatic axes of the mesh in force, none outside a mesh, and the rules.

    Axes that are manual (inside `jax.shard_map`) or explicit are left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    sizes = {axis: mesh.shape[axis] for axis, kind in kinds if kind == AxisType.Auto}
    automatic = (AxisType.Auto,) * len(sizes)
    rules = dict(_in_force.value[1])
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=automatic), rules


def constrain(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
    """Shards an activation as the rules in force say; the identity outside a mesh.

    Inside jit this is `with_sharding_constraint`; in eager mode it moves the data. Dimensions that
    do not divide are left unconstrained. Under `jax.vmap` the names are those of what the function
    sees, and the mapped dimension is left free; to pin it, pass `spmd_axis_name` to `jax.vmap`.
    Mesh axes that are manual (inside `jax.shard_map`) or explicit are left out.

    Args:
        x: The activation.
        names: The logical names of its last dimensions; those before stay unconstrained.

    Returns:
        `x`, sharded.

    Raises:
        Error: There are more names than dimensions, or a name has no rule.
    """
    automatic, rules = in_force()
    sizes = dict(automatic.shape)
    if not sizes:
        return x
    extra = x.ndim - len(names)
    if extra < 0:
        raise Error(f"more names than dimensions: {_listed(names)} (shape {x.shape})")
    mesh, placed = jax.sharding.get_abstract_mesh(), _in_force.value[0]
    traced = isinstance(x, Tracer)
    free = PartitionSpec.UNCONSTRAINED if traced else None
    assigned = zip(x.shape[extra:], _assign("constrain", names, rules, sizes), strict=True)
    parts = [_entry(part) if _divides(size, part, sizes) else free for size, part in assigned]
    spec = PartitionSpec(*[free] * extra, *parts)
    if not traced:
        return jax.device_put(x, spec)
    # vmap in eager mode needs the devices; shard_map needs its own view of the mesh.
    if placed is not None and placed.abstract_mesh == mesh:
        return jax.lax.with_sharding_constraint(x, NamedSharding(placed, spec))
    return jax.lax.with_sharding_constraint(x, spec)


def create(
    init: Callable[[Key[Array, ""]], Model],
    key: Key[Array, ""],
    mesh: Mesh,
    rules: Rules = RULES,
    patterns: Patterns = (),
    strict: bool = True,
) -> Model:
    """Makes a model in place on the mesh: no device ever holds a whole large tree.

    Args:
        init: Makes the model from a key, such as `lambda key: Model(config, key=key)`.
        key: The key.
        mesh: The mesh.
        rules: As `shardings` takes them, like all that follows.
        patterns: Names for modules without `axes` fields.
        strict: Raise for arrays without names.

    Returns:
        `init(key)`, its arrays sharded.
    """
    shapes = eqx.filter_eval_shape(init, key)
    planned = shardings(shapes, mesh, rules, patterns, strict)
    arrays = jax.jit(lambda key: eqx.filter(init(key), eqx.is_array), out_shardings=planned)(key)
    return eqx.combine(arrays, eqx.filter(shapes, is_array, inverse=True))


def like(optimizer: optax.GradientTransformation, params: PyTree, shardings: PyTree) -> PyTree:
    """Returns the shardings of `optimizer.init(params)`.

    State that mirrors a parameter lies as the parameter does; all else is replicated, such as
    counters and factored moments whose shape is not the parameter's. Always pass this to
    `jax.jit(optimizer.init, out_shardings=...)`: jit alone puts the state on one device.

    Args:
        optimizer: The optimizer.
        params: The parameters or their shapes; leaves that are no arrays are ignored.
        shardings: The shardings of the parameters; those of other leaves are ignored.

    Returns:
        A tree like the optimizer's state of `NamedSharding`.
    """
    shapes = eqx.filter(params, is_array)
    shardings = jax.tree.map(
        lambda leaf, sharding: None if leaf is None else sharding,
        shapes,
        shardings,
        is_leaf=lambda node: node is None,
    )
    whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

    def mirror(leaf: Any, param: Any, sharding: NamedSharding) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        return sharding if leaf.shape == param.shape else whole

    return optax.tree_map_params(
        optimizer,
        mirror,
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        shardings,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def describe(tree: PyTree, shardings: PyTree) -> pl.DataFrame:
    """Returns where each array of a tree lies: one row an array.

    Args:
        tree: Arrays or their shapes.
        shardings: Their shardings.

    Returns:
        A frame of `path`, `shape`, `dtype`, `spec`, `bytes` and `bytes_per_device`.
    """
    placed = zip(_arrays(tree).items(), jax.tree.leaves(shardings), strict=True)
    return pl.DataFrame(
        [
            {
                "path": path,
                "shape": str(leaf.shape),
                "dtype": str(leaf.dtype),
                "spec": str(sharding.spec),
                "bytes": _bytes(leaf, leaf.shape),
                "bytes_per_device": _bytes(leaf, sharding.shard_shape(leaf.shape)),
            }
            for (path, leaf), sharding in placed
        ]
    )


def _arrays(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, is_array))
    return {_path(tree, keys): leaf for keys, leaf in flat}


def _bytes(leaf: Any, shape: tuple[int, ...]) -> int:
    # A typed key has no item size of NumPy's; JAX's dtype of it has one.
    return math.prod(shape) * leaf.dtype.itemsize


def _listed(names: Sequence[str | None]) -> str:
    return ", ".join(map(str, names))
