"""The flags of `preview` and `search`."""

from __future__ import annotations

import argparse
from typing import Any

_EXAMPLE = "LON,LAT|FILE"
_OF_SEARCH = """\
example:
  daskembed search embeddings --like 12.45,46.0 --unlike-row claytile_33TUL_20190416_v02_0064 -k 5 --to hits/

exit status:
  0  done    1  stopped by a store    2  OUTPUT holds no such files, or nothing is where an example is
"""


def _whole(text: str) -> int:
    """A number of hits; one that is too small is refused by the search."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1") from None


def add_preview(commands: Any) -> argparse.ArgumentParser:
    """Add `preview` to the commands, without the flags that the table of options has for it."""
    preview: argparse.ArgumentParser = commands.add_parser(
        "preview",
        help="a map of the published files in a browser, coloured by principal components",
        description="Write a page that shows the published files of OUTPUT on a map, in the colours of their first "
        "three principal components, and finds similar places. It opens straight from disk and asks nobody on the "
        "network.",
        epilog="exit status: 0, 1 stopped by a store, or 2 if there is nothing to show or the basis does not fit",
    )
    preview.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run")
    preview.add_argument("--to", metavar="URL", help="folder or URL of the page (default: OUTPUT/_preview)")
    preview.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    preview.add_argument(
        "--serve", action="store_true", help="serve the page on the loopback address until a Ctrl-C, ranges included"
    )
    preview.add_argument(
        "--basis", metavar="FILE", help="colours of another preview, its basis.json (default: those of these files)"
    )
    preview.add_argument(
        "--geotiff", action="store_true", help="write the colours as cloud-optimised GeoTIFFs, too, one a tile and date"
    )
    return preview


def add_search(commands: Any) -> None:
    """Add `search` to the commands."""
    search = commands.add_parser(
        "search",
        help="the places most like some examples: their embeddings, all compared",
        description="Find the chips, at levels with a grid the patches, whose embeddings are most like those of some "
        "examples. All vectors are compared: the hits are the best there are.",
        epilog=_OF_SEARCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    search.add_argument("output", metavar="OUTPUT", help="folder or URL of published files or an export, or one file")
    examples = search.add_argument_group("examples, each of which can be given several times")
    examples.add_argument(
        "--like",
        action="append",
        metavar=_EXAMPLE,
        help="what is alike: a place in degrees, or a file that GeoPandas reads, each of whose features is an example",
    )
    examples.add_argument(
        "--like-row",
        action="append",
        metavar="URL",
        help="a row's source_url, or its end as far as no other ends so, such as the names in the table of hits; "
        "#patch=ROW,COL after it is a patch",
    )
    examples.add_argument("--unlike", action="append", metavar=_EXAMPLE, help="what is not alike, as --like")
    examples.add_argument("--unlike-row", action="append", metavar="URL", help="what is not alike, as --like-row")
    search.add_argument("-k", type=_whole, default=50, metavar="N", help="how many hits (default: 50)")
    search.add_argument(
        "--combine",
        choices=("mean", "each"),
        default="mean",
        help="several examples are one query, 2 mean(like) - mean(unlike), or each like is one of its own (default: "
        "mean)",
    )
    search.add_argument(
        "--metric", choices=("cosine", "l2", "dot"), default="cosine", help="what counts as alike (default: cosine)"
    )
    search.add_argument(
        "--center",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the mean of all vectors out of them first (default: yes)",
    )
    search.add_argument(
        "--apart", type=float, metavar="METRES", help="between hits, and between them and the examples, at least"
    )
    search.add_argument("--dates", metavar="START/END", help="acquisition dates wanted, inclusive (default: all)")
    search.add_argument("--region", metavar="FILE|W,S,E,N", help="where hits are (default: anywhere)")
    search.add_argument("--encoder", metavar="NAME", help="only files of this encoder")
    search.add_argument("--level", metavar="LEVEL", help="only files of this level")
    search.add_argument("--version", metavar="V", help="only files with this version in their names")
    search.add_argument(
        "--cluster", metavar="NAME|FILE|ADDRESS", help="where it is computed (default: threads of this process)"
    )
    search.add_argument(
        "--to",
        metavar="FILE|FOLDER/",
        help="write the hits, too: .parquet (GeoParquet), .geojson, or, in a folder whose name ends with a slash, a "
        "page that shows them, to be opened from disk; what is there is replaced",
    )
