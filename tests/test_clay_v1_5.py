"""The second encoder against an independent implementation and embeddings of the original one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import reference_v1_5 as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from reference import relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from daskembed.encoders import clay_v1_5
from daskembed.encoders.description import Place
from daskembed.encoders.untrained import untrained_state
from daskembed.errors import CheckpointError, InputError

LEVELS = ("cls", "mean", "patch")
FP32 = 5e-6
"""Largest relative error of one vector in float32; seen: 8e-7."""
BF16 = 8e-3
"""Largest relative error of one vector in bfloat16; seen: 7.4e-3 (cls), 3.9e-3 (mean), 6.0e-3 (patch)."""
COSINE = {"cls": 0.9999, "mean": 0.9999, "patch": 0.9995}
"""Smallest cosine between a vector and the expected one in bfloat16."""
NOON = datetime(2021, 8, 9, 12)

Embed = Callable[..., np.ndarray]


def make_place(lat: object, lon: object, when: list[datetime], gsd: list[float]) -> Place:
    dates = np.array([moment.isoformat() for moment in when], "datetime64[s]")
    return Place(np.array(lat, np.float64), np.array(lon, np.float64), dates, np.array(gsd, np.float64))


@functools.cache
def make_model(size: str, dtype: torch.dtype, sensor: str = "sentinel-2-l2a", window: int = 256) -> Embed:
    description = clay_v1_5.describe(size, sensor=sensor, window=window)
    state = untrained_state(clay_v1_5, size, 0)
    model = clay_v1_5.build(state, description, device=torch.device("cpu"), dtype=dtype)

    def embed(pixels: torch.Tensor, place: Place, level: str) -> np.ndarray:
        with torch.inference_mode():
            found = model(pixels, *map(torch.from_numpy, clay_v1_5.metadata(place)), level=level)
        assert found.dtype == torch.float32 or dtype == torch.float64
        assert found.shape == (len(pixels), *description.shape(level))
        return found.numpy()

    return embed


def digital_numbers(seed: int, bands: int = 10) -> torch.Tensor:
    """One chip of noise over slopes, so that no two windows, rows or columns are alike."""
    y, x = np.mgrid[:512, :512]
    noise = np.random.default_rng(seed).integers(0, 2000, (bands, 512, 512))
    return torch.from_numpy(noise + 3 * x + 2 * y + 100 * np.arange(bands)[:, None, None]).float()


def of_level(tokens: torch.Tensor, level: str) -> np.ndarray:
    side = math.isqrt(len(tokens) - 1)
    levels = {"cls": tokens[0], "mean": tokens[1:].mean(0), "patch": tokens[1:].reshape(side, side, -1)}
    return levels[level].numpy()


# --- Numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"),
    [("tiny", 85, 4_030_592), ("small", 85, 10_957_568), ("base", 145, 92_102_144), ("large", 265, 311_442_944)],
)
def test_parameter_counts(size, tensors, parameters):
    shapes = clay_v1_5.parameter_shapes(size)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters
    assert clay_v1_5.size_of(shapes) == size


def test_parameter_names_and_shapes():
    shapes = clay_v1_5.parameter_shapes("tiny")
    generator = "patch_embedding.weight_generator"
    assert shapes["cls_token"] == (1, 1, 192)
    assert shapes[f"{generator}.weight_tokens"] == (128, 128)
    assert shapes[f"{generator}.bias_token"] == (1, 128)
    assert shapes[f"{generator}.encoder.layers.0.self_attn.in_proj_weight"] == (384, 128)
    assert shapes[f"{generator}.encoder.layers.0.linear1.weight"] == (2048, 128)
    assert shapes[f"{generator}.fc_weight.weight"] == (64 * 192, 128)
    assert shapes[f"{generator}.fc_bias.bias"] == (192,)
    assert shapes["patch_embedding.fclayer.l2.weight"] == (128, 128)
    assert shapes["transformer.layers.5.0.to_qkv.weight"] == (3 * 4 * 48, 192)
    assert shapes["transformer.layers.5.0.to_out.weight"] == (192, 4 * 48)
    assert shapes["transformer.layers.5.1.net.3.weight"] == (192, 384)
    assert not {"transformer.layers.5.0.to_out.bias", "transformer.layers.5.0.to_qkv.bias"} & shapes.keys()


def test_unknown_size_is_refused():
    shapes = {"transformer.norm.weight": (512,), "transformer.layers.0.0.to_qkv.weight": (1536, 512)}
    with pytest.raises(
        CheckpointError, match=r"has dim 512 and 1 layers.*Clay v1\.5; expected one of tiny \(192, 6\), "
    ):
        clay_v1_5.size_of(shapes)


def test_description():
    found = clay_v1_5.describe("large")
    assert (found.title, found.sensor.name, found.resolution, found.window) == (
        "Clay v1.5",
        "sentinel-2-l2a",
        None,
        256,
    )
    assert {level: dict(dims) for level, dims in found.levels.items()} == {
        "cls": {"window": 4, "embedding": 1024},
        "mean": {"window": 4, "embedding": 1024},
        "patch": {"window": 4, "row": 32, "col": 32, "embedding": 1024},
    }
    assert next(iter(found.levels)) == "cls"
    assert found.fill_values == (1105, 1355, 1552, 1887, 2422, 2630, 2743, 2785, 2388, 1835)
    assert found.flop / 4 == pytest.approx(0.72e12, rel=0.01)
    assert clay_v1_5.describe("base").flop / 4 == pytest.approx(0.21e12, rel=0.02)


@pytest.mark.parametrize(("window", "windows", "side"), [(512, 1, 64), (128, 16, 16), (8, 4096, 1)])
def test_description_of_other_windows(window, windows, side):
    found = clay_v1_5.describe("tiny", window=window)
    assert found.window == window
    assert found.shape("cls") == (windows, 192)
    assert found.shape("patch") == (windows, side, side, 192)


@pytest.mark.parametrize("window", [200, 0, -8, 4, 24, 1024, 255, 256.5])
def test_window_that_does_not_fit(window):
    with pytest.raises(InputError) as error:
        clay_v1_5.describe("tiny", window=window)
    assert str(error.value) == (
        f"`window={window}`: a chip of 512 pixels is cut into windows, and these into patches of 8, without remainder: "
        "expected 8, 16, 32, 64, 128, 256 or 512"
    )


def test_unknown_sensor():
    with pytest.raises(InputError, match=r"unknown sensor 'sentinel-3': choose one of sentinel-2-l2a, "):
        clay_v1_5.describe("tiny", sensor="sentinel-3")


@given(
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.datetimes(datetime(1984, 1, 1), datetime(2100, 1, 1)),
)
def test_metadata_of_any_place_and_time(lat, lon, when):
    found, gsd = clay_v1_5.metadata(
        make_place([[lat, -lat / 2]], [[lon, lon / 3]], [when.replace(microsecond=0)], [10])
    )
    assert (found.shape, found.dtype, gsd.dtype) == ((1, 2, 8), np.float32, np.float32)
    np.testing.assert_allclose(found[0, 0], reference.when_where(when, lat, lon), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0, 1], reference.when_where(when, -lat / 2, lon / 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("day", "week"), [("2020-12-31", 53), ("2021-01-01", 53), ("2021-01-04", 1), ("2018-12-31", 1), ("1969-12-28", 52)]
)
def test_weeks_around_new_year(day, week):
    found, _ = clay_v1_5.metadata(make_place([[0.0]], [[0.0]], [datetime.fromisoformat(day)], [10]))
    assert date.fromisoformat(day).isocalendar().week == week
    turn = 2 * math.pi * week / 52
    np.testing.assert_allclose(found[0, 0, :2], [math.sin(turn), math.cos(turn)], atol=1e-6)


def test_metadata_of_a_published_form():
    # Week, hour, latitude and longitude, in this order, each as sine and cosine.
    (found,), gsd = clay_v1_5.metadata(make_place([[30.0]], [[-60.0]], [datetime(2024, 3, 31, 6, 59)], [0.6]))
    half, root = 0.5, math.sqrt(3) / 2
    np.testing.assert_allclose(found[0], [1, 0, 1, 0, half, root, -root, half], atol=1e-6)
    np.testing.assert_array_equal(gsd, np.array([0.6], np.float32))


# --- Against the independent implementation --------------------------------------


@pytest.mark.parametrize(("window", "gsd"), [(256, 10.0), (128, 0.6)])
def test_sentinel_2_windows(window, gsd):
    pixels, across = digital_numbers(1), 512 // window
    n = across**2
    lats, lons = np.linspace(-50, 80, n), np.linspace(-170, 20, n)
    embed, place = make_model("tiny", torch.float32, window=window), make_place([lats], [lons], [NOON], [gsd])
    found = {level: embed(pixels[None], place, level)[0] for level in LEVELS}
    for i in (1, n - across):
        y, x = (window * part for part in divmod(i, across))
        tokens = reference.embed(
            untrained_state(clay_v1_5, "tiny", 0),
            pixels[:, y : y + window, x : x + window],
            reference.SENTINEL_2,
            lat=lats[i],
            lon=lons[i],
            when=NOON,
            gsd=gsd,
            heads=4,
        )
        for level in LEVELS:
            assert relative_error(found[level][i], of_level(tokens, level)) <= FP32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sentinel_1_in_decibels(dtype):
    power = torch.exp(torch.from_numpy(np.random.default_rng(2).normal(-3, 1.5, (2, 512, 512)))).float()
    power[:, 5, 256:] = torch.tensor([0.0, -0.1])[:, None]
    lats, lons, when = [10.0, 11.0, 12.0, 13.0], [20.0, 21.0, 22.0, 23.0], datetime(2019, 1, 1, 17, 45)
    found = make_model("tiny", dtype, "sentinel-1-rtc")(
        power[None], make_place([lats], [lons], [when], [10.0]), "patch"
    )
    tokens = reference.embed(
        untrained_state(clay_v1_5, "tiny", 0),
        reference.decibels(power[:, :256, 256:]),
        reference.SENTINEL_1,
        lat=11,
        lon=21,
        when=when,
        gsd=10,
        heads=4,
    )
    assert relative_error(found[0, 1], of_level(tokens, "patch")) <= (FP32 if dtype == torch.float32 else BF16)


def test_missing_power_is_filled_with_the_mean():
    found = clay_v1_5.describe("tiny", sensor="sentinel-1-rtc")
    bands = reference.decibels(torch.tensor(found.fill_values)).tolist()
    assert bands == pytest.approx([mean for mean, *_ in reference.SENTINEL_1])


def test_tiny_in_float64():
    pixels = digital_numbers(3)
    found = make_model("tiny", torch.float64)(pixels[None], make_place([[1.0] * 4], [[2.0] * 4], [NOON], [10]), "patch")
    tokens = reference.embed(
        untrained_state(clay_v1_5, "tiny", 0),
        pixels[:, 256:, :256],
        reference.SENTINEL_2,
        lat=1,
        lon=2,
        when=NOON,
        gsd=10,
        heads=4,
    )
    # Encodings and metadata are rounded to float32 in the package.
    assert relative_error(found[0, 2], of_level(tokens, "patch")) <= 1e-6


# --- What an embedding depends on ---------------------------------------------------


def test_chips_of_a_batch_do_not_mix():
    embed = make_model("tiny", torch.float32)
    pixels = torch.stack([digital_numbers(4), digital_numbers(5)])
    lats, lons = [[1.0, 2, 3, 4], [-50.0, -51, -52, -53]], [[5.0, 6, 7, 8], [100.0, 101, 102, 103]]
    when, gsd = [NOON, datetime(2018, 2, 3, 4)], [10.0, 0.6]
    both = embed(pixels, make_place(lats, lons, when, gsd), "patch")
    for i in range(2):
        alone = embed(pixels[i : i + 1], make_place([lats[i]], [lons[i]], [when[i]], [gsd[i]]), "patch")
        assert relative_error(alone[0], both[i]) <= FP32


def test_resolution_place_and_time_count():
    embed, pixels = make_model("tiny", torch.float32), digital_numbers(6)[None]
    plain = embed(pixels, make_place([[10.0] * 4], [[20.0] * 4], [NOON], [10]), "cls")
    for place in (
        make_place([[20.0] * 4], [[10.0] * 4], [NOON], [10]),
        make_place([[10.0] * 4], [[20.0] * 4], [NOON.replace(hour=13)], [10]),
        make_place([[10.0] * 4], [[20.0] * 4], [NOON.replace(day=16)], [10]),
        make_place([[10.0] * 4], [[20.0] * 4], [NOON], [20]),
    ):
        assert relative_error(embed(pixels, place, "cls"), plain) > 1e-4


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64])
def test_type_of_the_pixels_makes_no_difference(dtype):
    embed, pixels = make_model("tiny", torch.float32), digital_numbers(7)[None]
    place = make_place([[10.0] * 4], [[20.0] * 4], [NOON], [10])
    before = pixels.clone()
    expected = embed(pixels, place, "mean")
    np.testing.assert_array_equal(embed(torch.from_numpy(pixels.numpy().astype(dtype)), place, "mean"), expected)
    assert torch.equal(pixels, before)


def test_a_sensor_of_one_s_own(tmp_path):
    # The bands of Sentinel-2 in another order, and so the same embedding.
    lines = ["name: mine", "gsd: 10", "bands:"]
    for i, (mean, std, wavelength) in reversed(list(enumerate(reference.SENTINEL_2))):
        lines.append(f"  - {{name: band {i}, mean: {mean}, std: {std}, wavelength: {wavelength}}}")
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    place, pixels = make_place([[10.0] * 4], [[20.0] * 4], [NOON], [10]), digital_numbers(8)[None]
    found = make_model("tiny", torch.float32, str(tmp_path / "mine.yaml"))(pixels.flip(1), place, "cls")
    assert relative_error(found, make_model("tiny", torch.float32)(pixels, place, "cls")) <= FP32


def test_operations_are_those_that_torch_counts() -> None:
    description = clay_v1_5.describe("tiny", sensor="naip")
    state = untrained_state(clay_v1_5, "tiny", 0)
    model = clay_v1_5.build(state, description, device=torch.device("cpu"), dtype=torch.float32)
    # Of a fused attention on a CPU it counts nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model(torch.zeros(1, 4, 512, 512), torch.zeros(1, 4, 8), torch.ones(1), level="cls")
    assert description.flop == pytest.approx(counter.get_total_flops(), rel=1e-4)


# --- Against the original implementation's embeddings of real chips -------------------


def golden(shared: Path, size: str) -> dict[str, np.ndarray]:
    path = shared / "golden" / f"clay-v1.5-{size}-seed0.npz"
    if not path.is_file():
        pytest.skip(f"needs expected embeddings, and there are none at {path}")
    with np.load(path) as file:
        return dict(file)


def embed_real(shared: Path, embed: Embed, windows: np.ndarray, level: str) -> np.ndarray:
    """Embeddings of windows, given as chip#number."""
    found: dict[str, np.ndarray] = {}
    for path in dict.fromkeys(window.rpartition("#")[0] for window in windows.tolist()):
        with rasterio.open(shared / "data" / "chips" / path) as chip:
            centres = [chip.xy(y, x, offset="ul") for y in (128, 384) for x in (128, 384)]
            lonlat = Transformer.from_crs(chip.crs, "EPSG:4326", always_xy=True)
            lons, lats = zip(*(lonlat.transform(*xy) for xy in centres), strict=True)
            when = datetime.fromisoformat(chip.tags()["date"]).replace(hour=12)
            pixels = torch.from_numpy(chip.read(list(range(1, 11))))
        vectors = embed(pixels[None], make_place([lats], [lons], [when], [10.0]), level)[0]
        found |= {f"{path}#{i}": vector for i, vector in enumerate(vectors)}
    return np.stack([found[window] for window in windows.tolist()])


def assert_bf16_close(found: np.ndarray, expected: np.ndarray, level: str) -> None:
    assert relative_error(found, expected) <= BF16
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((found * expected).sum(-1) / lengths).min() >= COSINE[level]


@pytest.mark.real
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", LEVELS)
def test_tiny_on_real_chips(shared, level, dtype):
    expected = golden(shared, "tiny")
    # All chips at the default level, four at the other ones, for the sake of time.
    windows = expected["patch_windows" if level == "patch" else "windows"][: 16 if level == "mean" else None]
    found = embed_real(shared, make_model("tiny", dtype), windows, level)
    if dtype == torch.float32:
        assert relative_error(found, expected[level][: len(windows)]) <= FP32
    else:
        assert_bf16_close(found, expected[level][: len(windows)], level)


@pytest.mark.faults
@pytest.mark.real
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_on_a_real_chip(shared, dtype):
    # Of one chip, for the sake of time; patches tell the other levels.
    expected = golden(shared, "base")
    found = embed_real(shared, make_model("base", dtype), expected["patch_windows"], "patch")
    if dtype == torch.float32:
        assert relative_error(found, expected["patch"]) <= FP32
    else:
        assert_bf16_close(found, expected["patch"], "patch")
