"""Scenes that an output keeps of its tiles: what a run goes on with, in the place of asking the catalogue again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from daskembed.output.state import CubeReceipt, Receipt, TileRecord, read_records, with_plain_source
from daskembed.runs.settings import sensor_id
from daskembed.sources.origin import Origin, name_of
from daskembed.sources.reading import Reading
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage

Kept: TypeAlias = Sequence[dict[str, Any]]
"""`daskembed.output.state.Receipt.scenes`."""


def chosen_by(source: Origin, reading: Reading) -> dict[str, Any]:
    """What decides on the scenes of tiles of a catalogue; nothing of other sources."""
    if not isinstance(source, Catalogue):
        return {}
    told = {"source": name_of(source), "sensor": sensor_id(reading.sensor), "dates": reading.period}
    return told | reading.scenes | {"offset_applied": reading.offset_applied}


def kept_of(decides: Mapping[str, Any], found: Receipt | CubeReceipt | TileRecord | None) -> Kept:
    """The scenes that a receipt or a record keeps, if they were chosen by what `chosen_by` says now."""
    if found is None or not decides:
        return ()
    made = found.chosen_by if isinstance(found, TileRecord) else with_plain_source(found.settings)
    return found.scenes if all(made.get(name) == value for name, value in decides.items()) else ()


def keepers(
    decides: Mapping[str, Any], output: Storage, version: str, tiles: Iterable[str], receipts: Mapping[str, Receipt]
) -> dict[str, Receipt | TileRecord]:
    """What keeps the scenes of tiles: the record of a later run than the receipt, or else that.

    Parameters
    ----------
    decides
        See `chosen_by`; without it there are none.
    output, version, tiles, receipts
        Where, of which files, of which tiles, and what is read of it already.
    """
    if not decides:
        return {}
    tiles = [*tiles]
    records = read_records(output, tiles, version)
    found: dict[str, Receipt | TileRecord] = {}
    for tile in tiles:
        receipt, record = receipts.get(tile), records.get(tile)
        if receipt is not None and kept_of(decides, receipt):
            found[tile] = receipt
        # A run that died between receipt and tidying up left a record that is older.
        if record is not None and kept_of(decides, record) and not (receipt and record.time < receipt.finished):
            found[tile] = record
    return found
