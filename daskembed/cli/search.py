"""What `daskembed search` shows and writes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from daskembed.cli.text import print_table, say
from daskembed.text import counted, visible

if TYPE_CHECKING:
    import geopandas as gpd
    from rich.table import Table

_KEYWORDS = (
    *("like", "like_row", "unlike", "unlike_row", "k", "combine", "metric", "center", "apart"),
    *("dates", "region", "encoder", "level", "version", "cluster"),
)
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}$")


def search(options: argparse.Namespace) -> int:
    """Search, print the hits, and write them where that is asked."""
    from daskembed.runs.search import check_written, write_hits
    from daskembed.runs.search import search as find

    if options.to is not None:
        check_written(options.to, options.output)
    found = find(options.output, **{name: getattr(options, name) for name in _KEYWORDS})
    print_table(_table(found))
    for line in _summary(found.attrs["search"], len(found)):
        say(visible(line))
    if options.to is not None:
        say(visible(f"written: {write_hits(found, options.to)}"))
    return 0


def _table(found: gpd.GeoDataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    found = found.assign(source_url=short_names(found["source_url"])).rename(columns={"source_url": "source"})
    names = [name for name in found.columns if name not in ("geometry", "file", "row", "col")]
    for name in names:
        right = name in ("rank", "score")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "source", overflow="fold")
    table.add_column("lon,lat", no_wrap=True)
    patches = "row" in found.columns
    if patches:
        table.add_column("patch", no_wrap=True)
    for row in found.itertuples(index=False):
        middle = row.geometry.representative_point()
        cells = [_cell(getattr(row, name)) for name in names] + [f"{middle.x:.4f},{middle.y:.4f}"]
        table.add_row(*(Text(cell) for cell in [*cells, *([f"{row.row},{row.col}"] if patches else [])]))
    return table


def short_names(urls: Iterable[Any]) -> list[str]:
    """URLs of files without their suffixes and, as far as that leaves them different, without their folders.

    Examples
    --------
    >>> short_names(["s3://chips/33TUL/a_1.tif", "s3://chips/33TUL/b_1.tif#window=0,1"])
    ['a_1', 'b_1#window=0,1']
    >>> short_names(["s3://chips/2019/a.tif", "s3://chips/2020/a.tif"])
    ['2019/a', '2020/a']
    """
    texts = [str(url) for url in urls]
    split = {text: text.partition("#") for text in texts}
    deepest = max((path.count("/") for path, *_ in split.values()), default=0) + 1
    short = dict(zip(texts, texts, strict=True))
    for parts in range(1, deepest + 1):
        short = {
            text: _SUFFIX.sub("", "/".join(path.split("/")[-parts:])) + mark + fragment
            for text, (path, mark, fragment) in split.items()
        }
        if len(set(short.values())) == len(short):
            break
    return [short[text] for text in texts]


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else visible(str(value))


def _summary(told: dict[str, Any], hits: int) -> list[str]:
    """What was searched."""
    lines = []
    for example in told["examples"]:
        kind = "like" if example["alike"] else "unlike"
        lines.append(f"{kind} {example['given']}: {counted(example['vectors'], 'vector')}")
    what = " ".join(str(told[name]) for name in ("encoder", "level") if told[name] is not None)
    centred = " after taking out the mean" if told["center"] and told["metric"] != "l2" else ""
    left_out = f", {told['left_out']:,} with NaN or infinity left out" if told["left_out"] else ""
    lines.append(
        f"{counted(hits, 'hit')} of {told['searched']:,} vectors{f' of {what}' if what else ''}{left_out}; "
        f"{told['metric']}{centred}"
    )
    if told.get("index"):
        lines.append(
            f"approximate: the table's index chose {told['candidates']:,} candidates of each query, which their exact "
            "scores rank; some of the best may be missed"
        )
    return lines
