"""Models made of the weights of others, against the formulas in NumPy and against timm."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from chapbook.core.errors import Error
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.flax_msgpack import flatten, nest
from chapbook.vmoe.loading import (
    adapt,
    listed_model,
    load_timm,
    load_vit_npz,
    load_vmoe,
    parameters_of,
)
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.official import config_of, inspect, read_timm
from chapbook.vmoe.saving import save

PATCH, CLASSES, SIDE = 4, 5, 3
POSITIONS = "Encoder/posembed_input/pos_embedding"
DENSE = VMoEConfig(
    patch_size=PATCH, num_layers=2, hidden_size=8, mlp_dim=12, num_heads=2, num_classes=CLASSES,
    image_size=SIDE * PATCH,
)  # fmt: skip
# With room for all choices, so that the formulas need no buffers.
SPARSE = dataclasses.replace(DENSE, moe_layers=(1,), num_experts=4, capacity_factor=2.0)


def random_model(config, seed=0):
    rng = np.random.default_rng(seed)
    model = eqx.filter_eval_shape(VisionTransformerMoE, config, key=jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype) if hasattr(x, "shape") else x,
        model,
    )


def leaves_of(model):
    return {name: np.asarray(leaf) for name, leaf in flatten(parameters_of(model))}


def an_image():
    rng = np.random.default_rng(1)
    return rng.normal(size=(SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)


@eqx.filter_jit
def logits(model, images):
    return model(images)[0]


def logits_of(model, image):
    return np.asarray(logits(model, jnp.asarray(image)[None])[0])


def norm(x, scale, shift):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + shift


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attended(x, z, p):
    q, k, v = (
        np.einsum("td,dhe->hte", y, p[f"{part}/kernel"]) + p[f"{part}/bias"][:, None]
        for y, part in ((x, "query"), (z, "key"), (z, "value"))
    )
    y = softmax(np.einsum("hte,hse->hts", q, k) / math.sqrt(q.shape[-1])) @ v
    return np.einsum("hte,hed->td", y, p["out/kernel"]) + p["out/bias"]


def mlp(x, p):
    hidden = gelu_tanh(x @ p["Dense_0/kernel"] + p["Dense_0/bias"])
    return hidden @ p["Dense_1/kernel"] + p["Dense_1/bias"]


def routed(x, p, k):
    """Each token's sum over its k experts of gate times output."""
    experts = under(p, "Mlp/")
    gates = softmax(x @ p["Router/dense/kernel"])
    total = np.zeros_like(x)
    for t, row in enumerate(gates):
        for e in np.argsort(-row)[:k]:
            total[t] += row[e] * mlp(x[t], {name: leaf[e] for name, leaf in experts.items()})
    return total


def under(leaves, start):
    return {k.removeprefix(start): v for k, v in leaves.items() if k.startswith(start)}


def official_logits(leaves, image, k=2):
    """The logits of an image (H, W, 3) by the formulas of the official code, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
    rows, columns = (size // PATCH for size in image.shape[:2])
    patches = image.astype(np.float64).reshape(rows, PATCH, columns, PATCH, 3)
    x = np.einsum("rpcqi,pqid->rcd", patches, p["embedding/kernel"]).reshape(rows * columns, -1)
    x = x + p["embedding/bias"]
    x = np.concatenate([p["cls"][0], x]) if "cls" in p else x
    x = x + p["Encoder/posembed_input/pos_embedding"][0]
    for i in range(2):
        b = under(p, f"Encoder/encoderblock_{i}/")
        y = norm(x, b["LayerNorm_0/scale"], b["LayerNorm_0/bias"])
        x = x + attended(y, y, under(b, "SelfAttention/"))
        y = norm(x, b["LayerNorm_1/scale"], b["LayerNorm_1/bias"])
        moe = under(b, "Moe/")
        x = x + (routed(y, moe, k) if moe else mlp(y, under(b, "Mlp/")))
    x = norm(x, p["Encoder/encoder_norm/scale"], p["Encoder/encoder_norm/bias"])
    if "MapHead/probe" in p:
        pool = under(p, "MapHead/")
        y = attended(pool["probe"][0], x, under(pool, "MultiHeadDotProductAttention/"))
        z = norm(y, pool["LayerNorm/scale"], pool["LayerNorm/bias"])
        x = (y + mlp(z, under(pool, "Mlp/")))[0]
    else:
        x = x[0] if "cls" in p else x.mean(0)
    if "pre_logits/kernel" in p:
        x = np.tanh(x @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    return x @ p["head/kernel"] + p["head/bias"]


def write_release(folder, leaves):
    """A release of one shard that holds every array whole."""

    def packed(value):
        return msgpack.packb(value, use_bin_type=True)

    shard: dict[str, Any] = {"__msgpack_array_chunk_a87ca2__": True}
    index: dict[str, Any] = {}
    tree, _ = jax.tree.flatten(nest({name: name for name in leaves}))
    for number, name in enumerate(tree):
        leaf = leaves[name]
        part = packed([packed((0, size, None)) for size in leaf.shape])
        shaped = packed((leaf.shape, leaf.dtype.name, False, {}))
        piece = msgpack.ExtType(1, packed(((leaf.size,), leaf.dtype.name, leaf.tobytes())))
        shard[str(number)] = [[[piece], msgpack.ExtType(6, part)]]
        *parents, key = name.split("/")
        node = index
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = msgpack.ExtType(8, packed((shaped, [part], [0])))
    told = {"version": "20220622", "shard_count": 1, "index": index}
    (folder / "release.index").write_bytes(packed(told))
    (folder / "release.data-00000-of-00001").write_bytes(packed(shard))
    return folder / "release"


@pytest.mark.parametrize(
    "config",
    [SPARSE, dataclasses.replace(SPARSE, classifier="map", representation=6)],
    ids=["token", "map"],
)
def test_a_release_gives_the_logits_of_the_official_formulas(tmp_path, config):
    leaves = leaves_of(random_model(config))
    model = load_vmoe(write_release(tmp_path, leaves), capacity_factor=2.0, position="learned")
    assert model.config == config
    image = an_image()
    np.testing.assert_allclose(
        logits_of(model, image), official_logits(leaves, image), rtol=2e-4, atol=2e-5
    )


def test_what_no_shape_tells_is_given_as_a_setting(tmp_path):
    prefix = write_release(tmp_path, leaves_of(random_model(SPARSE)))
    config = load_vmoe(prefix, num_selected_experts=1, capacity_factor=4.0).config
    assert config == dataclasses.replace(SPARSE, num_selected_experts=1, capacity_factor=4.0)
    with pytest.raises(Error, match="there is no setting experts_selected") as caught:
        load_vmoe(prefix, experts_selected=1)
    assert "num_selected_experts" in str(caught.value.hint)


def test_a_vit_in_an_npz_file_gives_the_logits_of_the_official_formulas(tmp_path):
    config = dataclasses.replace(DENSE, classifier="gap")
    leaves: dict[str, Any] = leaves_of(random_model(config))
    np.savez(tmp_path / "vit.npz", **leaves)
    model = load_vit_npz(tmp_path / "vit.npz")
    assert model.config == config
    image = an_image()
    np.testing.assert_allclose(
        logits_of(model, image), official_logits(leaves, image), rtol=2e-4, atol=2e-5
    )


def timm_vit(width=128, layers=2, mlp=96):
    """The state of timm's VisionTransformer: outputs first, queries, keys and values in one."""
    rng = np.random.default_rng(2)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, SIDE**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (CLASSES, width),
        "head.bias": (CLASSES,),
    }
    for i in range(layers):
        block = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,),
                 "norm2.bias": (width,), "attn.qkv.weight": (3 * width, width),
                 "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
                 "attn.proj.bias": (width,), "mlp.fc1.weight": (mlp, width), "mlp.fc1.bias": (mlp,),
                 "mlp.fc2.weight": (width, mlp), "mlp.fc2.bias": (width,)}  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {
        name: (0.1 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }


def timm_logits(state, image, heads):
    """The logits of an image (H, W, 3) by timm's formulas, in float64."""
    image = image.astype(np.float64).transpose(2, 0, 1)
    p = {name: value.astype(np.float64) for name, value in state.items()}
    kernel = p["patch_embed.proj.weight"]
    rows, columns = (size // PATCH for size in image.shape[1:])
    patches = image.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 3, 0, 2, 4)
    x = patches.reshape(rows * columns, -1) @ kernel.reshape(len(kernel), -1).T
    x = np.concatenate([p["cls_token"][0], x + p["patch_embed.proj.bias"]]) + p["pos_embed"][0]
    for i in range(2):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if f"blocks.{i}." in k}
        y = norm(x, b["norm1.weight"], b["norm1.bias"])
        y = y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = y.reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
        y = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) @ v
        y = y.transpose(1, 0, 2).reshape(len(x), -1)
        x = x + y @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = norm(x, b["norm2.weight"], b["norm2.bias"])
        y = gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = norm(x[0], p["norm.weight"], p["norm.bias"])
    return x @ p["head.weight"].T + p["head.bias"]


@pytest.mark.parametrize("heads", [None, 4])
def test_timms_weights_give_the_logits_of_its_formulas(tmp_path, heads):
    state, image = timm_vit(), an_image()
    save_file(state, tmp_path / "model.safetensors")
    model = load_timm(tmp_path / "model.safetensors", num_heads=heads)
    assert model.config.num_heads == (heads or 2)
    np.testing.assert_allclose(
        logits_of(model, image), timm_logits(state, image, heads or 2), rtol=2e-4, atol=2e-5
    )


def test_a_model_gives_the_logits_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=7
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
        images = torch.randn(4, 3, 32, 32)
        expected = theirs(images).numpy()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    model = load_timm(tmp_path / "model.safetensors")
    found = logits(model, jnp.asarray(images.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_timm_model_that_is_no_plain_vit_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    state = timm_vit(72)
    save_file(state, path)
    with pytest.raises(Error, match=r"a width of 72 cannot have 1 heads") as caught:
        read_timm(path)
    assert caught.value.hint == "pass num_heads"
    assert config_of(read_timm(path, 9))["num_heads"] == 9
    with pytest.raises(Error, match=r"a width of 72 cannot have 5 heads"):
        read_timm(path, 5)
    save_file(state | {"blocks.0.attn.qkv.weight": np.ones((72, 72), np.float32)}, path)
    with pytest.raises(
        Error, match=r"blocks.0.attn.qkv.weight has the shape \(72, 72\): cannot re"
    ):
        read_timm(path, 6)
    save_file(state | {"blocks.0.ls1.gamma": np.ones(3), "reg_token": np.ones(3)}, path)
    with pytest.raises(Error, match=r"no place for: blocks.0.ls1.gamma, reg_token$"):
        read_timm(path, 6)
    assert inspect(path).filter(pl.col("name").is_null())["key"].to_list() == [
        "blocks.0.ls1.gamma",
        "reg_token",
    ]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Error, match=r"model.safetensors is no whole .safetensors file"):
        read_timm(path, 6)


def test_everything_that_does_not_fit_is_told_in_one_error(tmp_path):
    leaves = leaves_of(random_model(SPARSE))
    del leaves["Encoder/encoderblock_0/SelfAttention/query/bias"]
    leaves["pre_logits/kernel"] = np.ones((8, 6), np.float32)
    leaves["Encoder/encoderblock_1/Moe/Mlp/Dense_1/bias"] = np.ones((4, 7), np.float32)
    with pytest.raises(Error) as caught:
        load_vmoe(write_release(tmp_path, leaves))
    message = caught.value.message
    assert "missing: Encoder/encoderblock_0/SelfAttention/query/bias;" in message
    assert "unexpected: pre_logits/kernel;" in message
    assert message.endswith(
        "mis-shaped: Encoder/encoderblock_1/Moe/Mlp/Dense_1/bias is (4, 7), wanted (4, 8)"
    )


def test_another_number_of_classes_needs_a_new_head(tmp_path):
    config = dataclasses.replace(SPARSE, representation=6)
    leaves = leaves_of(random_model(config))
    prefix = write_release(tmp_path, leaves)
    with pytest.raises(Error, match=r"head/kernel is \(6, 5\), wanted \(6, 3\)") as caught:
        load_vmoe(prefix, num_classes=3)
    assert caught.value.hint == "for a fresh head pass new_head=True"
    with pytest.raises(Error, match=r"unexpected: pre_logits/bias, pre_logits/kernel"):
        load_vmoe(prefix, representation=None)
    model = load_vmoe(prefix, num_classes=3, representation=None, head_bias=-2.0, new_head=True)
    found = leaves_of(model)
    np.testing.assert_array_equal(found["head/kernel"], np.zeros((8, 3)))
    np.testing.assert_array_equal(found["head/bias"], np.full(3, -2))
    kept = {k: v for k, v in leaves.items() if not k.startswith(("head/", "pre_logits/"))}
    for name, leaf in kept.items():
        np.testing.assert_array_equal(found[name], leaf)
    assert load_vmoe(prefix, num_classes=0, representation=None, new_head=True).head is None


def zoomed(grid, rows, columns):
    """Linear interpolation whose corners stay, by its formula."""
    out = np.zeros((rows, columns, grid.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            y, x = r * (len(grid) - 1) / (rows - 1), c * (grid.shape[1] - 1) / (columns - 1)
            i, j = min(int(y), len(grid) - 2), min(int(x), grid.shape[1] - 2)
            a, b = y - i, x - j
            out[r, c] = (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, j + 1])
            out[r, c] += a * ((1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1])
    return out


@pytest.mark.parametrize("side", [5, 2])
def test_position_embeddings_are_zoomed_to_another_size_of_images(tmp_path, caplog, side):
    leaves = leaves_of(random_model(SPARSE))
    model = load_vmoe(write_release(tmp_path, leaves), image_size=side * PATCH)
    old = leaves[POSITIONS][0]
    new = zoomed(old[1:].reshape(SIDE, SIDE, -1), side, side).reshape(side**2, -1)
    found = leaves_of(model)[POSITIONS][0]
    np.testing.assert_allclose(found, np.concatenate([old[:1], new]), atol=1e-6)
    assert model.config.image_size == side * PATCH
    assert f"10 position embeddings are zoomed to the {side} x {side} patches" in caplog.text


def test_a_grid_that_is_no_square_is_refused_unless_it_is_given(tmp_path):
    leaves = leaves_of(random_model(SPARSE))
    leaves[POSITIONS] = np.random.default_rng(5).normal(size=(1, 1 + 2 * 3, 8)).astype(np.float32)
    prefix = write_release(tmp_path, leaves)
    with pytest.raises(Error, match=r"6 position embeddings are those of no square of patches"):
        load_vmoe(prefix)
    with pytest.raises(Error, match=r"6 position embeddings are no grid of 2 x 2"):
        load_vmoe(prefix, image_size=16)
    model = load_vmoe(prefix, image_size=16, grid=(2, 3))
    new = zoomed(leaves[POSITIONS][0, 1:].reshape(2, 3, -1), 4, 4).reshape(16, -1)
    np.testing.assert_allclose(leaves_of(model)[POSITIONS][0, 1:], new, atol=1e-6)


def test_a_model_without_learned_positions_needs_their_kind(tmp_path):
    leaves = leaves_of(random_model(dataclasses.replace(SPARSE, position="none")))
    prefix = write_release(tmp_path, leaves)
    with pytest.raises(Error, match=r"missing: Encoder/posembed_input/pos_embedding") as caught:
        load_vmoe(prefix, image_size=12)
    assert caught.value.hint == "say position='sincos2d' or position='none'"
    assert load_vmoe(prefix, image_size=12, position="sincos2d").position is None


def test_bfloat16_arrays_become_parameters_in_float32(tmp_path):
    leaves = leaves_of(random_model(SPARSE))
    low = {name: leaf.astype(jnp.bfloat16) for name, leaf in leaves.items()}
    model = load_vmoe(write_release(tmp_path, low))
    for name, leaf in leaves_of(model).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, low[name].astype(np.float32))


def test_a_model_is_adapted_to_another_task_and_size_with_its_own_settings_kept():
    config = dataclasses.replace(SPARSE, capacity_factor=3.0, batch_priority=True)
    model = random_model(config)
    other = adapt(model, num_classes=3, image_size=20, new_head=True)
    assert other.config == dataclasses.replace(config, num_classes=3, image_size=20)
    np.testing.assert_array_equal(
        other.blocks[1].ffn.router.kernel, model.blocks[1].ffn.router.kernel
    )
    same = adapt(model)
    assert eqx.tree_equal(same, model)


def test_a_models_folder_is_listed_like_a_release_of_it(tmp_path):
    model = random_model(SPARSE)
    save(model, tmp_path / "model")
    ours = listed_model(tmp_path / "model")
    theirs = inspect(write_release(tmp_path, leaves_of(model)))
    columns = ["name", "dtype", "expert", "bytes"]
    assert ours.select(columns).sort("name").equals(theirs.select(columns).sort("name"))
    with pytest.raises(Error, match=r"weights.safetensors is no whole .safetensors file"):
        listed_model(tmp_path)
