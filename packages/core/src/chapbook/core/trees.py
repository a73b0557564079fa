"""The leaves of trees by dotted paths, such as `blocks.0.attn.q`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from chapbook.core.errors import Error


def is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array or the shape of one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def dotted(keys: tuple[Any, ...]) -> str:
    """Returns the name of a leaf; a tree that is one leaf is called `value`."""
    return jax.tree_util.keystr(keys, simple=True, separator=".") or "value"


def named(tree: Any, keep: Callable[[Any], bool] = is_array) -> dict[str, Any]:
    """Returns the leaves to keep by their names, in the order of the tree.

    Raises:
        Error: Two of them have one name.
    """
    found: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if keep(leaf):
            if (name := dotted(keys)) in found:
                raise Error(f"two leaves are called {name}; a key of a dict must not hold dots")
            found[name] = leaf
    return found


def filled(tree: Any, values: Mapping[str, Any]) -> Any:
    """Returns the tree with the leaves that `values` names put in place."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: values.get(dotted(keys), leaf), tree)
