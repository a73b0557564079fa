"""Safetensors in and out of trees of arrays."""

import json
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.flax import load_file
from safetensors.numpy import save_file

from chapbook.core.errors import Error
from chapbook.core.weights import load_weights, save_weights

DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool", "complex64"]


class Net(eqx.Module):
    layers: list[jax.Array]
    act: Callable


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=5
    )
)
def test_any_tree_comes_back_and_others_can_read_it(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("any") / "weights.safetensors"
    tree = [(np.arange(np.prod(s)).reshape(s) % 2 + 1).astype(jnp.dtype(d)) for d, s in kinds]
    save_weights({"layers": tree}, path)
    assert_same(load_weights(path, {"layers": tree}), {"layers": tree})
    for i, held in ((int(name.split(".")[1]), held) for name, held in load_file(path).items()):
        assert_same(held, tree[i])


def test_names_are_dotted_paths_and_the_module_keeps_what_is_no_array(tmp_path):
    path = tmp_path / "weights.safetensors"
    net = Net([jnp.ones((2, 3)), jnp.full((3, 1), 2.0)], jax.nn.relu)
    save_weights({"net": net}, path, {"licence": "Apache-2.0"})
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["net.layers.0", "net.layers.1"]
        assert file.metadata() == {"licence": "Apache-2.0"}
    shapes = eqx.filter_eval_shape(lambda: {"net": net})
    loaded = load_weights(path, shapes)["net"]
    assert loaded.act is jax.nn.relu
    assert_same(loaded.layers, net.layers)


def test_the_report_comes_first_and_names_everything(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": np.ones((2, 3), "f"), "b": np.ones(2, "f"), "n": np.ones(2, "i")}, path)
    like = {"a": jnp.zeros((3, 2)), "c": jnp.zeros(1), "n": jnp.zeros(2)}
    for strict in (True, False):
        with pytest.raises(Error) as caught:
            load_weights(path, like, strict=strict)
        assert str(caught.value) == (
            f"{path} does not fit: missing: c; unexpected: b; mis-shaped: "
            "a is F32 (2, 3), wanted float32 (3, 2), n is I32 (2,), wanted float32 (2,)"
        )
    with pytest.raises(Error, match=r"missing: c, .*l\.18 and 11 more; unexpected"):
        load_weights(path, {f"l.{i:02}": jnp.zeros(1) for i in range(30)} | like, strict=False)


def test_without_strictness_the_rest_stays_as_it_was(tmp_path, caplog):
    path = tmp_path / "w.safetensors"
    save_file({"a": np.ones(2, "f"), "b": np.ones(2, "f")}, path)
    loaded = load_weights(path, {"a": jnp.zeros(2), "c": jnp.full(1, 7.0)}, strict=False)
    assert_same(loaded, {"a": jnp.ones(2), "c": jnp.full(1, 7.0)})
    assert caplog.messages == [f"{path} fits in part: missing: c; unexpected: b"]
    with pytest.raises(Error, match="missing: c"):  # a shape alone has nothing to stay
        load_weights(path, {"c": jax.ShapeDtypeStruct((1,), jnp.float32)}, strict=False)


def blocks(path):
    """Writes a checkpoint of three blocks as other libraries lay it out; returns it stacked."""
    q = np.arange(3 * 4 * 2, dtype="f").reshape(3, 4, 2)
    save_file({f"model.h.{i}.q.weight": q[i] for i in range(3)}, path)
    return q


@pytest.mark.parametrize(
    "rename",
    [
        {r"^blocks\.": "model.h.*.", r"attn\.(\w)$": r"\1.weight"},
        lambda name: name.replace("blocks.attn.", "model.h.*.") + ".weight",
    ],
)
def test_layers_are_renamed_transposed_and_stacked(tmp_path, rename):
    path = tmp_path / "w.safetensors"
    q = blocks(path)
    like = {"blocks": {"attn": {"q": jnp.zeros((3, 2, 4))}}}
    loaded = load_weights(path, like, rename, transpose=["*.attn.q"])
    np.testing.assert_array_equal(loaded["blocks"]["attn"]["q"], q.swapaxes(1, 2))
    like = {"blocks": {"attn": {"q": jnp.zeros((4, 2, 4))}}}
    with pytest.raises(Error, match=r"missing: model\.h\.3\.q\.weight$"):
        load_weights(path, like, rename, transpose=["*.attn.q"])


def test_a_set_of_files_is_one_checkpoint(tmp_path):
    save_file({"a": np.ones(2, "f")}, tmp_path / "m-1-of-2.safetensors")
    save_file({"b": np.full(2, 2, "f")}, tmp_path / "m-2-of-2.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    files = {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors"}
    index.write_text(json.dumps({"weight_map": files}))
    like = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    assert_same(load_weights(index, like), {"a": jnp.ones(2), "b": jnp.full(2, 2.0)})
    (tmp_path / "m-2-of-2.safetensors").unlink()
    with pytest.raises(Error, match=r"m-2-of-2\.safetensors is no whole checkpoint: "):
        load_weights(index, like)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    like = {"a": jnp.zeros(2)}
    torn = tmp_path / "torn.safetensors"
    save_weights(like, torn)
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(Error, match=r"torn\.safetensors is no whole checkpoint: "):
        load_weights(torn, like)
    (tmp_path / "set.index.json").write_text('{"weight_map": ')
    with pytest.raises(Error, match=r"set\.index\.json is no whole checkpoint: "):
        load_weights(tmp_path / "set.index.json", like)
    with pytest.raises(Error, match=r"is no whole checkpoint: "):
        load_weights(tmp_path, like)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights({"a": jnp.ones(2)}, path)
    with pytest.raises(Error, match=r"^key: a safetensors file cannot hold key<fry>$"):
        save_weights({"a": jnp.zeros(2), "key": jax.random.key(0)}, path)
    with pytest.raises(Error, match=r"^two leaves are called a\.b;"):
        save_weights({"a.b": jnp.zeros(2), "a": {"b": jnp.zeros(2)}}, path)
    # The next write fails half-way, after its first tensor.
    full = iter([np.zeros(2, "f")])
    monkeypatch.setattr("chapbook.core.weights._whole", lambda _: next(full))
    with pytest.raises(StopIteration):
        save_weights({"a": jnp.zeros(2), "b": jnp.zeros(2)}, path)
    assert_same(load_weights(path, {"a": jnp.zeros(2)}), {"a": jnp.ones(2)})
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
