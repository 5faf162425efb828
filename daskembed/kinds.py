"""What files say of the model that made their vectors: which of them go together, and the choices in words (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from daskembed.errors import InputError, did_you_mean

MODEL = ("encoder", "size", "sensor", "window", "checkpoint", "sha256", "level")
"""What footers say that has to be the same of vectors that go together."""
APART = "put them into folders of their own"
_CHOICES = ("encoder", "level", "version")
Kind = Mapping[str, str]
"""Name -> what has to be the same in files that go together."""


class Looked(Protocol):
    """What is known of a file by its footer."""

    @property
    def made(self) -> Mapping[str, Any]:
        """How it was made."""

    @property
    def kind(self) -> Kind:
        """See `kind_of`."""


_Looked = TypeVar("_Looked", bound=Looked)


def kind_of(made: Mapping[str, Any], model: Iterable[str] = MODEL, **more: str) -> dict[str, str]:
    """What has to be the same in files that go together: of their model, and `more`."""
    said = {name: str(made[name]) for name in model if made.get(name) is not None}
    if "sha256" in said:
        said.pop("checkpoint", None)  # the same weights may have several names
    return {"encoder": "unknown"} | said | more


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Of the `MODEL` what differs; the same weights by another name are the same."""
    same = ours.get("sha256") is not None and ours.get("sha256") == theirs.get("sha256")
    return [name for name in MODEL if ours.get(name) != theirs.get(name) and not (same and name == "checkpoint")]


def is_of(made: Mapping[str, Any], encoder: str | None, level: str | None) -> bool:
    """Whether a file says that it is of an encoder and a level; None for any."""
    return (encoder is None or made.get("encoder") == encoder) and (level is None or made.get("level") == level)


def choose(
    where: str,
    looked: Mapping[str, _Looked],
    encoder: str | None,
    level: str | None,
    version: str | None,
    advice: str = APART,
) -> dict[str, _Looked]:
    """Those of some files, which are of a version, that are of an encoder and a level; None for any.

    Raises
    ------
    InputError
        If there is none, or they do not go together; `where` is their folder. The choices are told, or if there are
        none, `advice`.
    """
    chosen = {name: one for name, one in looked.items() if is_of(one.made, encoder, level)}
    if not chosen:
        asked = told((("encoder", encoder), ("level", level), ("version", version)))
        meant = "".join(
            did_you_mean(value, {str(one.made[name]) for one in looked.values() if name in one.made})
            for name, value in (("encoder", encoder), ("level", level))
            if value is not None
        )
        raise InputError(f"no files{asked} in {where}: it holds {mixture(one.kind for one in looked.values())}{meant}")
    check_alike(where, [one.kind for one in chosen.values()], advice)
    return chosen


def told(wanted: Iterable[tuple[str, str | None]], more: Iterable[str] = ()) -> str:
    """What was asked for, in words that begin with `` of``; empty if nothing was."""
    what = [*(f"`{name}` {value}" for name, value in wanted if value is not None), *more]
    return f" of {' and '.join(what)}" if what else ""


def check_alike(where: str, kinds: list[Kind], advice: str = APART) -> None:
    """Raise `InputError` with the choices, or else `advice`, if files of these kinds do not go together."""
    if differ := _differing(kinds):
        flags = [f"`{name}`" for name in differ if name in _CHOICES]
        what = f"choose by {' or '.join(flags)}" if flags else advice
        raise InputError(f"{where} mixes embeddings that do not go together: {mixture(kinds)}; {what}")


def mixture(kinds: Iterable[Kind]) -> str:
    """How many files there are of each kind, by what tells these apart."""
    kinds = list(kinds)
    names = _differing(kinds) or ["encoder", "level"]
    words = [" ".join(f"{name} {kind.get(name, 'unknown')[:16]}" for name in names) for kind in kinds]
    return "; ".join(f"{words.count(one)} of {one}" for one in sorted({*words}))


def _differing(kinds: list[Kind]) -> list[str]:
    names = dict.fromkeys(name for kind in kinds for name in kind)
    return [name for name in names if len({kind.get(name) for kind in kinds}) > 1]
