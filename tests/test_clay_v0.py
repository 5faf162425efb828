"""The encoder against its numbers, an independent implementation and embeddings of the original one."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from reference import relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from daskembed.encoders import clay_v0
from daskembed.encoders.clay_v0 import LEVELS
from daskembed.encoders.clay_v0_model import encodings, reduce_tokens
from daskembed.encoders.description import Place
from daskembed.encoders.untrained import untrained_state
from daskembed.errors import CheckpointError, InputError
from daskembed.sensors.bands import CLAY_V0
from daskembed.testing import landscape

FP32 = 2e-6
"""Largest relative error of one vector in float32."""
BF16 = {"mean": 5e-3, "patch": 5e-3, "group": 6e-3}
"""Largest relative error of all vectors of a level together in bfloat16."""
COSINE = 0.9999
"""Smallest cosine between a vector and the expected one in bfloat16."""

Embed = Callable[..., np.ndarray]


def metadata_of(lat: np.ndarray, lon: np.ndarray, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return clay_v0.metadata(Place(lat[:, None], lon[:, None], days, np.full(len(lat), 10.0)))


def make_model(size: str, dtype: torch.dtype) -> Embed:
    model = clay_v0.build(
        untrained_state(clay_v0, size, 0), clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=dtype
    )

    def embed(scenes: list[tuple], level: str) -> np.ndarray:
        pixels, lats, lons, days = zip(*scenes, strict=True)
        latlon, time = metadata_of(np.array(lats), np.array(lons), np.array(days, "datetime64[D]"))
        with torch.inference_mode():
            found = model(torch.stack(pixels), torch.from_numpy(latlon), torch.from_numpy(time), level=level)
        return found.numpy()

    return embed


tiny = functools.cache(functools.partial(make_model, "tiny"))


@pytest.fixture(scope="module")
def small() -> Embed:
    return make_model("small", torch.float32)


@pytest.fixture(scope="module")
def scenes() -> list[tuple]:
    return [(torch.from_numpy(landscape(512, 512, seed=seed)), *place) for seed, *place in reference.SCENES]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "data" / "expected.npz") as file:
        return dict(file)


def assert_bf16_close(found: np.ndarray, expected: np.ndarray, level: str) -> None:
    assert found.shape == expected.shape
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) <= BF16[level]
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((found * expected).sum(-1) / lengths).min() >= COSINE


def kept_of(level: str, embeddings: np.ndarray, expected: dict[str, np.ndarray]) -> np.ndarray:
    """The places of tiny's embeddings that expected.npz keeps."""
    if level == "patch":
        places = expected["tiny_patches"]
        return embeddings[:, places][:, :, places]
    if level == "group":
        rows, cols = expected["tiny_groups"].T
        return embeddings[:, :, rows, cols]
    return embeddings


# --- Numbers -----------------------------------------------------------------


def test_position_encoding_has_the_published_values():
    position = encodings(768, 6, 16)[0, :, :384]
    np.testing.assert_allclose(position[1, 0:3], [0.8415, 0.7880, 0.7337], atol=5e-5)
    np.testing.assert_allclose(position[1, 96:99], [0.5403, 0.6156, 0.6795], atol=5e-5)
    np.testing.assert_array_equal(position[16, 192:195], position[1, 0:3])


def test_band_encoding_has_the_published_values():
    band = encodings(768, 6, 16)[:, 0, 384:]
    np.testing.assert_allclose(band[1, 0:3], [0.8415, 0.8151, 0.7883], atol=5e-5)
    np.testing.assert_allclose(band[1, 192:195], [0.5403, 0.5793, 0.6153], atol=5e-5)
    np.testing.assert_array_equal(band[0], [0] * 192 + [1] * 192)


@pytest.mark.parametrize("dim", [dim for dim, *_ in clay_v0.SIZES.values()])
def test_every_token_has_its_position_then_its_band(dim):
    found = encodings(dim, 6, 16)
    assert found.shape == (6, 256, dim)
    assert found.dtype == np.float32
    half = (6, 256, dim // 2)
    position = np.broadcast_to(reference.position_encoding(dim).numpy(), half)
    band = np.broadcast_to(reference.band_encoding(dim).numpy()[:, None], half)
    np.testing.assert_allclose(found, np.concatenate([position, band], axis=-1), rtol=0, atol=1e-7)


def test_metadata_of_the_published_example():
    latlon, time = metadata_of(
        np.array([-59.561105]), np.array([177.044855]), np.array(["2022-12-31"], "datetime64[D]")
    )
    np.testing.assert_allclose(latlon, [[-0.86217, -1.51922]], atol=5e-6)
    np.testing.assert_allclose(time, [[-1.919862, 1.570796, 1.570796]], atol=5e-7)
    assert latlon.dtype == time.dtype == np.float32


@given(st.floats(-90, 90), st.floats(-180, 180), st.dates(date(1990, 1, 1), date(2100, 1, 1)))
def test_metadata_of_any_place_and_date(lat, lon, day):
    latlon, time = metadata_of(np.array([lat]), np.array([lon]), np.array([day], "datetime64[D]"))
    for found, expected in zip((latlon, time), reference.metadata(lat, lon, day.isoformat()), strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)


def test_metadata_keeps_chips_apart():
    lat, lon = np.array([10.0, -20.0]), np.array([30.0, -140.0])
    days = np.array(["2017-03-01", "2021-11-30"], "datetime64[D]")
    both = metadata_of(lat, lon, days)
    for i in range(2):
        one = metadata_of(lat[i : i + 1], lon[i : i + 1], days[i : i + 1])
        np.testing.assert_array_equal(both[0][i], one[0][0])
        np.testing.assert_array_equal(both[1][i], one[1][0])


def test_bands_their_statistics_and_groups():
    names = "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12 vh vv dem"
    assert " ".join(CLAY_V0.names) == names
    assert [band.mean for band in CLAY_V0.bands] == list(reference.MEAN)
    assert [band.std for band in CLAY_V0.bands] == list(reference.STD)
    assert [(name, list(bands)) for name, bands in clay_v0.GROUPS.items()] == reference.BAND_GROUPS
    np.testing.assert_array_equal(clay_v0.describe("tiny").fill_values, reference.MEAN)


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"),
    [("tiny", 74, 5_520_128), ("small", 162, 95_271_168), ("medium", 294, 315_894_784), ("large", 382, 604_686_080)],
)
def test_parameter_counts(size, tensors, parameters):
    shapes = clay_v0.parameter_shapes(size)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters
    assert clay_v0.size_of(shapes) == size


def test_parameter_names_and_shapes():
    shapes = clay_v0.parameter_shapes("large")
    assert shapes["latlon_embedding.weight"] == (1280, 2)
    assert shapes["time_embedding.weight"] == (1280, 3)
    assert shapes["patch_embedding.rededge.proj.weight"] == (1280, 4, 32, 32)
    assert shapes["patch_embedding.dem.norm.bias"] == (1280,)
    assert shapes["transformer.layers.31.0.to_qkv.weight"] == (3 * 1024, 1280)
    assert shapes["transformer.layers.31.0.to_out.0.weight"] == (1280, 1024)
    assert shapes["transformer.layers.31.1.net.1.weight"] == (5120, 1280)
    assert shapes["transformer.layers.31.1.net.4.weight"] == (1280, 5120)
    assert "transformer.layers.31.0.to_qkv.bias" not in shapes


def test_unknown_size_is_refused():
    shapes = {"transformer.norm.weight": (512,), "transformer.layers.0.0.to_qkv.weight": (1536, 512)}
    with pytest.raises(CheckpointError, match=r"has dim 512 and 1 layers.*expected one of tiny \(256, 4\), small"):
        clay_v0.size_of(shapes)


@pytest.mark.parametrize("level", ["", "Mean", "patches", "embedding"])
def test_unknown_level(level):
    with pytest.raises(InputError, match=f"unknown level {level!r}: Clay v0 has mean, patch, group"):
        clay_v0.describe("tiny").shape(level)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sensor": "landsat"}, "sensor 'landsat': Clay v0 reads the bands B02"),
        ({"sensor": "landsat"}, "no other sensor's; `encoder='clay-v1.5'` takes images of one sensor"),
        ({"window": 256}, "window 256: Clay v0 sees a whole chip of 512"),
    ],
)
def test_what_it_cannot_take(given, said):
    with pytest.raises(InputError, match=said):
        clay_v0.describe("tiny", **given)


def test_embedding_shapes():
    assert clay_v0.describe("small").shape("mean") == (768,)
    assert clay_v0.describe("small").shape("patch") == (16, 16, 768)
    assert clay_v0.describe("large").shape("group") == (6, 16, 16, 1280)


# --- Against stored embeddings of synthetic chips ------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_tiny_in_float32(scenes, expected, level):
    found = tiny(torch.float32)(scenes, level)
    assert found.shape == (2, *clay_v0.describe("tiny").shape(level))
    assert found.dtype == np.float32
    assert relative_error(kept_of(level, found, expected), expected[f"tiny_{level}"]) <= FP32


@pytest.mark.parametrize("level", LEVELS)
def test_tiny_in_bfloat16(scenes, expected, level):
    found = tiny(torch.bfloat16)(scenes, level)
    assert found.dtype == np.float32
    assert_bf16_close(kept_of(level, found, expected), expected[f"tiny_{level}"], level)


def test_small_in_float32(small, scenes, expected):
    patch = small(scenes[:1], "patch")
    rows, cols = expected["small_patches"].T
    assert relative_error(patch[:, rows, cols], expected["small_patch"]) <= FP32
    assert relative_error(patch.mean((1, 2), dtype=np.float64), expected["small_mean"]) <= FP32


# --- Against the independent implementation --------------------------------------


def test_attention_wider_than_the_tokens(scenes, monkeypatch):
    # As for `large`, heads * 64 is not dim.
    monkeypatch.setitem(clay_v0.SIZES, "odd", (128, 2, 3, 2))
    state = untrained_state(clay_v0, "odd", 7)
    pixels, lat, lon, day = scenes[0]
    latlon, time = reference.metadata(lat, lon, day)
    expected = reference.embed(state, pixels, latlon, time, heads=3).numpy()
    model = clay_v0.build(state, clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.float32)
    found = model(pixels[None], latlon[None].float(), time[None].float(), level="group")
    assert relative_error(found[0].numpy(), expected) <= FP32


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_beyond_the_range_of_exp(scenes, sign):
    # All scores of a query move by 200 or -200, which softmax does not see.
    state = untrained_state(clay_v0, "tiny", 0)
    for name in (f"transformer.layers.{i}.0" for i in range(4)):
        state[f"{name}.norm.weight"][0], state[f"{name}.norm.bias"][0] = 0, 10
        # The first number of each head's query and key is 40 or -40, which bfloat16 holds exactly.
        state[f"{name}.to_qkv.weight"][:512:64] = 0
        state[f"{name}.to_qkv.weight"][:512:64, 0] = torch.tensor([4.0 * sign] * 4 + [4.0] * 4)
    pixels, lat, lon, day = scenes[0]
    latlon, time = reference.metadata(lat, lon, day)
    expected = reference.embed(state, pixels, latlon, time, heads=4).numpy()
    model = clay_v0.build(state, clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.bfloat16)
    found = model(pixels[None], latlon[None].float(), time[None].float(), level="group")
    assert_bf16_close(found[0].numpy(), expected, "group")


def test_tiny_in_float64(scenes):
    pixels, lat, lon, day = scenes[1]
    state = untrained_state(clay_v0, "tiny", 0)
    expected = reference.embed(state, pixels, *reference.metadata(lat, lon, day), heads=4).numpy()
    found = tiny(torch.float64)([scenes[1]], "group")
    # Encodings and metadata are rounded to float32 in the package.
    assert relative_error(found[0], expected) <= 1e-7


# --- What a chip's embedding depends on ---------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64])
def test_type_of_the_pixels_makes_no_difference(scenes, dtype):
    pixels, *place = scenes[0]
    whole = np.round(pixels.numpy())
    as_float = tiny(torch.float32)([(torch.from_numpy(whole), *place)], "patch")
    as_dtype = tiny(torch.float32)([(torch.from_numpy(whole.astype(dtype)), *place)], "patch")
    np.testing.assert_array_equal(as_dtype, as_float)


def test_chips_of_a_batch_do_not_mix(scenes):
    both = tiny(torch.float32)(scenes, "patch")
    swapped = tiny(torch.float32)(scenes[::-1], "patch")
    assert relative_error(swapped[::-1], both) <= FP32
    for i, scene in enumerate(scenes):
        assert relative_error(tiny(torch.float32)([scene], "patch"), both[i : i + 1]) <= FP32


def test_pixels_are_not_changed(scenes):
    before = scenes[0][0].clone()
    tiny(torch.float32)(scenes[:1], "mean")
    assert torch.equal(scenes[0][0], before)


def test_place_and_date_count(scenes):
    pixels, lat, lon, day = scenes[0]
    variants = [(pixels, lat, lon, day), (pixels, lat + 20, lon, day), (pixels, lat, lon + 20, day)]
    variants.append((pixels, lat, lon, "2020-09-01"))
    means = tiny(torch.float32)(variants, "mean")
    assert all(relative_error(means[i], means[0]) > 1e-4 for i in range(1, 4))


# --- Against the original implementation's embeddings of real chips -------------------


def real_scene(shared: Path, path: str) -> tuple:
    with rasterio.open(shared / "data" / "chips" / path) as chip:
        x, y = (chip.bounds.left + chip.bounds.right) / 2, (chip.bounds.bottom + chip.bounds.top) / 2
        lon, lat = Transformer.from_crs(chip.crs, "EPSG:4326", always_xy=True).transform(x, y)
        return torch.from_numpy(chip.read()), lat, lon, chip.tags()["date"]


def golden(shared: Path, size: str) -> dict[str, np.ndarray]:
    path = shared / "golden" / f"clay-v0-{size}-seed0.npz"
    if not path.is_file():
        pytest.skip(f"needs expected embeddings, and there are none at {path}")
    with np.load(path) as file:
        return dict(file)


def real_scenes_of(shared: Path, expected: dict[str, np.ndarray], level: str) -> list[tuple]:
    paths = expected["chips" if level == "mean" else f"{level}_chips"]
    return [real_scene(shared, str(path)) for path in paths]


@pytest.mark.real
@pytest.mark.parametrize("level", LEVELS)
def test_tiny_on_real_chips_in_float32(shared, level):
    expected = golden(shared, "tiny")
    found = tiny(torch.float32)(real_scenes_of(shared, expected, level), level)
    assert relative_error(found, expected[level]) <= FP32


@pytest.mark.real
@pytest.mark.parametrize("level", LEVELS)
def test_tiny_on_real_chips_in_bfloat16(shared, level):
    expected = golden(shared, "tiny")
    found = tiny(torch.bfloat16)(real_scenes_of(shared, expected, level), level)
    assert_bf16_close(found, expected[level], level)


@pytest.mark.faults
@pytest.mark.real
def test_small_on_real_chips(shared, small):
    expected = golden(shared, "small")
    chosen = [0, 8]
    real = [real_scene(shared, str(expected["chips"][i])) for i in chosen]
    assert relative_error(small(real, "mean"), expected["mean"][chosen]) <= FP32
    real = [real_scene(shared, str(expected["patch_chips"][1]))]
    assert relative_error(small(real, "patch"), expected["patch"][1:]) <= FP32


@pytest.mark.real
def test_the_independent_implementation_on_a_real_chip(shared):
    expected = golden(shared, "tiny")
    pixels, lat, lon, day = real_scene(shared, str(expected["patch_chips"][0]))
    state = untrained_state(clay_v0, "tiny", 0)
    found = reference.embed(state, pixels, *reference.metadata(lat, lon, day), heads=4)
    assert relative_error(found.mean(0).numpy(), expected["patch"][0]) <= 1e-6


@pytest.mark.parametrize("works", [True, False])
def test_compiled_blocks_give_the_same_numbers_with_and_without_a_compiler(works, monkeypatch, caplog):
    import torch._inductor.config  # takes seconds, in every process that looks for tests

    if works and shutil.which("g++") is None:
        pytest.skip("needs g++")
    if not works:
        monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nonexistent",))
        monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    torch._dynamo.reset()
    model = clay_v0.build(
        untrained_state(clay_v0, "tiny", 0), clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.float32
    )
    inputs = (torch.rand(1, 13, 512, 512), torch.zeros(1, 2), torch.zeros(1, 3))
    with torch.inference_mode():
        expected = model(*inputs, level="mean")
        model.transformer._step = model.transformer._run_compiled
        torch.testing.assert_close(model(*inputs, level="mean"), expected, rtol=0, atol=2e-6)
    assert ("torch.compile failed" in caplog.text) is not works
    assert (model.transformer._step == model.transformer._run_compiled) is works


def test_all_batch_sizes_share_one_compilation(monkeypatch) -> None:
    """What a chip's vector is must not depend on the size of the batch that a worker happened to meet first."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    model = clay_v0.build(
        untrained_state(clay_v0, "tiny", 0), clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.float32
    )
    model.transformer._step = model.transformer._run_compiled
    with torch.inference_mode():
        for chips in (4, 2, 3):
            model.transformer(torch.rand(chips, 6, 256))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_operations_are_those_that_torch_counts() -> None:
    model = clay_v0.build(
        untrained_state(clay_v0, "tiny", 0), clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.float32
    )
    # Of a fused attention on a CPU it counts nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model(torch.zeros(1, 13, 512, 512), torch.zeros(1, 2), torch.zeros(1, 3), level="mean")
    assert clay_v0.describe("tiny").flop == pytest.approx(counter.get_total_flops(), rel=1e-4)
    assert clay_v0.describe("small").flop == pytest.approx(0.3537e12, rel=1e-4)


# --- Levels ---

token_shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7))


@st.composite
def token_arrays(draw: st.DrawFn) -> np.ndarray:
    """Tokens (chip, group, row, col, embedding), in float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(draw(st.sampled_from([0, 5, -1e3])), 1, draw(token_shapes))


def test_levels_and_their_dimensions():
    assert LEVELS == {
        "mean": ("embedding",),
        "patch": ("row", "col", "embedding"),
        "group": ("group", "row", "col", "embedding"),
    }


@given(tokens=token_arrays())
def test_group_is_the_tokens_as_they_are(tokens):
    np.testing.assert_array_equal(reduce_tokens(tokens, "group"), tokens)


@given(tokens=token_arrays())
def test_patch_is_the_mean_over_groups(tokens):
    expected = sum(tokens[:, g] for g in range(tokens.shape[1])) / tokens.shape[1]
    np.testing.assert_allclose(reduce_tokens(tokens, "patch"), expected, rtol=1e-12, atol=1e-12)


@given(tokens=token_arrays())
def test_mean_is_the_mean_of_patch_and_of_group(tokens):
    mean, patch, group = (reduce_tokens(tokens, level) for level in ("mean", "patch", "group"))
    chips, *_, dim = tokens.shape
    np.testing.assert_allclose(mean, patch.reshape(chips, -1, dim).mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mean, group.reshape(chips, -1, dim).mean(1), rtol=1e-12, atol=1e-12)


@given(tokens=token_arrays(), level=st.sampled_from(list(LEVELS)))
def test_shapes_of_levels(tokens, level):
    chips, groups, rows, cols, dim = tokens.shape
    sizes = {"group": groups, "row": rows, "col": cols, "embedding": dim}
    assert reduce_tokens(tokens, level).shape == (chips, *(sizes[name] for name in LEVELS[level]))


@given(tokens=token_arrays(), level=st.sampled_from(list(LEVELS)))
def test_numpy_and_torch_agree(tokens, level):
    found = reduce_tokens(torch.from_numpy(tokens), level)
    np.testing.assert_allclose(found.numpy(), reduce_tokens(tokens, level), rtol=1e-12, atol=1e-12)
