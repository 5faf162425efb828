"""Pieces of scenes that chips are cut out of: each is read once, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from daskembed.errors import ChipError
from daskembed.sources.keeping import Keeping
from daskembed.sources.scene import Layer, Reader, Scene
from daskembed.sources.values import part_masks, to_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_OPEN = 64
"""Layers that a process keeps open."""


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


def cut(scene: Scene, y: int, x: int, height: int, width: int) -> Pixels:
    """What is stored of a window of a scene, out of the pieces that it lies in."""
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
            found.append(_piece(scene, row, col).cut(*part))
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
    generation = generation_of(scene)
    layers = [*scene.layers, *([] if scene.classes is None else [scene.classes])]
    # All are on their way before the first is waited for.
    readers = [_open(layer, scene.fingerprint, generation) for layer in layers]
    begun = [_begin(layer, reader, rows, cols) for layer, reader in zip(layers, readers, strict=True)]
    found = [finish() for finish in begun]
    bands = found[: len(scene.layers)]
    stored = bands[0][0] if len(bands) == 1 else np.concatenate([numbers for numbers, _ in bands])
    masked = None
    if any(mask is not None for _, mask in bands):
        masked = np.concatenate([np.zeros(one.shape, np.bool_) if mask is None else mask for one, mask in bands])
    classes = None
    if scene.classified:
        classes = to_classes(stored[-1], scene.layers[-1].scales[-1], None if masked is None else masked[-1])
        stored, masked = stored[:-1], None if masked is None else masked[:-1]
    elif scene.classes is not None:
        numbers, mask = found[-1]
        classes = to_classes(numbers[0], scene.classes.scales[0], None if mask is None else mask[0])
    if stored.shape[1:] != (height, width):
        raise ChipError(f"gave {stored.shape[1:]} pixels where {(height, width)} were expected: it changed since")
    return Pixels(stored, masked, classes)


_Layer = tuple["NDArray[np.generic]", "NDArray[np.bool_] | None"]


def _begin(layer: Layer, reader: Reader, rows: slice, cols: slice) -> Callable[[], _Layer]:
    """Have a reader that can do so fetch a window; what is returned gives its numbers and masks."""
    times = layer.coarser
    coarse = [slice(part.start // times, -(-part.stop // times)) for part in (rows, cols)]
    start = [part.start - small.start * times for part, small in zip((rows, cols), coarse, strict=True)]
    begin = getattr(reader, "begin", None)
    read = partial(reader, *coarse) if begin is None else begin(*coarse)

    def repeat(pixels: NDArray[Any]) -> NDArray[Any]:
        pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
        return pixels[:, start[0] :, start[1] :][:, : rows.stop - rows.start, : cols.stop - cols.start]

    def finish() -> _Layer:
        numbers, mask = part_masks(read())
        if times == 1:
            return numbers, mask
        return repeat(numbers), None if mask is None else repeat(mask)

    return finish


_lock = threading.Lock()

_opened: OrderedDict[tuple[Layer, str], tuple[int, Reader]] = OrderedDict()
"""Layers that are open, with the generation of their scenes."""

_generations: dict[tuple[str, str], int] = {}
"""URL and fingerprint of a scene -> how often it was opened anew because of what was read."""


def _open(layer: Layer, fingerprint: str, generation: int) -> Reader:
    # What was replaced is opened anew: an open handle would go on reading what was there before.
    key = (layer, fingerprint)
    with _lock:
        if key in _opened and _opened[key][0] >= generation:
            _opened.move_to_end(key)
            return _opened[key][1]
    reader = layer.open(fresh=generation > 0)
    with _lock:
        _opened[key] = generation, reader
        _opened.move_to_end(key)
        while len(_opened) > MOST_OPEN:
            _opened.popitem(last=False)
    return reader


def generation_of(scene: Scene) -> int:
    """How often a scene was opened anew because of what was read."""
    with _lock:
        return _generations.get((scene.url, scene.fingerprint), 0)


def renew(scene: Scene, seen: int) -> int:
    """Have a scene opened past caches, and none of its pieces used again, unless it was since generation `seen`."""
    key = (scene.url, scene.fingerprint)
    with _lock:
        if (generation := _generations.get(key, 0)) > seen:
            return generation
        _generations[key] = generation + 1
    _pieces.drop(lambda one: cast(tuple[object, ...], one)[:2] == key)
    return generation + 1


def _piece(scene: Scene, row: int, col: int) -> Pixels:
    """Piece number `col` of row `row`."""
    tall, wide = scene.piece
    height, width = scene.grid.shape
    parts = slice(row * tall, min(height, (row + 1) * tall)), slice(col * wide, min(width, (col + 1) * wide))
    key = (scene.url, scene.fingerprint, generation_of(scene), scene.bands, row, col)
    return _pieces.get(key, tall * wide * scene.pixel_bytes, partial(_read_piece, scene, *parts))


def size_of_piece(piece: Pixels) -> int:
    """Bytes."""
    return sum(part.nbytes for part in piece if part is not None)


_pieces = Keeping[Pixels](size_of_piece)
"""Those that chips are being cut out of."""
