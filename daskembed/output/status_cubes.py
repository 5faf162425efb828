"""What an output holds of cubes of chips; see `daskembed.status`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from daskembed.errors import InputError
from daskembed.output.geozarr import ROOT
from daskembed.output.state import CUBES, CubeReceipt, read_cube_receipt, read_record, record_path
from daskembed.output.tile_status import TileStatus
from daskembed.storage.local_files import target
from daskembed.storage.stores import Storage

_STATE = re.compile(rf"{CUBES}/(?P<tile>\d\d[A-Z]{{3}})(?P<what>(?:\.failed)?\.json|/.*\.json)")
_STORE = re.compile(r"(?P<tile>\d\d[A-Z]{3})\.zarr")


def judge_cubes(storage: Storage, paths: Iterable[str], wanted: Iterable[str] | None = None) -> list[TileStatus]:
    """The cubes of an output, by tile: two small files and a listing each.

    Parameters
    ----------
    storage
        The output.
    paths
        Of the objects of its state.
    wanted
        Only the cubes of these tiles.
    """
    notes: Counter[str] = Counter()
    known = set(paths)
    tiles = {match["tile"] for name in storage.folders() if (match := _STORE.fullmatch(name))}
    for match in filter(None, map(_STATE.fullmatch, known)):
        tiles.add(match["tile"])
        notes[match["tile"]] += match["what"].startswith("/")
    tiles &= tiles if wanted is None else set(wanted)
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda tile: _judge(storage, tile, known, notes[tile]), sorted(tiles)))


def _judge(storage: Storage, tile: str, known: set[str], notes: int) -> TileStatus:
    cube = f"{tile}.zarr"
    as_cube = partial(TileStatus, tile, "", kind="cube")
    try:
        receipt = read_cube_receipt(storage, tile)
        failure = read_record(storage, path) if (path := record_path(tile, None)) in known else None
    except FileNotFoundError:
        failure = None  # a run at work began the tile since it was listed
    except InputError as error:
        return as_cube("damaged", reason=str(error))
    # What a killed writer left half written is not of the cube.
    present = [entry for entry in storage.entries(cube) if target(entry.path) is None]
    sizes = {entry.path.removeprefix(f"{cube}/"): entry.size for entry in present}
    files = [cube] if ROOT in sizes else []
    if failure is not None and (receipt is None or receipt.finished is None or failure.time > receipt.finished):
        chips, bad = (receipt.chips, receipt.quarantined) if receipt is not None and files else (None, {})
        return as_cube("failed", files, chips, quarantined=bad, reason=failure.reason)
    if receipt is None:
        return as_cube("unfinished", files, reason=f"{cube} has no receipt: its run died, or it is another's")
    if receipt.status == "unfinished":
        written, planned = len(receipt.shards) + notes, receipt.planned or None
        return as_cube("unfinished", parts_done=written, parts=planned, quarantined=receipt.quarantined)
    done = as_cube("done", files, receipt.chips, quarantined=receipt.quarantined)
    if found := damage_of(receipt, sizes):
        gone = receipt.file is not None and not files
        reason = f"{found}; the same command makes it again"
        return replace(done, status="missing" if gone else "changed", reason=reason)
    return done


def damage_of(receipt: CubeReceipt, objects: Mapping[str, int]) -> str:
    """What is not as a receipt says of its cube, given paths and bytes of the objects that are there; else nothing."""
    cube = f"{receipt.tile}.zarr"
    if receipt.file is not None and ROOT not in objects:
        return f"{cube} is gone, or its {ROOT} is"
    if (size := sum(objects.values())) != receipt.size:
        return f"{cube} has {len(objects)} objects of {size} bytes, its receipt says {receipt.size}"
    return ""
