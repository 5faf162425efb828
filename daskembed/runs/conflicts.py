"""Files in the output that were made with other settings: refused, so that none is replaced unasked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from daskembed.errors import ConflictError
from daskembed.output.protocol import format_of
from daskembed.output.state import Receipt, receipt_path, with_plain_source

if TYPE_CHECKING:
    from daskembed.runs.settings import Settings


def check_conflicts(
    settings: Settings,
    names: tuple[str, ...],
    receipts: dict[str, Receipt],
    published: dict[str, dict[str, int]],
    *,
    leave: Collection[str] = (),
) -> None:
    """Raise `ConflictError` if a tile's file was made with other settings; those of `leave` are not compared."""
    for tile in names:
        if receipt := receipts.get(tile):
            made, what = receipt.settings, receipt.file or receipt_path(tile, settings.version)
        elif tile in published:
            # A run that died between file and receipt left this, or somebody else did.
            what = next(iter(published[tile]))
            provenance = format_of(what).read_provenance(settings.output, what)
            made = (provenance or {}).get("identity", {"daskembed": "unknown: not made by it"})
        else:
            continue
        made, wanted = with_plain_source(made), settings.identity
        changed = [
            f"{key} {made.get(key) or 'all'}, not {wanted.get(key) or 'all'}"
            for key in (*wanted, *(key for key in made if key not in wanted))
            if made.get(key) != wanted.get(key) and key not in leave
        ]
        if changed:
            raise ConflictError(
                f"{settings.output.url_of(what)} was made with {'; '.join(changed)}: "
                "give another `version` to keep both, or `overwrite=True` to replace it"
            )
