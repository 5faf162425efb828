"""What is told of an export: what it is made of, the state of each file, whether its source is another since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from daskembed.text import counted, describe_bytes, one_line, visible

STATES = ("done", "failed", "unfinished", "missing", "changed", "damaged")
_MOST_NAMED = 5


@dataclass(frozen=True)
class FileStatus:
    """What is known of one file of an export."""

    name: str
    status: Literal["done", "failed", "unfinished", "missing", "changed", "damaged"]
    """``failed`` is one that could not be written yet; ``missing`` and ``changed`` are finished files that are gone or
    of another size than their receipt says; ``damaged`` is one whose receipt cannot be read."""
    rows: int
    """As its receipt says; as planned, without one."""
    size: int | None = None
    """Bytes; None if it is not there."""
    reason: str | None = None
    """What is not as it should be."""


@dataclass(frozen=True)
class SourceStatus:
    """How the published files of an output are beside those that an export was made of, by listing and receipts."""

    changed: tuple[str, ...] = ()
    """Files that are others by now."""
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    """Files that are not in the export: published since, or not chosen then."""
    reason: str | None = None
    """Why it cannot be looked at; None if it can."""


@dataclass(frozen=True)
class ExportStatus:
    """What an export holds."""

    source: str
    """URL or path of the output that it was made of; empty as long as there is no plan."""
    settings: dict[str, Any]
    """What determines its files beside the published ones."""
    tiles: tuple[str, ...]
    """Published files whose rows it has."""
    left_out: dict[str, str]
    """Published files that it lacks -> why."""
    files: tuple[FileStatus, ...]
    """In the order of their rows."""
    finished: str | None
    """When; UTC, ISO 8601. None as long as the export has not come to its end."""
    others: tuple[str, ...] = ()
    """Files beside its own of which readers of the whole folder would think that they are its."""
    since: SourceStatus = field(default_factory=SourceStatus)
    failed: dict[str, str] = field(default_factory=dict)
    """Files, published or of its own, that could not be read or written yet -> why."""

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of files, of those statuses that occur."""
        seen: Counter[str] = Counter(file.status for file in self.files)
        return {state: seen[state] for state in STATES if seen[state]}

    @property
    def rows(self) -> int:
        """Of the files that are done."""
        return sum(file.rows for file in self.files if file.status == "done")

    @property
    def size(self) -> int:
        """Bytes of the files that are done."""
        return sum(file.size or 0 for file in self.files if file.status == "done")

    @property
    def sound(self) -> bool:
        """Whether it is finished, its files are as their receipts say, and nothing else is taken for one of them."""
        return self.finished is not None and not self.others and all(file.status == "done" for file in self.files)


def lines_of(found: ExportStatus) -> list[str]:
    """The closing lines of an export."""
    if not found.settings:
        return [
            "export       not planned yet: published files were being looked at; the same `daskembed export` goes on",
            *_reasons("failed", found.failed),
        ]
    kept = found.settings
    model = " ".join(str(kept[name]) for name in ("encoder", "size") if kept.get(name))
    told = [model or "unknown encoder", f"level {kept.get('level') or 'unknown'}", str(kept.get("format"))]
    what = "a pixel a patch" if kept.get("format") in ("cog", "zarr") else f"a row a {kept.get('rows')}"
    told += [what, str(kept.get("dtype"))]
    told += ["one row a place and date"] if kept.get("unique") == "place" else []
    told += [f"profile {kept['profile']}"] if kept.get("profile") else []
    told += [f"columns {', '.join(map(str, kept['columns']))}"] if kept.get("columns") else []
    told += [f"{len(kept['components'])} components"] if kept.get("components") else []
    told += [f"dates {'/'.join(map(str, kept['dates']))}"] if kept.get("dates") else []
    told += ["of a region"] if kept.get("region") else []
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items()) or "none"
    lines = [
        f"export       {one_line(', '.join(told))}",
        f"tiles        {counted(len(found.tiles), 'published file')} of {visible(found.source)}",
        *_reasons("left out", found.left_out),
    ]
    lines += [f"files        {counts}", f"rows         {found.rows:,}", f"size         {describe_bytes(found.size)}"]
    lines += _reasons("failed", found.failed)
    if found.finished is None:
        lines.append("unfinished   the same `daskembed export` goes on")
    if found.others:
        lines.append(f"beside it    {_some(found.others)}: no part of it, but readers of the folder take it for one")
    return lines + _lines_since(found.since)


def _lines_since(since: SourceStatus) -> list[str]:
    if since.reason is not None:
        return [f"source       cannot be looked at: {one_line(since.reason)}"]
    lines = []
    if since.changed or since.gone:
        those = (("another", since.changed), ("gone", since.gone))
        what = "; ".join(f"{counted(len(names), 'file')} {now}: {_some(names)}" for now, names in those if names)
        lines.append(f"source       changed since: {what}; `overwrite=True` makes the export anew")
    if since.new:
        lines.append(f"source       has {counted(len(since.new), 'file')} that the export has not: {_some(since.new)}")
    return lines


def _reasons(title: str, reasons: Mapping[str, str]) -> list[str]:
    """The first files that something is wrong with, and what."""
    lines = [f"{title:<12} {visible(name)}: {one_line(why)}" for name, why in [*reasons.items()][:_MOST_NAMED]]
    more = len(reasons) - _MOST_NAMED
    return [*lines, f"             and {more} more"] if more > 0 else lines


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(visible(name) for name in names[:_MOST_NAMED])}{more}"
