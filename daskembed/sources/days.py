"""Which day an image is of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime

from daskembed.errors import ChipError

DATE = re.compile(r"(?<!\d)(20\d\d)-?([01]\d)-?([0-3]\d)(?!\d)")
"""A day in a file's name."""


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


def within(day: date, dates: tuple[date, date] | None) -> bool:
    """Whether a day is one of those that are wanted."""
    return dates is None or dates[0] <= day <= dates[1]
