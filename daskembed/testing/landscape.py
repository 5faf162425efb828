"""Synthetic chips: a plausible landscape of fields, water, hills and towns, drawn from a seed.

Pixels come from integer draws, table look-ups, sums, products, quotients and square roots only: IEEE 754 rounds these
alike on every CPU, whereas an FFT or a sine may differ in the last bit and so, after rounding, now and then in a pixel.
"""

from __future__ import annotations

from datetime import date as calendar_date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskembed.geo.chips import CHIP, CHIPS_ACROSS
from daskembed.geo.mgrs import SIDE, check_tile, square_of
from daskembed.sensors.bands import CLAY_V0

BANDS = CLAY_V0.names

Field = NDArray[np.floating[Any]]

_COVERS: dict[str, tuple[float, float, tuple[float, ...]]] = {
    # share of bare soil at most, spread of brightness, (digital numbers B02..B12, vh and vv in units of 1e-4)
    "wheat": (0.6, 0.15, (290, 580, 300, 850, 2700, 3500, 3800, 3950, 1750, 850, 120, 450)),
    "rape": (0.2, 0.10, (500, 1220, 1020, 1600, 3000, 3600, 3900, 4000, 1900, 1000, 330, 1150)),
    "clover": (0.4, 0.15, (270, 640, 290, 900, 3200, 4200, 4500, 4600, 1900, 900, 180, 800)),
    "meadow": (0.2, 0.12, (400, 740, 520, 1100, 2300, 2700, 2900, 3050, 2200, 1200, 110, 480)),
    "maize": (1.0, 0.15, (560, 800, 840, 1180, 1900, 2250, 2450, 2600, 2400, 1700, 140, 950)),
    "stubble": (0.5, 0.20, (800, 1150, 1500, 1750, 2000, 2150, 2350, 2500, 3500, 2700, 90, 620)),
    "soil": (0.0, 0.30, (880, 1130, 1340, 1500, 1680, 1820, 1960, 2100, 2750, 2350, 90, 1150)),
    "broadleaf": (0.1, 0.22, (280, 500, 330, 800, 2050, 2500, 2700, 2800, 1550, 750, 430, 1600)),
    "conifer": (0.0, 0.22, (200, 340, 220, 490, 1250, 1500, 1600, 1700, 900, 420, 380, 1450)),
    "water": (0.0, 0.06, (430, 520, 340, 310, 230, 215, 190, 175, 110, 85, 22, 150)),
    "road": (0.0, 0.12, (850, 980, 1080, 1180, 1300, 1380, 1450, 1520, 1750, 1550, 90, 600)),
    "track": (0.4, 0.15, (700, 930, 1050, 1350, 1800, 2050, 2200, 2300, 2500, 1900, 120, 700)),
    "garden": (0.2, 0.20, (430, 680, 520, 1000, 1950, 2300, 2450, 2550, 1850, 1100, 420, 1900)),
    "tiles": (0.0, 0.15, (950, 1150, 1650, 1800, 1900, 2000, 2100, 2200, 2350, 2150, 800, 5200)),
    "concrete": (0.0, 0.25, (1400, 1520, 1600, 1680, 1750, 1800, 1880, 1900, 2050, 1900, 900, 6500)),
    "metal": (0.0, 0.45, (3600, 3700, 3800, 3850, 3900, 3950, 4050, 4000, 3800, 3500, 1000, 9500)),
}
COVERS = tuple(_COVERS)
"""Names of the codes of `land_cover`."""
_CODE = {name: code for code, name in enumerate(COVERS)}
_ROTATION = ("wheat", "maize", "meadow", "soil", "wheat", "rape", "clover", "stubble")


def _double(field: Field) -> Field:
    """Twice as fine by Chaikin's corner cutting, pixel centres kept: (h, w) to (2h - 4, 2w - 4)."""
    for axis in (0, 1):
        coarse = field.swapaxes(0, axis)
        fine = np.empty((2 * len(coarse) - 4, coarse.shape[1]), np.float32, order="F" if axis else "C")
        near = coarse[1:-1] * np.float32(0.75)
        fine[0::2] = near + coarse[:-2] * np.float32(0.25)
        fine[1::2] = near + coarse[2:] * np.float32(0.25)
        field = fine.swapaxes(0, axis)
    return field


def _blur(image: Field, centre: float) -> Field:
    """Weigh each pixel and its neighbours by 1 : centre : 1 along both axes."""
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1), (0, 0)] if axis == 0 else [(0, 0), (1, 1)], "edge").swapaxes(0, axis)
        image = ((padded[:-2] + padded[2:] + padded[1:-1] * centre) / (centre + 2)).swapaxes(0, axis)
    return image


def _noise(rng: np.random.Generator, shape: tuple[int, ...], coarsest: int, finest: int, gain: float = 0.5) -> Field:
    """Smooth fractal noise, about -1 to 1, with wavelengths from 2**coarsest down to 2**finest pixels."""
    shapes = [shape]
    for _ in range(coarsest):
        shapes.append(tuple(-(-n // 2) + 2 for n in shapes[-1]))
    field, amplitude = np.zeros(shapes[-1], np.float32), np.float32(2)
    for level in range(coarsest, -1, -1):
        rows, cols = shapes[level]
        field = field[:rows, :cols]
        if level >= finest:
            field = field + amplitude * (rng.random((rows, cols), np.float32) * 2 - 1)
            amplitude *= np.float32(gain)
        if level:
            field = _double(field)
    return field


def _tracts(rng: np.random.Generator, y: Field, x: Field, size: int) -> tuple[NDArray[np.int32], Field, int]:
    """Voronoi cells of about `size` pixels: each pixel's cell, its distance to the border, the count of cells."""
    y, x = y / size, x / size
    y, x = y - np.floor(y.min()) + 1, x - np.floor(x.min()) + 1
    rows, cols = int(y.max()) + 2, int(x.max()) + 2
    # Sites keep to the middle half of their cells, so that the nearest one is always among the four next to a pixel.
    offset_y, offset_x = 0.25 + rng.random((2, rows * cols), np.float32) / 2
    top, left = np.floor(y - 0.5).astype(np.int32), np.floor(x - 0.5).astype(np.int32)
    first, second = np.full(y.shape, 9, np.float32), np.full(y.shape, 9, np.float32)
    nearest = np.zeros(y.shape, np.int32)
    for row, col in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        cell = row * cols + col
        dy, dx = y - row - offset_y.take(cell), x - col - offset_x.take(cell)
        distance = np.sqrt(dy * dy + dx * dx)
        second = np.minimum(second, np.maximum(first, distance))
        np.copyto(nearest, cell, where=distance < first)
        first = np.minimum(first, distance)
    return nearest, (second - first) * np.float32(size / 2), rows * cols


def _parcels(u: Field, v: Field, tract: NDArray[np.int32], shift: Field) -> tuple[NDArray[np.uint32], Field, Field]:
    """Cut strips along v like brickwork: a hash of the parcel and the fractional positions within it."""
    strip = np.floor(u)
    key = (tract * 7919 + strip.astype(np.int32) * 104729).astype(np.uint32)
    v = v + shift.take(key & 255)
    brick = np.floor(v)
    key = (key + brick.astype(np.int32).view(np.uint32) * np.uint32(1299709)) * np.uint32(2654435761)
    key = (key ^ key >> np.uint32(15)) * np.uint32(2246822519)
    return key >> np.uint32(8), u - strip, v - brick


def _scene(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.uint16], Field, Field]:
    """Land cover (its code x 256 + a variant), height in metres and texture (about -1 to 1) of each pixel."""
    shape = (height, width)
    period = min(1024, height, width)
    scale = np.float32(period / 1024)
    octave = max(period.bit_length() - 1, 5)
    y, x = np.indices(shape, np.float32)

    def around(position: Field, centre: float) -> Field:
        """Signed distance from the nearest of the lines that repeat every `period`."""
        return (position - centre * period + period / 2) % period - period / 2

    warped_y = y + 75 * scale * _noise(rng, shape, octave, octave - 3)
    warped_x = x + 75 * scale * _noise(rng, shape, octave, octave - 3)
    patches, texture = _noise(rng, shape, 7, 2), _noise(rng, shape, 4, 0, 0.7)
    dice = rng.integers(0, 256, shape, np.uint8)

    # Terrain: a flat valley along each river, ridges between the valleys.
    river = around(warped_x + 40 * scale * _noise(rng, shape, octave - 3, octave - 5), 0.42)
    rise = np.clip((np.abs(river) / scale - 150) / 280, 0, 1)
    crest = _noise(rng, shape, octave - 2, 4, 0.42)
    ridges = 1 / (1 + 4 * crest * crest)
    above = 420 * scale * rise * rise * (3 - 2 * rise) * (0.3 + 0.7 * ridges)
    pool = around(warped_y, 0.75)
    lake = np.sqrt(pool * pool + 2 * river * river) - (85 + 25 * patches) * scale
    shore = np.minimum(np.abs(river) - 4.5 * scale - 1.5, lake)
    water = shore < 0
    dem = 140 + above + (3 + 2 * patches) * np.clip(shore / 40, 0, 1)

    # Farmland: tracts with their own direction and parcel size.
    tract, border, count = _tracts(rng, warped_y, warped_x, 80)
    half_tangent = rng.random(count, np.float32) - np.float32(0.5)
    norm = 1 + half_tangent * half_tangent
    cosine, sine = ((2 - norm) / norm).take(tract), (2 * half_tangent / norm).take(tract)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    breadth = (9 + 22 * rng.random(count, np.float32)).take(tract)
    shift = rng.random(256, np.float32)
    parcel, across, along = _parcels(u / breadth, v / (3 * breadth), tract, shift)
    cover = np.array([_CODE[name] for name in _ROTATION], np.uint8).take(parcel >> 8 & 7)
    variant = parcel.astype(np.uint8)

    def paint(name: str, where: NDArray[np.bool_], variants: NDArray[np.integer[Any]] = dice) -> None:
        cover[where] = _CODE[name]
        variant[where] = variants[where].astype(np.uint8)

    paint("meadow", (np.abs(river) < 18 * scale) | (above > 75 * scale), parcel)
    paint("track", (np.minimum(across, 1 - across) * breadth < 0.4) & (parcel & 64 > 0))
    paint("broadleaf", (border < 1.2) & (tract % 3 == 0))
    paint("road", (border < 0.8) & (tract % 3 > 0))
    wood = (above + (90 * patches + 15 * texture) * scale > 150 * scale) | (patches > 0.85)
    paint("broadleaf", wood | (np.abs(np.abs(river) - 9 * scale) < 4 * scale * patches))
    paint("conifer", wood & (texture * 0.6 + ridges < 0.35))
    paint("water", water)

    # Towns grow where the road along a valley meets the road across it.
    street_x, street_y = around(warped_x, 0.58), around(warped_y, 0.3)
    highway = np.minimum(np.abs(street_x), np.abs(street_y)) < 1
    density = 1 - np.sqrt(street_x * street_x + street_y * street_y) / (85 * scale) + 0.3 * patches + 0.1 * texture
    town = (density > 0) & ~water
    block, across, along = _parcels(u / 8, v / 13, tract, shift)
    works = town & (street_x > 0) & (street_y > 15 * scale) & (block & 3 > 0)
    houses = dice[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
    roof = town & (houses < 100 + 150 * density)
    paint("garden", town)
    paint("tiles", roof)
    paint("concrete", roof & (houses % 3 == 0))
    paint("concrete", works)
    paint("metal", works & (np.abs(across - 0.5) < 0.3) & (np.abs(along - 0.5) < 0.35) & (block & 4 > 0), block >> 8)
    paint("broadleaf", town & ~works & (block & 31 < 3))
    paint("road", town & ((across < 0.125) | (along < 0.08)))
    paint("road", highway)

    return cover * np.uint16(256) + variant, dem, texture


def landscape(height: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Draw a landscape at 10 m: parcels of crops, a river and its lake, wooded hills, towns and roads.

    The pattern of valleys and towns repeats, never alike, every 1,024 pixels; smaller landscapes shrink it to fit.

    Parameters
    ----------
    height, width
        Size in pixels.
    seed
        The same seed and size give the same pixels everywhere.

    Returns
    -------
    numpy.ndarray
        float32, (13, height, width), in the order of `BANDS`: Sentinel-2 digital numbers (reflectance x 10,000, whole,
        never 0), Sentinel-1 linear power in steps of 1e-4, height in metres in steps of 0.1.
    """
    rng = np.random.default_rng(seed)
    cover, dem, texture = _scene(rng, height + height % 2, width + width % 2)
    share, shine = rng.random((2, len(_COVERS), 256, 1), np.float32)
    bare, spread = np.array([row[:2] for row in _COVERS.values()], np.float32).T[:, :, None, None]
    spectra = np.array([row[2] for row in _COVERS.values()], np.float32)[:, None]
    palette = spectra + bare * share * (spectra[_CODE["soil"]] - spectra)
    palette = (palette * (1 + spread * (2 * shine - 1))).reshape(-1, len(BANDS) - 1).T.copy()

    # Morning sun from the south-south-east.
    south, east = np.gradient(dem / 10)
    light = (1 - 0.6 * east - south) / np.sqrt(1 + east * east + south * south)
    light = np.clip(light, 0.3, 1.6).astype(np.float32)
    # Power of a single look is exponential; the blur below makes it about five looks, as neighbours in a real scene.
    speckle = np.round(rng.exponential(size=4096), 3).astype(np.float32)

    chips = np.empty((len(BANDS), height, width), np.float32)
    for image, band, values in zip(chips, BANDS, palette, strict=False):
        seen = values.take(cover)
        if band in ("vh", "vv"):
            seen = _blur(seen * speckle.take(rng.integers(0, 4096, seen.shape, np.uint16)), 3)
            image[:] = np.maximum(np.round(seen[:height, :width]), 1) / 10_000
            continue
        # Vigorous plants are brighter in the near infrared and darker elsewhere.
        seen *= light * (1 + (0.1 if band in ("B06", "B07", "B08", "B8A") else -0.1) * texture)
        if band in ("B02", "B03", "B04", "B08"):
            seen = _blur(seen, 6)
        else:
            pairs = seen[0::2] + seen[1::2]
            seen = _double(np.pad((pairs[:, 0::2] + pairs[:, 1::2]) / 4, 1, "edge"))
        image[:] = np.maximum(np.round(seen[:height, :width]), 1)
    chips[-1] = np.round(dem[:height, :width] * 10) / 10
    return chips


def land_cover(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """What `landscape` with the same arguments shows at each pixel.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width): numbers of `COVERS`.
    """
    cover, _, _ = _scene(np.random.default_rng(seed), height + height % 2, width + width % 2)
    return (cover[:height, :width] >> 8).astype(np.uint8)


def _origin(tile: str) -> tuple[int, int, int]:
    """EPSG code and upper-left corner (metres) of a tile's grid of chips."""
    square = square_of(check_tile(tile))
    # Clay's chips sit half a pixel north-west of the square's grid.
    return square.epsg, square.west - 5, square.south + SIDE + 5


def write_chips(
    folder: str | Path, *, tile: str = "33TUL", date: str = "2019-04-16", rows: int = 4, cols: int = 4, seed: int = 0
) -> list[Path]:
    """Cut a landscape into chips of 512 x 512 pixels and write them as Clay's GeoTIFFs.

    Parameters
    ----------
    folder
        Where `{tile}/{date}/claytile_{tile}_{YYYYMMDD}_v02_{NNNN}.tif` go; folders are made as needed.
    tile
        MGRS tile, such as "33TUL".
    date
        Day of the image, YYYY-MM-DD.
    rows, cols
        Chips down and across, from the tile's north-west corner; at most 21. NNNN is a chip's 1-based, row-major
        number in the whole tile's 21 x 21.
    seed
        Passed to `landscape`.

    Returns
    -------
    list of Path
        The files, by name.
    """
    import rasterio
    from rasterio.transform import Affine

    if not (1 <= rows <= CHIPS_ACROSS and 1 <= cols <= CHIPS_ACROSS):
        raise ValueError(f"{rows} x {cols} chips: a tile has 1 to {CHIPS_ACROSS} each way")
    day = calendar_date.fromisoformat(date)
    epsg, west, north = _origin(tile)
    target = Path(folder) / tile / f"{day:%Y-%m-%d}"
    target.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "float32", "count": len(BANDS), "crs": f"EPSG:{epsg}"}
    profile |= {"height": CHIP, "width": CHIP, "tiled": False, "blockysize": 1}
    profile |= {"interleave": "pixel", "compress": "deflate"}
    pixels = landscape(rows * CHIP, cols * CHIP, seed=seed)
    paths = []
    for row, col in np.ndindex(rows, cols):
        path = target / f"claytile_{tile}_{day:%Y%m%d}_v02_{row * CHIPS_ACROSS + col + 1:04d}.tif"
        top, left = row * CHIP, col * CHIP
        transform = Affine(10, 0, west + 10 * left, 0, -10, north - 10 * top)
        with rasterio.open(path, "w", transform=transform, **profile) as image:
            image.write(pixels[:, top : top + CHIP, left : left + CHIP])
            image.descriptions = BANDS
            image.update_tags(date=day.isoformat())
        paths.append(path)
    return paths
