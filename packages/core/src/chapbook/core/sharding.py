"""Names on the dimensions of parameters and activations, and rules from names to mesh axes.

A module names the dimensions of its parameters next to their declaration:

    class FFN(eqx.Module):
        up: Array = axes("embed", "mlp")
        down: Array = axes("mlp", "embed")

The rules say over which mesh axes each name is sharded. Axes that a mesh does not have are left
out, so that one model runs on `data=8` and on `data=2,model=4`.
"""

import contextlib
import dataclasses
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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree, Shaped

from chapbook.core.errors import Error

Rules = Mapping[str, str | Sequence[str] | None]
Patterns = Sequence[tuple[str, tuple[str | None, ...]]]
Model = TypeVar("Model")

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "seq": None,
    "embed": "fsdp",
    "mlp": "model",
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "vocab": "model",
    "expert": "expert",
    "layers": None,
}

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
    flat, structure = jax.tree_util.tree_flatten_with_path(model)
    return structure.unflatten([_names_of(model, keys, leaf, patterns) for keys, leaf in flat])


def _names_of(model: PyTree, keys: tuple, leaf: Any, patterns: Patterns) -> Names | None:
    if not _is_array(leaf):
        return None
    path = _path(model, keys)
    found = _pattern(path, patterns) or _field(model, keys)
    if found is None:
        return Names()
    extra = leaf.ndim - len(found)
    if extra not in (0, 1):
        count = "more names than dimensions" if extra < 0 else f"{extra} dimensions without a name"
        raise Error(f"{path}: {count}: {', '.join(map(str, found))} (shape {leaf.shape})")
    return Names(("layers",) * extra + tuple(found))


def _pattern(path: str, patterns: Patterns) -> tuple[str | None, ...] | None:
    return next((found for text, found in patterns if _matches(path, text)), None)


def _matches(path: str, pattern: str) -> bool:
    """Matches a path with or without the name of the model's class before it."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.partition(".")[2], pattern
    )


def _field(model: PyTree, keys: tuple) -> tuple[str | None, ...] | None:
    """Returns the names in the metadata of the innermost field on the way to a leaf."""
    node, found = model, None
    for key in keys:
        if isinstance(key, jax.tree_util.GetAttrKey):
            if dataclasses.is_dataclass(node):
                field = {f.name: f for f in dataclasses.fields(node)}.get(key.name)
                found = (field and field.metadata.get("axes")) or found
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            break
    return found


def specs(
    names: PyTree,
    rules: Rules,
    mesh: Mesh,
    shapes: PyTree | None = None,
    *,
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
    flat, structure = jax.tree_util.tree_flatten_with_path(
        names, is_leaf=lambda node: node is None or _is_names(node)
    )
    arrays = [None] * len(flat) if shapes is None else structure.flatten_up_to(shapes)
    root = names if shapes is None else shapes
    return structure.unflatten(
        [
            leaf
            if leaf is None
            else _spec(_path(root, keys), leaf, rules, dict(mesh.shape), array, replicate_below)
            for (keys, leaf), array in zip(flat, arrays, strict=True)
        ]
    )


def _spec(
    path: str,
    leaf: Sequence[str | None],
    rules: Rules,
    sizes: Mapping[str, int],
    array: Any,
    replicate_below: int,
) -> PartitionSpec:
    if array is None:
        return PartitionSpec(*map(_entry, _assign(path, leaf, rules, sizes)))
    if math.prod(array.shape) < replicate_below:
        sizes = {axis: size for axis, size in sizes.items() if axis != "fsdp"}
    parts = _assign(path, leaf, rules, sizes)
    for name, size, part in zip(leaf, array.shape, parts, strict=False):
        if size % math.prod(sizes[axis] for axis in part):
            over = ",".join(f"{axis}={sizes[axis]}" for axis in part)
            raise Error(f"{path}: {name}={size} is not divisible by {over} (shape {array.shape})")
    return PartitionSpec(*map(_entry, parts))


def _assign(
    path: str, leaf: Sequence[str | None], rules: Rules, sizes: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Returns the mesh axes of each dimension; the first to claim an axis keeps it."""
    taken: set[str] = set()
    parts = []
    for name in leaf:
        if name is not None and name not in rules:
            raise Error(
                f'{path}: no rule for "{name}"; the rules name {", ".join(rules)}',
                f'pass rules={{**RULES, "{name}": ...}} with a mesh axis, or None',
            )
        rule = rules[name] if name is not None else None
        wanted = (rule,) if isinstance(rule, str) else tuple(rule or ())
        part = tuple(axis for axis in wanted if axis in sizes and axis not in taken)
        taken.update(part)
        parts.append(part)
    return parts


def _entry(part: tuple[str, ...]) -> Any:
    return part[0] if len(part) == 1 else part or None


def shardings(
    tree: PyTree,
    mesh: Mesh,
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
    named = names(tree, patterns)
    leaves = [(p, leaf) for p, leaf in _paths(tree) if _is_array(leaf)]
    flat = [leaf for leaf in jax.tree.leaves(named, is_leaf=_is_names) if leaf is not None]
    unnamed = [
        (path, leaf)
        for (path, leaf), found in zip(leaves, flat, strict=True)
        if not found and leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    listing = ", ".join(f"{path} {leaf.shape}" for path, leaf in unnamed)
    if unnamed and strict:
        raise Error(
            f"no names for the dimensions of {listing}",
            "declare the fields with axes(...), or pass patterns=[(path, names), ...]",
        )
    if unnamed:
        size = sum(_bytes(leaf) for _, leaf in unnamed)
        _log.warning("replicated for want of names: %s (%d bytes)", listing, size)
    for text, _ in patterns if strict else ():
        if not any(_matches(path, text) for path, _ in leaves):
            raise Error(f"the pattern {text} matches none of {', '.join(p for p, _ in leaves)}")
    planned = specs(named, rules, mesh, tree, replicate_below=replicate_below)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), planned, is_leaf=_is_spec)


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
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    if not sizes:
        return x
    extra = x.ndim - len(names)
    if extra < 0:
        raise Error(f"more names than dimensions: {', '.join(map(str, names))} (shape {x.shape})")
    placed, rules = _in_force.value
    traced = isinstance(x, Tracer)
    free = PartitionSpec.UNCONSTRAINED if traced else None
    parts: list[Any] = [free] * extra
    assigned = _assign("constrain", names, dict(rules), sizes)
    for size, part in zip(x.shape[extra:], assigned, strict=True):
        divides = size % math.prod(sizes[axis] for axis in part) == 0
        parts.append(_entry(part) if divides else free)
    spec = PartitionSpec(*parts)
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
    *,
    replicate_below: int = 0,
) -> Model:
    """Makes a model in place on the mesh: no device ever holds a whole large tree.

    Args:
        init: Makes the model from a key, such as `lambda key: Model(config, key=key)`.
        key: The key.
        mesh: The mesh.
        rules: As `shardings` takes them, like all that follows.
        patterns: Names for modules without `axes` fields.
        strict: Raise for arrays without names.
        replicate_below: Parameters with fewer elements stay whole over `fsdp`.

    Returns:
        `init(key)`, its arrays sharded.
    """
    shapes = eqx.filter_eval_shape(init, key)
    planned = shardings(shapes, mesh, rules, patterns, strict, replicate_below=replicate_below)
    arrays = jax.jit(lambda key: eqx.filter(init(key), eqx.is_array), out_shardings=planned)(key)
    return eqx.combine(arrays, eqx.filter(shapes, _is_array, inverse=True))


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
    shapes = jax.eval_shape(lambda tree: tree, eqx.filter(params, _is_array))
    shardings = jax.tree.map(
        lambda shape, sharding: None if shape is None else sharding,
        shapes,
        shardings,
        is_leaf=lambda node: node is None,
    )
    whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

    def mirror(leaf: Any, shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        return sharding if leaf.shape == shape.shape else whole

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
    placed = zip(_paths(tree), jax.tree.structure(tree).flatten_up_to(shardings), strict=True)
    return pl.DataFrame(
        [
            {
                "path": path,
                "shape": str(leaf.shape),
                "dtype": str(leaf.dtype),
                "spec": str(sharding.spec),
                "bytes": _bytes(leaf),
                "bytes_per_device": _bytes(leaf, sharding.shard_shape(leaf.shape)),
            }
            for (path, leaf), sharding in placed
            if _is_array(leaf)
        ]
    )


def _bytes(leaf: Any, shape: tuple[int, ...] | None = None) -> int:
    # A typed key has no item size of NumPy's; JAX's dtype of it has one.
    return math.prod(leaf.shape if shape is None else shape) * leaf.dtype.itemsize


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def _is_names(node: Any) -> bool:
    plain = type(node) is tuple and all(isinstance(name, str | None) for name in node)
    return isinstance(node, Names) or (plain and any(name is not None for name in node))


def _paths(tree: PyTree) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(_path(tree, keys), leaf) for keys, leaf in flat]


def _path(tree: PyTree, keys: tuple) -> str:
    """Returns a dotted path, with the class of the tree's root before it if that is a module."""
    dotted = jax.tree_util.keystr(keys, simple=True, separator=".")
    return f"{type(tree).__name__}.{dotted}" if isinstance(tree, eqx.Module) else dotted
