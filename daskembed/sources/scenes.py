"""Whole tiles cut into chips: what rasters and Zarr stores have in common."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd

from daskembed.errors import ChipError, DaskembedError, StorageError, TileError, exact
from daskembed.geo.cells import EDGES, cell_bounds
from daskembed.geo.chips import CHIP, ChipGrid
from daskembed.geo.footprints import elsewhere, metres_of_unit, to_lonlat
from daskembed.hardware import allowance
from daskembed.health import fault_of, read_surely
from daskembed.sources.frame import INDEX_COLUMNS
from daskembed.sources.protocol import Listing
from daskembed.sources.reading import EDGE, Reading, Rules
from daskembed.sources.rules import check_pixels
from daskembed.sources.values import Scale, note_of, part_masks, tell, to_classes, to_values
from daskembed.storage.stores import Entry, Storage
from daskembed.timings import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PIECE_BYTES = 512 * 2**20
"""Most bytes of pixels that may have to be read at once."""
KEPT_BYTES = 768 * 2**20
"""Most bytes of pieces that a process keeps for the chips that are still to be cut out of them, if it has memory."""
MOST_OPEN = 64
"""Layers that a process keeps open."""
MOST_CHIPS = 250_000
"""Of an image: a tile of 110 km has 185,000 at 0.5 m. A few hundred bytes may claim any number."""
MAX_CLOUD = 0.30
"""Share of a chip that must not be reached by clouds, shadows and nodata."""
DATE = re.compile(r"(?<!\d)(20\d\d)-?([01]\d)-?([0-3]\d)(?!\d)")
"""A day in a file's name."""


class Layer(Hashable, Protocol):
    """Some bands of a scene in one piece of storage; small, frozen and hashable."""

    @property
    def kind(self) -> str:
        """Dotted name of the module whose ``open_layer`` opens it."""

    @property
    def coarser(self) -> int:
        """How many pixels of the scene one of its pixels covers, each way."""

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of its bands."""


class Reader(Protocol):
    """An open layer, for any thread."""

    def __call__(self, rows: slice, cols: slice) -> NDArray[np.generic]:
        """Stored pixels ``(band, y, x)`` of a layer, in its own grid; a masked array where some were never there.

        Raises `ChipError` or `StorageError`.
        """


@dataclass(frozen=True)
class Scene:
    """A tile at one date: what travels to the workers in place of its pixels."""

    url: str
    """Of the store or file, with the date: what a chip's URL begins with."""
    date: date
    fingerprint: str
    """Changes with the pixels."""
    bands: tuple[str, ...]
    """In the encoder's order; those of `layers`, one after the other."""
    layers: tuple[Layer, ...]
    classes: Layer | None
    """Scene classification, if it is stored by itself."""
    epsg: int
    west: float
    north: float
    step: float
    """Width and height of a pixel, in the CRS's unit."""
    grid: ChipGrid
    block: tuple[int, int]
    """Pixels (y, x) that are stored together."""
    pixel_bytes: int
    """Of all bands of one pixel."""
    classified: bool = False
    """Whether the last band of `layers` is the scene classification."""

    @property
    def piece(self) -> tuple[int, int]:
        """Pixels (y, x) that are read together: whole stored blocks, and no less than a chip."""
        height, width = (min(side, length) for side, length in zip(self.block, self.grid.shape, strict=True))
        return height * -(-CHIP // height), width * -(-CHIP // width)

    @property
    def aligned(self) -> bool:
        """Whether each chip is a piece by itself."""
        return self.piece == (CHIP, CHIP) and not any(offset % CHIP for offset in self.grid.offset)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of its bands."""
        return tuple(scale for layer in self.layers for scale in layer.scales)[: len(self.bands)]

    @property
    def note(self) -> str:
        """What is done to the file's numbers, if anything."""
        return note_of(self.bands, self.scales)

    @property
    def coverage(self) -> Iterator[str]:
        """What of the image no chip has, and which chips have what is not in the image, if any."""
        grid = self.grid
        if grid.uncovered:
            share, edge = f"{100 * grid.uncovered:.3g} %", EDGE[grid.pad]
            cut = f"`edge={edge!r}`, `offset={grid.offset}`"
            yield f"{share} of the pixels of the image are in no chip ({cut})"
        if grid.padded:
            yield f"{grid.padded} of its {grid.count} chips reach beyond the image: its last pixels fill them up"

    def check(self) -> None:
        """Raise `ChipError` if too much would have to be read at once."""
        height, width = self.piece
        if (size := height * width * self.pixel_bytes) > MOST_PIECE_BYTES:
            raise ChipError(
                f"is stored in blocks of {self.block[0]} x {self.block[1]} pixels, of which {size / 1e9:.1f} GB would "
                "have to be read at once: write it with blocks of 512 x 512"
            )


@dataclass(frozen=True)
class SceneChip:
    """How to read one chip of a scene."""

    scene: Scene
    number: int
    """From 1, row-major in the grid of chips."""
    rules: Rules

    @property
    def url(self) -> str:
        """Store, date and number."""
        return f"{self.scene.url}/{self.number:04d}"

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.scene.bands

    @property
    def unit(self) -> tuple[object, ...]:
        """The scene, and row and column of the piece that it begins in."""
        (y, x), (height, width) = self.scene.grid.start(self.number), self.scene.piece
        return (self.scene.url, y // height, x // width)

    @property
    def inside(self) -> tuple[int, int]:
        """How many of its pixels (y, x) are in the scene."""
        y, x = self.scene.grid.start(self.number)
        height, width = self.scene.grid.shape
        return min(CHIP, height - y), min(CHIP, width - x)

    def read(self) -> NDArray[np.generic]:
        """Pixels ``(band, y, x)``; raises `ChipError`, `ChipRejectedError`, `StorageError` or `SickMachineError`."""
        generation = _generation(self.scene)

        def read(fresh: bool) -> NDArray[np.generic]:
            nonlocal generation
            if fresh:
                generation = _renew(self.scene, generation)
            return self._read()

        return read_surely(self.url, read)

    def _read(self) -> NDArray[np.generic]:
        y, x = self.scene.grid.start(self.number)
        height, width = self.inside
        with timed("decode"):
            stored, masked, classes = _cut(self.scene, y, x, height, width)
            pixels, findings = to_values(stored, self.bands, self.scene.scales, masked)
            check_pixels(pixels, self.bands, self.rules, findings, classes)
            tell(findings)
            if (height, width) == (CHIP, CHIP):
                # A view would keep the whole piece as long as the chip waits for the device.
                pixels = np.ascontiguousarray(pixels)
            else:
                pixels = np.pad(pixels, ((0, 0), (0, CHIP - height), (0, CHIP - width)), "edge")
        return pixels


class Pixels(NamedTuple):
    """What is stored of a window of a scene."""

    stored: NDArray[np.generic]
    """``(band, y, x)``."""
    masked: NDArray[np.bool_] | None
    """Likewise: what is not there by the storage's own masks, if it has any."""
    classes: NDArray[np.generic] | None
    """Scene classification ``(y, x)``, if there is one."""

    def cut(self, rows: slice, cols: slice) -> Pixels:
        """A part of it."""
        return Pixels(*(None if part is None else part[..., rows, cols] for part in self))  # type: ignore[arg-type]


def _cut(scene: Scene, y: int, x: int, height: int, width: int) -> Pixels:
    if scene.aligned:
        return _read_piece(scene, slice(y, y + height), slice(x, x + width))
    tall, wide = scene.piece
    rows = []
    for row in range(y // tall, (y + height - 1) // tall + 1):
        found = []
        for col in range(x // wide, (x + width - 1) // wide + 1):
            top, left = row * tall, col * wide
            part = (
                slice(max(0, y - top), max(0, y + height - top)),
                slice(max(0, x - left), max(0, x + width - left)),
            )
            found.append(_pieces.get(scene, row, col).cut(*part))
        rows.append(_join(found, axis=-1))
    return _join(rows, axis=-2)


def _join(parts: Sequence[Pixels], *, axis: int) -> Pixels:
    if len(parts) == 1:
        return parts[0]
    stored = np.concatenate([part.stored for part in parts], axis=axis)
    masked = None
    if any(part.masked is not None for part in parts):
        none = np.False_
        masks = [np.broadcast_to(none if part.masked is None else part.masked, part.stored.shape) for part in parts]
        masked = np.concatenate(masks, axis=axis)
    classes = [part.classes for part in parts if part.classes is not None]
    return Pixels(stored, masked, np.concatenate(classes, axis=axis) if classes else None)


def _read_piece(scene: Scene, rows: slice, cols: slice) -> Pixels:
    height, width = rows.stop - rows.start, cols.stop - cols.start
    generation = _generation(scene)
    found = [_read_layer(layer, scene.fingerprint, generation, rows, cols) for layer in scene.layers]
    stored = found[0][0] if len(found) == 1 else np.concatenate([numbers for numbers, _ in found])
    masked = None
    if any(mask is not None for _, mask in found):
        masked = np.concatenate([np.zeros(one.shape, np.bool_) if mask is None else mask for one, mask in found])
    classes = None
    if scene.classified:
        classes = to_classes(stored[-1], scene.layers[-1].scales[-1], None if masked is None else masked[-1])
        stored, masked = stored[:-1], None if masked is None else masked[:-1]
    elif scene.classes is not None:
        numbers, mask = _read_layer(scene.classes, scene.fingerprint, generation, rows, cols)
        classes = to_classes(numbers[0], scene.classes.scales[0], None if mask is None else mask[0])
    if stored.shape[1:] != (height, width):
        raise ChipError(f"gave {stored.shape[1:]} pixels where {(height, width)} were expected: it changed since")
    return Pixels(stored, masked, classes)


def _read_layer(
    layer: Layer, fingerprint: str, generation: int, rows: slice, cols: slice
) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    times = layer.coarser
    coarse = [slice(part.start // times, -(-part.stop // times)) for part in (rows, cols)]
    found = part_masks(_open(layer, fingerprint, generation)(*coarse))
    if times == 1:
        return found
    start = [part.start - small.start * times for part, small in zip((rows, cols), coarse, strict=True)]

    def repeat(pixels: NDArray[Any]) -> NDArray[Any]:
        pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
        return pixels[:, start[0] :, start[1] :][:, : rows.stop - rows.start, : cols.stop - cols.start]

    numbers, mask = found
    return repeat(numbers), None if mask is None else repeat(mask)


_lock = threading.Lock()
_opened: OrderedDict[tuple[Layer, str], tuple[int, Reader]] = OrderedDict()
"""Layers that are open, with the generation of their scenes."""
_generations: dict[tuple[str, str], int] = {}
"""URL and fingerprint of a scene -> how often it was opened anew because of what was read."""


def _open(layer: Layer, fingerprint: str, generation: int) -> Reader:
    # What was replaced is opened anew: an open handle would go on reading what was there before.
    import importlib

    key = (layer, fingerprint)
    with _lock:
        if key in _opened and _opened[key][0] >= generation:
            _opened.move_to_end(key)
            return _opened[key][1]
    reader: Reader = importlib.import_module(layer.kind).open_layer(layer, fresh=generation > 0)
    with _lock:
        _opened[key] = generation, reader
        _opened.move_to_end(key)
        while len(_opened) > MOST_OPEN:
            _opened.popitem(last=False)
    return reader


def _generation(scene: Scene) -> int:
    with _lock:
        return _generations.get((scene.url, scene.fingerprint), 0)


def _renew(scene: Scene, seen: int) -> int:
    """Have a scene opened past caches, and none of its pieces used again, unless it was since generation `seen`."""
    key = (scene.url, scene.fingerprint)
    with _lock:
        if (generation := _generations.get(key, 0)) > seen:
            return generation
        _generations[key] = generation + 1
    _pieces.drop(scene)
    return generation + 1


class _Pieces:
    """Pieces of scenes that chips are being cut out of: each is read once, also when several threads want it.

    What is kept and being read takes no more than `KEPT_BYTES` and the process's allowance, or is one piece.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._found: OrderedDict[tuple[object, ...], Future[Pixels | str]] = OrderedDict()
        self._sizes: dict[tuple[object, ...], int] = {}

    def get(self, scene: Scene, row: int, col: int) -> Pixels:
        """Piece number `col` of row `row`."""
        key = (scene.url, scene.fingerprint, _generation(scene), scene.bands, row, col)
        tall, wide = scene.piece
        height, width = scene.grid.shape
        parts = slice(row * tall, min(height, (row + 1) * tall)), slice(col * wide, min(width, (col + 1) * wide))
        with self._changed:
            if mine := not self._has(key):
                # Of other pieces; those being read come to an end without this one.
                self._changed.wait_for(lambda: self._has(key) or self._fits(tall * wide * scene.pixel_bytes))
                if mine := not self._has(key):
                    self._found[key], self._sizes[key] = Future[Pixels | str](), tall * wide * scene.pixel_bytes
            future = self._found[key]
            self._found.move_to_end(key)
        if mine:
            self._read(key, future, scene, parts)
        try:
            # A reason and no exception: its frames, and through them this future, would hold pixels.
            if isinstance(found := future.result(), str):
                raise ChipError(found)
            return found
        finally:
            del future

    def _read(
        self, key: tuple[object, ...], future: Future[Pixels | str], scene: Scene, parts: tuple[slice, slice]
    ) -> None:
        try:
            found: Pixels | str = _read_piece(scene, *parts)
        except ChipError as error:
            found = str(error)
        except BaseException as error:
            self._forget(key)
            future.set_exception(error.with_traceback(None))
            return
        if isinstance(found, str):
            # Not kept: what a store did not give may come the next time.
            self._forget(key)
            future.set_result(found)
            return
        with self._changed:
            self._sizes[key] = sum(part.nbytes for part in found if part is not None)
            future.set_result(found)
            self._changed.notify_all()

    def _forget(self, key: tuple[object, ...]) -> None:
        with self._changed:
            del self._found[key], self._sizes[key]
            self._changed.notify_all()

    def drop(self, scene: Scene) -> None:
        """Give up what was read of a scene."""
        with self._changed:
            for key, future in [*self._found.items()]:
                if key[:2] == (scene.url, scene.fingerprint) and future.done():
                    del self._found[key], self._sizes[key]
            self._changed.notify_all()

    def _has(self, key: tuple[object, ...]) -> bool:
        return key in self._found

    def _fits(self, size: int) -> bool:
        """Whether a piece of `size` bytes may be read now; gives up the oldest for it."""
        most = min(KEPT_BYTES, allowance())
        done = [key for key, future in self._found.items() if future.done()]
        being_read = sum(self._sizes.values()) - sum(self._sizes[key] for key in done)
        if len(done) < len(self._found) and being_read + size > most:
            return False
        for key in done:
            if sum(self._sizes.values()) + size <= most:
                break
            del self._found[key], self._sizes[key]
        return True


_pieces = _Pieces()


def day_in(text: str) -> date | None:
    """The day that a file's name or a tag tells, if it tells one and no other; in UTC where there is a time zone."""
    with contextlib.suppress(ValueError):
        if (stamp := datetime.fromisoformat(text)).tzinfo is not None:
            return stamp.astimezone(UTC).date()
    found = set()
    for match in DATE.finditer(text):
        with contextlib.suppress(ValueError):
            found.add(date(*map(int, match.groups())))
    return found.pop() if len(found) == 1 else None


def one_day(told: Iterable[tuple[str, date | None]]) -> date | None:
    """The day that all who tell one agree on, of pairs such as ``("is named after", day)``; raises `ChipError`."""
    days = {day: f"{said} {day}" for said, day in reversed([*told]) if day is not None}
    if len(days) > 1:
        raise ChipError(f"{' and '.join(reversed(days.values()))}: expected one day")
    return next(iter(days), None)


def grid_of(shape: tuple[int, int], reading: Reading) -> ChipGrid:
    """The grid of chips of an image; raises `ChipError` if there is none."""
    grid = ChipGrid(shape, reading.offset, reading.edge == "pad")
    if not grid.count:
        raise ChipError(
            f"has {shape[0]} x {shape[1]} pixels: no chip of {CHIP} x {CHIP} fits in at the offset "
            f"{reading.offset[0]},{reading.offset[1]} (`edge='pad'` takes parts of chips)"
        )
    if grid.count > MOST_CHIPS:
        raise ChipError(
            f"claims {shape[0]} x {shape[1]} pixels, {grid.count:,} chips: expected a tile of at most {MOST_CHIPS:,}"
        )
    return grid


def check_resolution(steps: tuple[float, float], epsg: int, reading: Reading) -> float:
    """The step of an image's pixels, in its CRS's unit; raises `ChipError` if they will not do.

    Parameters
    ----------
    steps
        Of x and of y, in that unit.
    epsg
        Of the CRS, which says how many metres that is.
    reading
        What is wanted.
    """
    step_x, step_y = steps
    unit = metres_of_unit(epsg)
    if not (math.isclose(step_x, -step_y, rel_tol=1e-6) and 0.01 <= step_x * unit <= 1000):
        sides = f"{exact(step_x * unit)} x {exact(-step_y * unit)}"
        raise ChipError(f"has pixels of {sides}: expected squares in metres, rows from north to south")
    if reading.resolution is not None and not math.isclose(step_x * unit, reading.resolution, rel_tol=1e-6):
        feet = "" if unit == 1 else f" ({exact(step_x)} in the unit of EPSG:{epsg})"
        found = f"{exact(step_x * unit)} m{feet}"
        raise ChipError(f"has pixels of {found}, expected {exact(reading.resolution)} m: resample it")
    return step_x


def fingerprint_of(entries: Sequence[Entry]) -> str:
    """Of stored objects."""
    return hashlib.sha256(repr(list(entries)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Found:
    """A scene of a tile, or why one cannot be used."""

    path: str
    """Below the source."""
    size: int
    """Bytes."""
    etag: str
    scene: Scene | None
    reason: str | None = None


def listing_of(kind: str, tile: str, storage: Storage, reading: Reading, found: Sequence[Found]) -> Listing | None:
    """The listing of some scenes: an entry a chip.

    Raises
    ------
    TileError
        If there are scenes, and none of them can be used or is of the dates wanted.
    """
    if not found:
        return None
    placed = [_at_tile(one, tile) for one in found]
    # A store that cannot be used is one, whatever dates it has.
    refused = {one.path: one for one in placed if one.scene is None}
    found = [*refused.values(), *(one for one in placed if one.scene is not None)]
    if not any(one.scene for one in found):
        raise TileError(f"{storage.url_of(found[0].path)} {found[0].reason}")
    wanted = [one for one in found if one.scene is None or _within(one.scene.date, reading.dates)]
    if not any(one.scene for one in wanted):
        assert reading.dates is not None
        raise TileError(f"no scene of tile {tile} from {reading.dates[0]} to {reading.dates[1]}: check `dates`")
    entries: list[Entry] = []
    units: list[tuple[object, ...]] = []
    for one in wanted:
        if one.scene is None:
            entries.append(Entry(one.path, one.size, f"{one.etag} {one.reason}"))
            units.append((one.path,))
            continue
        count = one.scene.grid.count
        label = one.scene.url.rpartition("#")[2]
        for number in range(1, count + 1):
            entries.append(Entry(f"{one.path}#{label}/{number:04d}", one.size // count, one.scene.fingerprint))
            units.append(SceneChip(one.scene, number, Rules()).unit)
    order = sorted(range(len(entries)), key=lambda row: entries[row].path)
    scenes = {one.scene.url: one.scene for one in wanted if one.scene is not None}
    return Listing(
        kind,
        storage,
        tile,
        tuple(entries[row] for row in order),
        tuple(units[row] for row in order),
        scenes | {storage.url_of(one.path): one.reason for one in wanted if one.scene is None},
        refused=dict.fromkeys(map(storage.url_of, refused), max(scene.grid.count for scene in scenes.values())),
    )


def _at_tile(found: Found, tile: str) -> Found:
    """The scene, or why it is none of the tile's."""
    if found.scene is None or (reason := elsewhere(tile, _bounds(found.scene)[None], found.scene.epsg)[0]) is None:
        return found
    return replace(found, scene=None, reason=reason)


def _within(day: date, dates: tuple[date, date] | None) -> bool:
    return dates is None or dates[0] <= day <= dates[1]


def frame_of(listing: Listing, reading: Reading) -> gpd.GeoDataFrame:
    """The index of a listing that `listing_of` made."""
    # In other sensors' images, 0 in the blue is a value like others.
    sentinel2 = any("B02" in (band.name, *band.aliases) for band in reading.sensor.bands)
    rules = reading.rules.or_else(zeros=sentinel2, nan=True, max_cloud=MAX_CLOUD)
    urls = [listing.storage.url_of(entry.path) for entry in listing.entries]
    found: list[SceneChip | str] = []
    for url in urls:
        above, _, number = url.rpartition("/")
        scene = listing.scenes[url if url in listing.scenes else above]
        found.append(SceneChip(scene, int(number), rules) if isinstance(scene, Scene) else str(scene))
    chips = [one if isinstance(one, SceneChip) else None for one in found]
    bounds = np.array([_bounds(chip) if chip else (np.nan,) * 4 for chip in chips]).reshape(-1, 4)
    lon, lat = np.full((2, len(chips)), np.nan)
    footprints = np.full(len(chips), None, dtype=object)
    reasons = [one if isinstance(one, str) else None for one in found]
    for epsg in sorted({chip.scene.epsg for chip in chips if chip}):
        rows = np.array([row for row, chip in enumerate(chips) if chip and chip.scene.epsg == epsg])
        lon[rows], lat[rows], footprints[rows] = to_lonlat(epsg, bounds[rows])
        for row in rows:
            if footprints[row] is None:
                reasons[row] = f"lies outside of EPSG:{epsg}: its bounds are {', '.join(map(exact, bounds[row]))}"
    index = pd.DataFrame(
        {
            "source_url": urls,
            "source": listing.kind,
            "date": pd.Series([chip and chip.scene.date for chip in chips], dtype=object),
            "epsg": pd.array([chip and chip.scene.epsg for chip in chips], dtype="Int32"),
            "lat": lat,
            "lon": lon,
            **dict(zip(EDGES, bounds.T, strict=True)),
            "coverage": [np.prod(chip.inside) / CHIP**2 if chip else np.nan for chip in chips],
            "chip": pd.Series(chips, dtype=object),
            "size": [entry.size for entry in listing.entries],
            "etag": [entry.etag for entry in listing.entries],
            "quarantined": pd.Series(reasons, dtype=object),
        }
    )
    frame = gpd.GeoDataFrame(index, geometry=gpd.GeoSeries(footprints, crs="OGC:CRS84"))
    return frame[list(INDEX_COLUMNS)]


def _bounds(part: SceneChip | Scene) -> NDArray[np.float64]:
    """West, south, east and north of a chip, or of the whole scene."""
    if isinstance(part, Scene):
        scene, (y, x), pixels = part, (0, 0), part.grid.shape
    else:
        scene, (y, x), pixels = part.scene, part.scene.grid.start(part.number), (CHIP, CHIP)
    return cell_bounds(scene.west, scene.north, (scene.step, scene.step), y, x, pixels)


@contextlib.contextmanager
def damage_is_the_chips(failures: Callable[[], DaskembedError | None] = lambda: None) -> Iterator[None]:
    """Tell what is wrong with the pixels, a `ChipError`, from a store that does not answer, a `StorageError`.

    `failures` gives what happened beneath and was swallowed, perhaps with zeros in the place of data.
    """
    try:
        yield
        if (failure := failures()) is not None:
            raise failure
    except (StorageError, ChipError):
        raise
    except Exception as error:
        if (failure := failures()) is not None:
            raise failure from None
        text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise fault_of(error, f"cannot be decoded, its part of the storage is damaged: {text[:200]}") from None
