"""Virtual rasters: what a ``.vrt`` may refer to, checked and written anew before GDAL sees it."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree import ElementTree

from daskembed.errors import ChipError

SOURCES = (".tif", ".tiff", ".jp2", ".vrt")
"""What the names of a virtual raster's sources end with."""
TOP = "0.vrt"
"""What GDAL is told that the file itself is called."""
MOST_BYTES = 8 * 2**20
MOST_SOURCES = 1024
MOST_NESTED = 4

_SOURCE = {
    *("SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio"),
    *("SrcMin", "SrcMax", "DstMin", "DstMax", "Exponent", "Clamp", "LUT", "ColorTableComponent", "UseMaskBand"),
    *("MaskValueThreshold", "NoData", "RemappedValue"),
}
_SOURCE_KINDS = ("SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource")
_CHILDREN: dict[str, set[str]] = {
    "VRTDataset": {"SRS", "GeoTransform", "Metadata", "VRTRasterBand", "MaskBand"},
    "MaskBand": {"VRTRasterBand"},
    "Metadata": {"MDI"},
    "VRTRasterBand": {
        *("Description", "NoDataValue", "HideNoDataValue", "Offset", "Scale", "UnitType", "ColorInterp", "Metadata"),
        *_SOURCE_KINDS,
    },
    **dict.fromkeys(_SOURCE_KINDS, _SOURCE),
}
"""Element -> those that it may hold. What else GDAL knows is refused: raw bytes of any file, code, other formats."""
_NEEDLESS = {
    *("GCPList", "Overview", "OverviewList", "BlockXSize", "BlockYSize", "ColorTable", "CategoryNames", "Histograms"),
    "GDALRasterAttributeTable",
}
"""Elements that have no part in the pixels; they are left out."""
_SRS = re.compile(r"\s*(?:[A-Za-z]+:\w+\s*$|[A-Z][A-Z0-9_]*\s*\[)")


@dataclass
class Virtual:
    """A virtual raster that was checked, with those that it refers to."""

    documents: dict[str, bytes] = field(default_factory=dict)
    """Name for GDAL -> XML: `TOP`, and each virtual raster among its sources."""
    sources: dict[str, str] = field(default_factory=dict)
    """Name for GDAL -> path below the source, of the files that hold pixels."""
    paths: tuple[str, ...] = ()
    """Below the source, of every file but the first, virtual ones too."""
    masked: bool = False
    """Whether the first has a mask of its own."""
    tagged: bool = False
    """Whether all its bands have nodata."""
    uncovered: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Path -> numbers of the bands without nodata of which some pixels are of no source: GDAL reads 0 there."""


def read_vrt(path: str, get: Callable[[str], bytes]) -> Virtual:
    """Read a virtual raster and those that it refers to.

    GDAL is given XML made of what was understood here, in which sources have names that say nothing: it cannot see
    in it what was not seen here, and no file that is not in `Virtual`.

    Parameters
    ----------
    path
        Below the source.
    get
        The bytes of a path below the source; raises `FileNotFoundError`.

    Raises
    ------
    ChipError
        If it is none, or refers to something else than rasters below the source by relative paths.
    """
    found = Virtual()
    names: dict[str, str] = {}

    def read(path: str, name: str, above: tuple[str, ...]) -> None:
        def rename(text: str, relative: bool) -> str:
            target = _resolve(path, text, relative)
            if target in (*above, path):
                raise ChipError(f"refers to itself by way of {path}")
            if target in names:
                return names[target]
            if len(names) == MOST_SOURCES:
                raise ChipError(f"refers to more than {MOST_SOURCES} files: write it as a GeoTIFF (gdal_translate)")
            suffix = PurePosixPath(target).suffix.lower()
            names[target] = alias = f"{len(names) + 1}{suffix}"
            if suffix != ".vrt":
                found.sources[alias] = target
            elif len(above) + 1 == MOST_NESTED:
                raise ChipError(
                    f"refers to {target} by way of {MOST_NESTED} others: expected virtual rasters less deep"
                )
            else:
                read(target, alias, (*above, path))
            return alias

        try:
            data = get(path)
        except FileNotFoundError:
            raise ChipError(f"needs {path}, which is not there") from None
        root = _parse(data, path)
        if name == TOP:
            found.masked = root.find("MaskBand") is not None
            found.tagged = all(band.find("NoDataValue") is not None for band in root.findall("VRTRasterBand"))
        found.documents[name] = ElementTree.tostring(_rebuild(root, path, rename), "unicode").encode()
        if gaps := tuple(_uncovered(root, path)):
            found.uncovered[path] = gaps

    read(path, TOP, ())
    found.paths = tuple(sorted(names))
    return found


def _parse(data: bytes, path: str) -> ElementTree.Element:
    if len(data) > MOST_BYTES:
        raise ChipError(f"has {len(data):,} bytes in {path}: expected a virtual raster of at most {MOST_BYTES:,}")
    try:
        text = data.decode("utf-8-sig")
        # Without it there are no entities, which might grow or name other files.
        if "<!DOCTYPE" in text:
            raise ChipError(f"has a DOCTYPE in {path}: expected a VRTDataset as GDAL writes it")
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise ChipError(f"has a damaged header: {path} is no XML ({error})") from None
    if root.tag != "VRTDataset":
        raise ChipError(f"has the element {root.tag[:40]} in {path}: expected a VRTDataset")
    return root


def _rebuild(element: ElementTree.Element, path: str, rename: Callable[[str, bool], str]) -> ElementTree.Element:
    """A copy of what is known, with the names of sources changed."""
    kind = element.get("subClass", "")
    if kind not in ("", "VRTSourcedRasterBand"):
        raise ChipError(
            f"is a {kind[:40]} in {path}: expected bands made of other files' (write it as a GeoTIFF: gdal_translate)"
        )
    made = ElementTree.Element(element.tag, {} if element.tag == "SourceFilename" else dict(element.attrib))
    text = (element.text or "").strip()
    if element.tag == "SourceFilename":
        made.text = rename(text, element.get("relativeToVRT") == "1")
        made.set("relativeToVRT", "1")
        return made
    if element.tag == "SRS" and not _SRS.match(text):
        raise ChipError(f"has the CRS {text[:60]} in {path}: expected a code such as EPSG:32633, or WKT")
    if element.tag in _SOURCE_KINDS:
        _check_scale(element, path)
    made.text = element.text
    known = _CHILDREN.get(element.tag, set())
    for child in element:
        # Of other domains of metadata nothing is read here.
        if child.tag in _NEEDLESS or (child.tag == "Metadata" and child.attrib):
            continue
        if child.tag not in known:
            raise ChipError(
                f"has the element {child.tag[:40]} in a {element.tag} of {path}: expected no more than bands made of "
                "other files' (write it as a GeoTIFF: gdal_translate)"
            )
        made.append(_rebuild(child, path, rename))
    return made


def _check_scale(element: ElementTree.Element, path: str) -> None:
    """Pixels made coarser are taken from a source's overviews, which may be any file that its tags name."""
    there, here = element.find("SrcRect"), element.find("DstRect")
    if there is None or here is None:
        return
    for side in ("xSize", "ySize"):
        try:
            finer = float(there.get(side, "nan")) <= float(here.get(side, "nan")) * (1 + 1e-6)
        except ValueError:
            finer = False
        if not finer:
            raise ChipError(
                f"takes {there.get(side)} pixels for {here.get(side)} of its own in {path}: expected sources that are "
                "not finer (make them coarser with gdalwarp, into a GeoTIFF)"
            )


def _uncovered(root: ElementTree.Element, path: str) -> Iterator[int]:
    """Numbers of the bands without nodata that their sources do not fill."""
    try:
        height, width = (int(root.get(side, "")) for side in ("rasterYSize", "rasterXSize"))
        for number, band in enumerate(root.findall("VRTRasterBand"), 1):
            if band.find("NoDataValue") is not None:
                continue
            places = [source.find("DstRect") for source in band if source.tag in _SOURCE_KINDS]
            # Without a place a source fills all of it.
            if None not in places and not _covered(height, width, [place for place in places if place is not None]):
                yield number
    except (ValueError, OverflowError):
        raise ChipError(
            f"has a size or a DstRect in {path} that is no number: expected those of gdalbuildvrt"
        ) from None


def _covered(height: int, width: int, places: Sequence[ElementTree.Element]) -> bool:
    """Whether rectangles fill an image, as far as the middles of its pixels go."""
    sides = (("xOff", "xSize"), ("yOff", "ySize"))
    rects = [
        [round(float(place.get(off, ""))) for off, _ in sides]
        + [round(float(place.get(off, "")) + float(place.get(size, ""))) for off, size in sides]
        for place in places
    ]
    ends = {y for _, top, _, bottom in rects for y in (top, bottom) if 0 < y < height}
    # All rows between two ends are alike.
    for top, bottom in itertools.pairwise(sorted({0, height, *ends})):
        reached = 0
        for left, _, right, _ in sorted(rect for rect in rects if rect[1] <= top and bottom <= rect[3]):
            if left <= reached:
                reached = max(reached, right)
        if reached < width:
            return False
    return True


def _resolve(vrt: str, text: str, relative: bool) -> str:
    """The path below the source of what a virtual raster calls `text`."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(vrt), text))
    if not relative or not text or text.startswith("/") or re.search(r"://|[\\<]", text):
        raise ChipError(
            f"refers to {text[:100] or 'nothing'} in {vrt}: expected a path relative to it (relativeToVRT=1), as "
            "gdalbuildvrt writes for files in its folder or below"
        )
    if target.startswith("../") or target == "..":
        raise ChipError(f"refers to {text[:100]} in {vrt}, which lies outside of the source: put it below")
    if PurePosixPath(target).suffix.lower() not in SOURCES:
        raise ChipError(f"refers to {text[:100]} in {vrt}: expected names that end with {', '.join(SOURCES)}")
    return target
