"""What goes through the window: tiles, the tasks of their stages, and what follows on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from daskembed.runs.deadly_chips import Suspects, deadly_chips
from daskembed.runs.results import TileResult

Found = TypeVar("Found")


class Observer(Protocol):
    """Whom a window tells what happens in it."""

    def begin(self) -> None:
        """The first tile is about to start."""

    def end(self, how: str, reason: str | None = None) -> None:
        """Nothing happens any more: ``over``, ``interrupted`` or ``stopped``, for a reason."""

    def listen(self, keys: Collection[str]) -> None:
        """Once a second, before `tick`: the tasks of these names are on the cluster; raises if that does not answer."""

    def tick(self) -> None:
        """A second has passed."""

    def tell(self) -> None:
        """Something has changed."""

    def say(self, line: str) -> None:
        """Tell something once, in a line."""

    def notice(self, trouble: str) -> None:
        """What holds the work up at the moment, or that nothing does."""

    def tile_started(self, tile: str, damage: str = "") -> None:
        """A tile is being indexed; `damage` says why, if it was finished."""

    def indexed(self, tile: str, quarantined: Mapping[str, str], chips: int, blocks: int, key: str) -> None:
        """The chips of a tile are known; so many are to be done, in so many blocks."""

    def index_again(self, tile: str) -> None:
        """What was known of a tile holds no more."""

    def block_done(self, event: Literal["embedded", "written"], tile: str, chips: int, key: str, block: int) -> None:
        """A block is finished."""

    def retried(
        self, tile: str, stage: str, reason: str, key: str, block: int | None = None, worker: str | None = None
    ) -> None:
        """A task is tried again; `worker` is the last of those that died of it."""

    def finished(
        self, result: TileResult, known: Mapping[str, str], key: str | None = None, block: int | None = None
    ) -> None:
        """A tile is finished; of its quarantined chips some were known."""


@dataclass
class Tile(ABC):
    """One tile on its way."""

    name: str
    order: int
    """The earlier ones go first."""
    started: str
    quarantined: dict[str, str] = field(default_factory=dict, kw_only=True)
    """URL -> reason, of chips whose headers are bad."""
    damage: str = field(default="", kw_only=True)
    """Why it is made again, though it was finished."""

    @abstractmethod
    def record_failure(self, reason: str) -> None:
        """Write down in the output why it failed."""


Following: TypeAlias = "Sequence[Task[Any]] | TileResult"
"""What follows on a task: others, which do the same to different things, or what became of the tile."""


@dataclass(frozen=True)
class Task(ABC, Generic[Found]):
    """One task of a tile on the cluster; each stage is a class of them."""

    tile: Tile
    tries: int = field(default=0, kw_only=True)
    """How often it was tried again after an error."""
    returns: int = field(default=0, kw_only=True)
    """How often the scheduler gave it back because its workers died."""

    stage: ClassVar[str]
    """What its name on the cluster begins with: one of `daskembed.runs.dashboard.STAGES`."""
    publishes: ClassVar[bool] = False
    """Whether it is the tile's last one, for which a first Ctrl-C waits."""

    @property
    def number(self) -> int | None:
        """Of its block, if it is of one; all others go ahead of those."""
        return None

    @property
    def on_client(self) -> bool:
        """Whether the client does it, as no worker can."""
        return False

    @property
    def gives(self) -> bool:
        """Whether it has a result: to ask a worker for one costs as much as a block's task."""
        return True

    @property
    def key(self) -> str:
        """Its name on the cluster."""
        number = "" if self.number is None else f"-{self.number}"
        again = f"-again{self.tries + self.returns}" if self.tries + self.returns else ""
        return f"{self.stage}-{self.tile.name}{number}-{self.tile.started}{again}"

    @abstractmethod
    def call(self) -> tuple[Callable[..., Found], tuple[Any, ...]]:
        """What is to be done, on a worker: a function and its arguments."""

    @abstractmethod
    def then(self, found: Found, observer: Observer) -> Following:
        """On the client: what follows on its result."""

    def again(self, error: BaseException, observer: Observer) -> Task[Any]:
        """What is done after an error; raises `TileError` if nothing helps."""
        return replace(self, tries=self.tries + 1)

    def given_back(self, *, died: bool) -> Task[Any]:
        """What is done after its workers died, or were short of memory."""
        return replace(self, returns=self.returns + 1)


@dataclass(frozen=True)
class Piece(Task[Found]):
    """A task of one of a tile's pieces, of whose chips one may be what workers die of."""

    set_aside: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """URL -> reason, of chips that its worker must not touch."""

    @property
    @abstractmethod
    def suspects(self) -> Suspects:
        """Its chips."""

    def given_back(self, *, died: bool) -> Task[Any]:
        """Look for a chip that kills, once; if there is none, memory may be short."""
        if died and not self.returns:
            return Examine(self.tile, self, tries=self.tries, returns=1)
        return super().given_back(died=died)


@dataclass(frozen=True)
class Examine(Task[dict[str, str]]):
    """Finds the chips of a piece of which a process dies."""

    piece: Piece[Any]
    stage: ClassVar[str] = "examine"

    @property
    def number(self) -> int | None:
        """Of the piece."""
        return self.piece.number

    def call(self) -> tuple[Callable[..., dict[str, str]], tuple[Any, ...]]:
        """Try each in a process of its own."""
        return deadly_chips, (self.piece.suspects,)

    def then(self, found: dict[str, str], observer: Observer) -> Following:
        """The piece without these."""
        return [replace(self.piece, set_aside=found, tries=self.tries, returns=self.returns)]

    def given_back(self, *, died: bool) -> Task[Any]:
        """Where memory is short there is no room for another process: what is left is to take less at once."""
        again = self.returns + 1
        return replace(self, returns=again) if died else replace(self.piece, tries=self.tries, returns=again)


class Work(Protocol):
    """What is done to tiles: gives the first task of each."""

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all of its tasks together."""

    @property
    def pieces(self) -> str:
        """What a tile is made of, in one word and the singular."""

    def most_tiles(self, threads: int) -> int | None:
        """How many tiles may be at work at a time on so many threads; None: as many as it takes to occupy these."""

    def begin(self, name: str, order: int) -> Task[Any]:
        """The first task of a tile."""
