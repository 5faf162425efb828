"""The package's own exceptions; each message names the item, what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from daskembed.text import visible


class DaskembedError(Exception):
    """Base of every exception that the package raises on purpose.

    Much of what they say is of others: names, tags, answers of servers. It may be shown as it is.
    """

    def __str__(self) -> str:
        return visible(super().__str__())

    # Dask pickles what an exception was raised in the handling of along with it. Those of other libraries often do not
    # survive that, and what arrives then is a bare `Exception` that says nothing of whose fault it is.
    @property
    def __context__(self) -> BaseException | None:
        return None

    @__context__.setter
    def __context__(self, error: BaseException | None) -> None:
        pass


class InputError(DaskembedError, ValueError):
    """A tile name, argument, path or configuration that is refused before any chip is read."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, unsafe or not of the encoder's layout."""


class ConflictError(InputError):
    """Files are already published with other settings than the run's."""


class ChipError(DaskembedError):
    """One chip that cannot be embedded; it is quarantined and the rest of its tile goes on."""


class ChipRejectedError(ChipError):
    """One chip that can be read but breaks a rule, such as too much cloud; it is left out by choice."""


class TileError(DaskembedError):
    """One tile that cannot be finished; the other tiles go on."""


class SickMachineError(DaskembedError):
    """A machine that cannot do the work (no PROJ database, no TIFF driver): no chip is judged by what it says."""


class ClusterLostError(DaskembedError):
    """The scheduler or all workers are gone; what is finished stays, and the same run goes on from there."""


class StorageError(DaskembedError):
    """A store that did not answer as it should after its own retries."""


class StorageUnusableError(StorageError):
    """A store on which nothing else would succeed either (no such bucket, disk full): the run stops."""


class StorageDeniedError(StorageUnusableError):
    """A store that refused the credentials."""


class UnconditionalError(StorageError):
    """A store that cannot write on a condition: whether an object is there, or which."""


class LockLostError(DaskembedError):
    """Another run has taken over the output, or may have: this one publishes nothing more."""


def every_error() -> set[type[DaskembedError]]:
    """The exceptions above, and those that other modules derive from them."""
    found, waiting = set[type[DaskembedError]](), [DaskembedError]
    while waiting:
        error = waiting.pop()
        found.add(error)
        waiting += error.__subclasses__()
    return found


def exact(value: float) -> str:
    """A coordinate or a size of pixels for a message: with the digits that tell two grids apart, and none of noise.

    Examples
    --------
    >>> exact(300000.5), exact(5100005.0), exact(0.1 + 0.2)
    ('300000.5', '5100005', '0.3')
    """
    return f"{value:.12g}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What a mistyped word may have been meant to be, as the end of a message; nothing if that is not clear."""
    names = sorted(known)
    spelt = word.lower().replace("_", "-")
    begun = [name for name in names if len(spelt.strip("-")) > 1 and name.startswith(spelt)]
    found = begun[:3] or difflib.get_close_matches(spelt, names, n=1, cutoff=0.6 if len(spelt) > 2 else 0.5)
    return f"; did you mean {' or '.join(found)}?" if found else ""
