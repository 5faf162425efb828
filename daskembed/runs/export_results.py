"""What became of an export, and its closing lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daskembed.exports.state import ExportedFile
from daskembed.runs.summary import MOST_LISTED, describe_seconds
from daskembed.text import counted, describe_bytes, visible


@dataclass(frozen=True, repr=False)
class ExportResult:
    """What became of an export."""

    output: str
    """Path or URL of the published files."""
    to: str
    """Path or URL of the copy."""
    files: tuple[ExportedFile, ...]
    """That are finished, in the order of their rows."""
    written: int
    """Of them by this call."""
    unfinished: int
    """Files that are still to be written; 0 as long as they are not planned."""
    tiles: int
    """Published files that are copied."""
    left_out: dict[str, str]
    """Damaged published files -> what is wrong with them, where they were to be skipped."""
    failed: dict[str, str]
    """Published or exported files that could not be read or written -> why."""
    notes: tuple[str, ...]
    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool

    def __repr__(self) -> str:
        return f"<ExportResult>\n{summary(self)}"

    @property
    def rows(self) -> int:
        """Of the finished files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Of the finished files."""
        return sum(file.size for file in self.files)

    @property
    def exit_status(self) -> int:
        """0 all done, 3 done but for damaged files, 4 some failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 4 if self.failed else 3 if self.left_out else 0


def summary(result: ExportResult) -> str:
    """The closing lines of an export."""
    skipped = len(result.files) - result.written
    states = ((result.written, "written"), (skipped, "there already"), (result.unfinished, "to be written"))
    files = ", ".join(f"{count} {what}" for count, what in states if count) or "none"
    fast = f" in {describe_seconds(result.seconds)}" if result.written else ""
    lines = [
        f"tiles        {counted(result.tiles, 'published file')} of {result.output}",
        *list_some("left out", result.left_out),
        f"files        {files}{fast}",
        f"rows         {result.rows:,}",
        f"size         {describe_bytes(result.bytes)}",
        *list_some("failed", result.failed),
        *(f"note         {note}" for note in result.notes),
        f"export       {result.to}",
    ]
    if result.interrupted:
        lines.append("interrupted: the same command goes on from here")
    elif result.failed:
        lines.append("the same command tries again what failed, and leaves what is finished")
    return "\n".join(map(visible, lines))


def list_some(title: str, reasons: dict[str, str]) -> Iterator[str]:
    """Lines that say how many things went wrong, and why the first ones did; none if nothing did."""
    if reasons:
        yield f"{title:<12} {len(reasons)}"
    yield from (f"  {name}  {reason}" for name, reason in list(reasons.items())[:MOST_LISTED])
    if len(reasons) > MOST_LISTED:
        yield f"  and {len(reasons) - MOST_LISTED} more"
