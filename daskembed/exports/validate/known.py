"""What an export's plan and receipts say of one of its files, and whether its bytes are those."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daskembed.documents import MOST_JSON, parse_as
from daskembed.errors import InputError
from daskembed.exports import state
from daskembed.exports.settings import KIND
from daskembed.exports.state import ExportedFile, PlannedFile
from daskembed.output.validate.findings import Finding
from daskembed.quantization import KEY, Calibration, parse_calibration
from daskembed.storage.stores import Storage

_HASHED_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Known:
    """What is known of a file beside it."""

    settings: dict[str, Any]
    """What determines the files of its export; empty if there is no plan."""
    planned: PlannedFile | None
    receipt: ExportedFile | None
    findings: tuple[Finding, ...]
    """What is wrong with these."""

    @property
    def nothing(self) -> bool:
        """Whether nothing beside the file says what it is."""
        return self.planned is None and self.receipt is None and not any(self.problems)

    @property
    def problems(self) -> Iterator[Finding]:
        """Findings that are no notes."""
        return (one for one in self.findings if one.severity == "problem")


def read_known(storage: Storage, name: str, *, is_table: bool = False) -> Known:
    """What the plan and the receipt beside a file say of it; of a table, which has receipts of its files, the plan."""
    findings: list[Finding] = []
    plan, planned, receipt = None, None, None
    try:
        plan = state.read_plan(storage)
    except InputError as error:
        findings.append(Finding("receipt", str(error)))
    settings = {} if plan is None else plan.identity
    if is_table:
        return Known(settings, None, None, tuple(findings))
    if plan is not None:
        planned = next((file for file in plan.files if file.name == name), None)
        if planned is None:
            findings.append(Finding("receipt", "it is no part of the export beside it, whose readers take it for one"))
    path = state.receipt_of(name)
    try:
        receipt = parse_as(ExportedFile, storage.get(path, most=MOST_JSON))
    except FileNotFoundError:
        what = f"no receipt {path} beside it, so that its SHA-256 could not be checked"
        findings.append(Finding("receipt", what, "note"))
    except (ValueError, InputError) as error:
        findings.append(Finding("receipt", f"{path} is not a receipt of daskembed: {error}"))
    return Known(settings, planned, receipt, tuple(findings))


def check_bytes(reader: Any, receipt: ExportedFile | None) -> Iterator[Finding]:
    """Compare an open file with its receipt."""
    if receipt is None:
        return
    size = reader.seek(0, 2)
    if size != receipt.size:
        yield Finding("receipt", f"{size} bytes, the receipt says {receipt.size}")
        return
    reader.seek(0)
    digest = hashlib.sha256()
    while data := reader.read(_HASHED_BYTES):
        digest.update(data)
    if digest.hexdigest() != receipt.sha256:
        yield Finding("receipt", f"SHA-256 {digest.hexdigest()}, the receipt says {receipt.sha256}")


def check_made(made: dict[str, Any], settings: dict[str, Any]) -> Iterator[Finding]:
    """Compare what a file says of how it was made with what is needed, and with the export's plan."""
    if missing := [key for key in ("shape", "dtype", "export") if made.get(key) is None]:
        yield Finding("provenance", f"`daskembed` in the file lacks {', '.join(missing)}")
    # Files of others are exported, too.
    if not settings and (unknown := [key for key in ("encoder", "checkpoint", "level") if made.get(key) is None]):
        yield Finding("provenance", f"nothing says of which {', '.join(unknown)} the embeddings are", "note")
    for key in (*KIND, "dtype"):
        if settings and made.get(key) != settings.get(key):
            yield Finding("provenance", f"the file says {key} {made.get(key)}, the export's plan {settings.get(key)}")
    if settings and isinstance(how := made.get("export"), dict):
        for key in how.keys() & settings.keys():
            if how[key] != settings[key]:
                yield Finding("provenance", f"the file says {key} {how[key]}, the export's plan {settings[key]}")


def check_calibration(
    text: str | bytes | None,
    made: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    known: Known,
    where: str,
) -> Generator[Finding, None, Calibration | None]:
    """Look at what a file says of how its values became int8, which is `text`; gives it, if it is a calibration."""
    if made.get("dtype") != "int8":
        if text is not None:
            yield Finding("quantization", f"`{KEY}` in the {where}, and the values are {made.get('dtype')}")
        return None
    if text is None:
        yield Finding("quantization", f"no `{KEY}` in the {where}: nothing says what the values of int8 stand for")
        return None
    try:
        found = parse_calibration(text, f"`{KEY}` in the {where}")
        found.check({**made, "shape": list(shape)} if shape else made, "the file")
    except InputError as error:
        yield Finding("quantization", str(error))
        return None
    planned = known.settings.get("calibration")
    if known.settings and planned != found.digest:
        yield Finding("quantization", f"made with the calibration {found.digest}, the export's plan says {planned}")
    return found
