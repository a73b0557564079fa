"""Weights of releases of V-MoE and of ViTs in .npz files, read into one form."""

import itertools
import tracemalloc
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.vmoe.flax_msgpack import flatten, nest, read_tree
from chapbook.vmoe.official import config_of, inspect, read_vit_npz, read_vmoe
from chapbook.vmoe.sharded import read_index, read_sharded

WIDTH, HEADS, MLP, PATCH, CLASSES, EXPERTS = 8, 2, 12, 4, 5, 4
CHUNKED = "__msgpack_chunked_array__"


def vit(rng, layers=2, moe=(1,), side=3, token=True, representation=None):
    """Parameters of a small model, by the names of the official code."""
    d, h, p, dh = WIDTH, MLP, PATCH, WIDTH // HEADS
    shapes = {
        "embedding/kernel": (p, p, 3, d),
        "embedding/bias": (d,),
        "Encoder/posembed_input/pos_embedding": (1, side**2 + token, d),
        "Encoder/encoder_norm/scale": (d,),
        "Encoder/encoder_norm/bias": (d,),
        "head/kernel": (representation or d, CLASSES),
        "head/bias": (CLASSES,),
    }
    if token:
        shapes["cls"] = (1, 1, d)
    if representation:
        shapes |= {"pre_logits/kernel": (d, representation), "pre_logits/bias": (representation,)}
    for i in range(layers):
        block = f"Encoder/encoderblock_{i}"
        mlp, e = (f"{block}/Moe/Mlp", (EXPERTS,)) if i in moe else (f"{block}/Mlp", ())
        shapes |= {
            f"{block}/LayerNorm_{n}/{part}": (d,) for n in (0, 1) for part in ("scale", "bias")
        }
        for part in ("query", "key", "value"):
            shapes[f"{block}/SelfAttention/{part}/kernel"] = (d, HEADS, dh)
            shapes[f"{block}/SelfAttention/{part}/bias"] = (HEADS, dh)
        shapes |= {
            f"{block}/SelfAttention/out/kernel": (HEADS, dh, d),
            f"{block}/SelfAttention/out/bias": (d,),
            f"{mlp}/Dense_0/kernel": (*e, d, h),
            f"{mlp}/Dense_0/bias": (*e, h),
            f"{mlp}/Dense_1/kernel": (*e, h, d),
            f"{mlp}/Dense_1/bias": (*e, d),
        }
        if i in moe:
            shapes[f"{block}/Moe/Router/dense/kernel"] = (d, EXPERTS)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def packed(value):
    return msgpack.packb(value, use_bin_type=True)


def extended(code, value):
    return msgpack.ExtType(code, packed(value))


def array(x):
    return extended(1, (x.shape, x.dtype.name, x.tobytes()))


def slices(bounds):
    return packed([packed((start, stop, None)) for start, stop in bounds])


def cut(shape, counts):
    """Bounds of the parts of an array that each axis cuts into so many."""
    edges = [
        [(size * i // n, size * (i + 1) // n) for i in range(n)]
        for size, n in zip(shape, counts, strict=True)
    ]
    return list(itertools.product(*edges))


class Release:
    """Writes a release, as the description of its format says, with what a test wants to spoil.

    All arrays with experts are cut along them and along the last axis; parts go to the shards in
    turn, and a part in pieces of at most seven elements.
    """

    def __init__(self, leaves, shards=3, version: str | None = "20220622"):
        marker: dict[str, Any] = {"__msgpack_array_chunk_a87ca2__": True}
        self.index, self.data = {}, [dict(marker) for _ in range(shards)]
        self.extra = {"version": version} if version else {}
        turn = itertools.cycle(range(shards))
        numbered, _ = jax.tree_util.tree_flatten_with_path(nest(leaves))
        for number, (path, leaf) in enumerate(numbered):
            name = "/".join(key.key for key in path)
            counts = [1] * leaf.ndim
            if "Moe/Mlp" in name:
                counts[0], counts[-1] = 2, 2
            parts = cut(leaf.shape, counts)
            homes = [next(turn) for _ in parts]
            self.index[name] = [(leaf.shape, leaf.dtype.name, False, {}), parts, homes]
            for bounds, home in zip(parts, homes, strict=True):
                flat = leaf[tuple(slice(*b) for b in bounds)].reshape(-1)
                pieces = [array(flat[i : i + 7]) for i in range(0, flat.size, 7)]
                self.data[home].setdefault(str(number), []).append(
                    [pieces, msgpack.ExtType(6, slices(bounds))]
                )

    def write(self, folder):
        prefix, count = folder / "release", len(self.data)
        infos = {
            name: extended(8, (packed(shaped), [slices(b) for b in parts], homes))
            for name, (shaped, parts, homes) in self.index.items()
        }
        index = {"shard_count": count, "index": nest(infos), **self.extra}
        (folder / "release.index").write_bytes(packed(index))
        for i, shard in enumerate(self.data):
            (folder / f"release.data-{i:05d}-of-{count:05d}").write_bytes(packed(shard))
        return prefix


@pytest.fixture
def leaves():
    found = vit(np.random.default_rng(0))
    kernel = "Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    found[kernel] = found[kernel].astype(ml_dtypes.bfloat16)
    return found


def assert_same(tree, leaves):
    found = dict(flatten(tree))
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert found[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parametrize("version", ["20220622", None])
def test_a_release_of_three_shards_comes_back_leaf_by_leaf(tmp_path, leaves, version):
    prefix = Release(leaves, version=version).write(tmp_path)
    assert_same(read_vmoe(prefix), leaves)
    assert_same(read_vmoe(f"{prefix}.index"), leaves)


def test_leaves_are_numbered_by_the_keys_of_each_level_not_by_the_whole_path(tmp_path):
    values = {"a-b/x": 1.0, "a/x": 2.0, "a/b": 3.0, "block_10/x": 4.0, "block_9/x": 5.0}
    leaves = {name: np.full((2,), value) for name, value in values.items()}
    assert_same(read_sharded(Release(leaves, 2).write(tmp_path)), leaves)


def test_arrays_without_axes_and_without_elements_come_back(tmp_path):
    leaves = {"scale": np.float32(3).reshape(()), "none": np.zeros((0, 4), np.int8)}
    assert_same(read_sharded(Release(leaves, 1).write(tmp_path)), leaves)


def test_of_a_training_run_only_the_parameters_are_read(tmp_path, leaves):
    state = {f"params/{name}": leaf for name, leaf in leaves.items()}
    state |= {"opt_state/0/mu/head/bias": np.ones(3), "step": np.int32(7).reshape(())}
    assert_same(read_vmoe(Release(state).write(tmp_path)), leaves)
    with pytest.raises(Error, match=r"release.index holds a training run's state \(opt_state, pa"):
        read_vmoe(Release(state, version=None).write(tmp_path))


def test_memory_holds_one_checkpoint_and_a_part_not_two(tmp_path):
    leaves = {f"layer_{i}": np.full((4, 65536), i, np.float32) for i in range(16)}
    prefix = tmp_path / "release"
    release = Release({}, 1)
    release.index = {n: [((4, 65536), "float32", False, {}), [((0, 4), (0, 65536))], [0]]
                     for n in leaves}  # fmt: skip
    for number, name in enumerate(sorted(leaves)):
        bounds = msgpack.ExtType(6, slices([(0, 4), (0, 65536)]))
        release.data[0][str(number)] = [[[array(leaves[name].reshape(-1))], bounds]]
    release.write(tmp_path)
    size = sum(leaf.nbytes for leaf in leaves.values())
    del release
    tracemalloc.start()
    tree = read_sharded(prefix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_same(tree, leaves)
    assert peak < 1.5 * size


def test_a_shard_that_is_missing_is_named(tmp_path, leaves):
    prefix = Release(leaves).write(tmp_path)
    (tmp_path / "release.data-00001-of-00003").unlink()
    with pytest.raises(Error, match=r"shards are missing: \S+/release.data-00001-of-00003$"):
        read_vmoe(prefix)
    with pytest.raises(Error, match=r"other.index cannot be read: No such file"):
        read_vmoe(tmp_path / "other")


def test_a_shard_that_is_cut_short_is_named(tmp_path, leaves):
    prefix = Release(leaves).write(tmp_path)
    path = tmp_path / "release.data-00002-of-00003"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(Error, match=r"data-00002-of-00003 cannot be read: it ends too early"):
        read_vmoe(prefix)
    path.write_bytes(whole[:100])
    with pytest.raises(Error, match=r"data-00002-of-00003 is cut short: it has 100 bytes, its arr"):
        read_vmoe(prefix)


def test_an_extension_type_that_is_not_known_is_named(tmp_path, leaves):
    release = Release(leaves)
    release.data[0]["0"] = [[[extended(9, ())], extended(6, ())]]
    with pytest.raises(Error, match=r"data-00000-of-00003 cannot be read: .* of extension type 9"):
        read_vmoe(release.write(tmp_path))


def test_a_version_that_is_not_known_is_named(tmp_path, leaves):
    with pytest.raises(Error, match=r"release.index is of version '20991231'; those known are '20"):
        read_vmoe(Release(leaves, version="20991231").write(tmp_path))


def test_parts_that_do_not_make_up_the_array_are_refused(tmp_path, leaves):
    name = "Encoder/encoderblock_1/Moe/Mlp/Dense_1/bias"
    for parts in ([((0, 2), (0, 8))] * 2, [((0, 2), (0, 8))], [((0, 4), (0, 7))]):
        release = Release(leaves)
        release.index[name][1:] = [parts, [0] * len(parts)]
        with pytest.raises(
            Error, match=rf"{name}: the parts \[0:.* not an array of shape \(4, 8\)"
        ):
            read_vmoe(release.write(tmp_path))


def test_shards_that_do_not_fit_the_index_are_refused(tmp_path, leaves):
    def spoiled(change):
        release = Release(leaves)
        change(release)
        return release.write(tmp_path)

    def shorter(release):
        release.data[0]["0"][0][0] = [array(np.zeros(7, np.float32))]

    def of_another_dtype(release):
        release.data[0]["0"][0][0] = [array(np.zeros(8, np.float64))]

    def twice(release):
        release.data[0]["0"] *= 2

    def not_there(release):
        del release.data[0]["0"]

    bias = r"Encoder/encoder_norm/bias"
    expected = {
        shorter: rf"part \[0:8\] of {bias} has 7 elements of float32, expected 8 of float32",
        of_another_dtype: rf"{bias} has 8 elements of float64, expected 8 of float32",
        twice: rf"part \[0:8\] of {bias} is here once more than the index says",
        not_there: rf"does not hold what the index says: {bias}\[0:8\] are missing",
    }
    for change, text in expected.items():
        with pytest.raises(Error, match=rf"release.data-00000-of-00003 .*{text}"):
            read_vmoe(spoiled(change))


def test_no_bytes_raise_anything_but_an_error(tmp_path, leaves):
    prefix = Release(leaves).write(tmp_path)
    rng = np.random.default_rng(1)
    refused = 0
    for path in sorted(tmp_path.iterdir()):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            broken = whole.copy()
            broken[rng.integers(min(len(broken), 2000))] = rng.integers(256)
            end = len(broken) if rng.random() < 0.5 else int(rng.integers(len(broken)))
            path.write_bytes(broken[:end].data)
            try:
                read_vmoe(prefix)
            except Error as problem:
                refused += 1
                assert str(prefix) in problem.message
        path.write_bytes(whole.data)
    assert refused > 300
    assert_same(read_vmoe(prefix), leaves)


def test_parameters_without_a_place_in_the_model_are_listed(tmp_path, leaves):
    leaves |= {
        "Encoder/encoderblock_0/SelfAttention/query_ln/scale": np.ones(4),
        "extra": np.ones(1),
    }
    prefix = Release(leaves).write(tmp_path)
    with pytest.raises(Error, match=r"no place for: Encoder/encoderblock_0/.*/scale, extra$"):
        read_vmoe(prefix)
    assert inspect(prefix).filter(pl.col("name").is_null())["key"].to_list() == [
        "Encoder/encoderblock_0/SelfAttention/query_ln/scale",
        "extra",
    ]


def test_every_extension_type_and_chunked_arrays_of_flax_are_read(tmp_path):
    big = np.arange(10, dtype=np.float32).reshape(2, 5)
    halves = {"0": array(big.reshape(-1)[:6]), "1": array(big.reshape(-1)[6:])}
    one = [packed((1, 3, None)), packed((0, None, 2))]
    tree = {
        "bf16": array(np.arange(3).astype(ml_dtypes.bfloat16)),
        "complex": extended(2, (1.0, -2.0)),
        "scalar": extended(3, ((), "int8", b"\x07")),
        "shaped": extended(4, ((2, 3), "bfloat16", False, {})),
        "slice": extended(5, (1, 3, None)),
        "slices": extended(6, one),
        "grid": extended(7, ((1, 2), [packed(one), packed(one[:1])])),
        "big": {CHUNKED: True, "shape": {"0": 2, "1": 5}, "chunks": halves},
    }
    (tmp_path / "tree").write_bytes(packed(tree))
    found = read_tree(tmp_path / "tree")
    np.testing.assert_array_equal(found["big"], big)
    assert found["bf16"].dtype == ml_dtypes.bfloat16
    assert found["bf16"].tolist() == [0, 1, 2]
    assert found["complex"] == 1 - 2j
    assert found["scalar"] == 7
    assert found["scalar"].dtype == np.int8
    assert found["shaped"] == ((2, 3), np.dtype(ml_dtypes.bfloat16))
    assert found["slice"] == slice(1, 3)
    assert found["slices"] == (slice(1, 3), slice(0, None, 2))
    assert found["grid"].shape == (1, 2)
    assert found["grid"][0, 1] == (slice(1, 3),)


def test_inspection_of_a_release_reads_the_index_alone(tmp_path, leaves):
    prefix = Release(leaves).write(tmp_path)
    for path in tmp_path.glob("*.data-*"):
        path.unlink()
    table = inspect(prefix)
    sizes = {name: leaf.nbytes for name, leaf in leaves.items()}
    assert dict(table.select("name", "bytes").iter_rows()) == sizes
    row = table.row(by_predicate=pl.col("name").str.ends_with("Moe/Mlp/Dense_0/kernel"), named=True)
    assert row["shape"] == [EXPERTS, WIDTH, MLP]
    assert row["dtype"] == "bfloat16"
    assert (
        table.filter("expert")["name"].str.contains("Moe/Mlp").sum() == table["expert"].sum() == 4
    )
    assert read_index(prefix)["cls"].shape == (1, 1, WIDTH)


NPZ = {"MlpBlock_3": "Mlp", "MultiHeadDotProductAttention_1": "SelfAttention",
       "LayerNorm_2": "LayerNorm_1", "Transformer": "Encoder"}  # fmt: skip


def npz_name(name):
    for theirs, ours in NPZ.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_vit_in_an_npz_file_comes_back_by_the_official_names(tmp_path, prefix):
    leaves = vit(np.random.default_rng(2), moe=(), representation=6)
    leaves["cls"] = leaves["cls"].astype(ml_dtypes.bfloat16)
    path = tmp_path / "vit.npz"
    np.savez(path, **{prefix + npz_name(name): leaf for name, leaf in leaves.items()})
    assert_same(read_vit_npz(path), leaves)
    assert inspect(path)["name"].null_count() == 0


def test_an_npz_file_that_is_broken_or_of_another_model_is_refused(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(path, **{"conv_root/kernel": np.ones(3), "cls": np.ones((1, 1, 8))})
    with pytest.raises(Error, match=r"vit.npz has parameters .* no place for: conv_root/kernel$"):
        read_vit_npz(path)
    assert inspect(path)["name"].to_list() == [None, "cls"]
    for content in (b"", b"not a file", path.read_bytes()[:-30], path.read_bytes()[:50]):
        path.write_bytes(content)
        with pytest.raises(Error, match=r"vit.npz is no whole .npz file"):
            read_vit_npz(path)
    rng = np.random.default_rng(3)
    np.savez_compressed(path, cls=rng.normal(size=(1, 1, 8)))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(300):
        broken = whole.copy()
        broken[rng.integers(len(broken))] = rng.integers(256)
        path.write_bytes(broken.data)
        try:
            read_vit_npz(path)
        except Error:
            refused += 1
    assert refused > 200
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(Error, match=r"array.npy is no whole .npz file"):
        read_vit_npz(tmp_path / "array.npy")


def test_the_configuration_is_inferred_from_shapes():
    leaves = vit(np.random.default_rng(5), layers=4, moe=(1, 3), side=7, representation=6)
    assert config_of(nest(leaves)) == {
        "patch_size": PATCH,
        "num_layers": 4,
        "hidden_size": WIDTH,
        "mlp_dim": MLP,
        "num_heads": HEADS,
        "moe_layers": (1, 3),
        "num_experts": EXPERTS,
        "image_size": 7 * PATCH,
        "channels": 3,
        "num_classes": CLASSES,
        "classifier": "token",
        "position": "learned",
        "representation": 6,
    }
    plain = config_of(nest(vit(np.random.default_rng(5), moe=(), token=False)), image_size=48)
    assert plain["moe_layers"] == ()
    assert plain["classifier"] == "gap"
    assert plain["image_size"] == 48
    assert "num_experts" not in plain


def test_parameters_that_are_no_model_are_refused():
    def without(*names):
        leaves = vit(np.random.default_rng(6))
        return {name: leaf for name, leaf in leaves.items() if not name.startswith(names)}

    positions, router = "Encoder/posembed_input/pos_embedding", "Encoder/encoderblock_1/Moe/Router"
    faults = {
        "there is no embedding/kernel": without("embedding"),
        r"the layers \[1\] are not all from 0 on": without("Encoder/encoderblock_0"),
        "there is no Encoder/encoderblock_1/Mlp/Dense_0/kernel": without(router),
        r"has the shape \(8, 2, 2\): this is an ensemble of 2 models": without(router)
        | {f"{router}/dense/kernel": np.ones((8, 2, 2))},
        "patches of 4 x 2; they must be square": without()
        | {"embedding/kernel": np.ones((4, 2, 3, 8))},
        "6 position embeddings are those of no square": without() | {positions: np.ones((1, 7, 8))},
        "differ in widths of the feed-forward blocks: 3, 12": without()
        | {"Encoder/encoderblock_0/Mlp/Dense_0/kernel": np.ones((8, 3))},
    }
    for text, leaves in faults.items():
        with pytest.raises(Error, match=text):
            config_of(nest(leaves))
