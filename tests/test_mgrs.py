"""Tile ids and lists of them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskembed.errors import InputError
from daskembed.geo.mgrs import check_tile, parse_tiles, read_tiles, tile_in

COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
"""Letters of the 100 km columns by zone modulo 3."""
BANDS, ROWS = "CDEFGHJKLMNPQRSTUVWX", "ABCDEFGHJKLMNPQRSTUV"


@st.composite
def tile_ids(draw: st.DrawFn) -> str:
    zone = draw(st.integers(1, 60))
    letters = (draw(st.sampled_from(choice)) for choice in (BANDS, COLUMNS[zone % 3], ROWS))
    return f"{zone:02}{''.join(letters)}"


@st.composite
def written_tiles(draw: st.DrawFn) -> tuple[str, str]:
    """A tile and a line that names it: in any case, with spaces and a comment."""
    tile = draw(tile_ids())
    mixed = "".join(draw(st.sampled_from((c.lower(), c))) for c in tile)
    before, after = draw(st.tuples(*[st.text(" \t", max_size=3)] * 2))
    end = draw(st.sampled_from(("", "# a comment", "#27WXN", "\r")))
    return tile, f"{before}{mixed}{after}{end}"


EMPTY_LINES = st.sampled_from(["", "  ", "\t", "# a comment", "  #27WXN", "\r"])
BAD_IDS = st.one_of(
    st.sampled_from(["00WXN", "61WXN", "27AXN", "27IXN", "27OXN", "27YXN", "27WIN", "27WXO", "27WXW", "27WAN", "27WX"]),
    st.text(string.ascii_letters + string.digits, min_size=6, max_size=9),
)


@pytest.mark.parametrize("tile", ["27WXN", "01CAA", "60XZV", "33TUL", "48QUE", "16UFF", "03WVN"])
def test_tiles_that_exist(tile):
    assert check_tile(tile) == tile


@given(written=written_tiles())
def test_any_valid_id_in_any_case(written):
    tile, line = written
    assert check_tile(line.partition("#")[0]) == tile


@pytest.mark.parametrize(
    "text", ["", "27", "27W", "27WXNN", "TT27WXN", "T27WX", "61WXN", "00WXN", "27IXN", "27WXW", "27-WXN", "x"]
)
def test_what_is_no_id(text):
    with pytest.raises(InputError, match=r"is not an MGRS tile id: expected zone \(01-60\), latitude band") as error:
        check_tile(text)
    assert repr(text) in str(error.value)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("text", ["T33TUL", "t33tul", " T33TUL "])
def test_the_t_of_sentinel_2_products_is_dropped(text):
    assert check_tile(text) == "33TUL"


@pytest.mark.parametrize("text", ["1\N{ARABIC-INDIC DIGIT THREE}SDA", "27S\N{LATIN SMALL LETTER SHARP S}"])
def test_letters_and_digits_of_other_scripts(text):
    with pytest.raises(InputError, match="is not an MGRS tile id"):
        check_tile(text)


def test_missing_leading_zero_is_hinted():
    with pytest.raises(InputError, match=r"'3wvn' is not an MGRS tile id: .*; did you mean 03WVN\?$"):
        check_tile("3wvn")


@given(tile=tile_ids().filter(lambda tile: tile.startswith("0")))
def test_missing_leading_zero_of_any_tile_is_hinted(tile):
    with pytest.raises(InputError, match=rf"did you mean {tile}\?$"):
        check_tile(tile[1:])


def test_no_hint_of_a_tile_that_does_not_exist():
    with pytest.raises(InputError) as error:
        check_tile("7WXN")  # zone 07 has no column X
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(("text", "columns"), [("27WAN", "S-Z"), ("28WSN", "A-H"), ("29WAN", "J-R"), ("60CRA", "S-Z")])
def test_column_of_another_zone(text, columns):
    message = f"'{text}' is not an MGRS tile id: zone {text[:2]} has the columns {columns}, not {text[3]}"
    with pytest.raises(InputError, match=message):
        check_tile(text)


@given(tile=tile_ids(), zone=st.integers(1, 60))
def test_a_column_is_valid_in_every_third_zone(tile, zone):
    moved = f"{zone:02}{tile[2:]}"
    if zone % 3 == int(tile[:2]) % 3:
        assert check_tile(moved) == moved
    else:
        with pytest.raises(InputError, match="has the columns"):
            check_tile(moved)


# --- Lists ------------------------------------------------------------------------


@given(lines=st.lists(st.one_of(written_tiles(), EMPTY_LINES.map(lambda line: (None, line)))))
def test_any_list_keeps_the_order_and_drops_duplicates(lines):
    tiles = [tile for tile, _ in lines if tile]
    if not tiles:
        with pytest.raises(InputError, match="my list names no tile: put one MGRS tile id on each line"):
            parse_tiles([line for _, line in lines], name="my list")
        return
    assert parse_tiles([line for _, line in lines]) == tuple(dict.fromkeys(tiles))


@given(
    before=st.lists(st.one_of(written_tiles().map(lambda written: written[1]), EMPTY_LINES)),
    bad=BAD_IDS,
    after=st.lists(st.one_of(EMPTY_LINES, BAD_IDS)),
)
def test_first_bad_line_is_named_by_its_number(before, bad, after):
    with pytest.raises(InputError) as error:
        parse_tiles([*before, bad, *after], name="my list")
    assert str(error.value).startswith(f"my list, line {len(before) + 1}: {bad!r} is not an MGRS tile id")


@pytest.mark.parametrize("mark", ["", "\N{BYTE ORDER MARK}"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_file(tmp_path, mark, end):
    path = tmp_path / "tiles.txt"
    lines = ["27wxn", "", "# Iceland", "27WXM  # twice", "27WXN", ""]
    path.write_bytes((mark + end.join(lines)).encode())
    assert read_tiles(str(path)) == ("27WXN", "27WXM")


def test_file_without_suffix_or_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "27WXM").write_text("27WXN\n")
    assert read_tiles("27WXM") == ("27WXN",)


def test_bad_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "tiles.txt"
    path.write_text("27WXN\n\n7WX\n")
    with pytest.raises(InputError) as error:
        read_tiles(str(path))
    assert str(error.value).startswith(f"{path}, line 3: '7WX' is not an MGRS tile id")


def test_empty_file(tmp_path):
    path = tmp_path / "tiles.txt"
    path.write_text("# none yet\n")
    with pytest.raises(InputError, match=r"tiles\.txt names no tile: put one MGRS tile id on each line"):
        read_tiles(str(path))


@pytest.mark.parametrize("data", [b"\xff\xfe2\x007\x00W\x00X\x00N\x00", b"II*\0\x80\x81\xff"])
def test_file_that_is_not_text(tmp_path, data):
    path = tmp_path / "tiles.tif"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"tiles\.tif is not a text file: expected one MGRS tile id a line"):
        read_tiles(str(path))


@pytest.mark.parametrize("name", ["tiles.txt", "lists/tiles", "./27WXN", "."])
def test_missing_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        read_tiles(name)
    assert str(error.value).startswith(f"no file {name}: give a text file with one MGRS tile id a line, or ids such as")


def test_folder_is_no_list(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_tiles(str(tmp_path))


@pytest.mark.parametrize("value", ["27WXN,27WXM", "27wxn, 27WXM", "27WXN,27WXM,27WXN"])
def test_ids_with_commas(value):
    assert read_tiles(value) == ("27WXN", "27WXM")


def test_many_ids_with_commas():
    # Longer than the name of a file may be.
    tiles = [f"{zone:02}N{COLUMNS[zone % 3][0]}{row}" for zone in range(1, 61) for row in "ABCDEF"]
    assert read_tiles(",".join(tiles)) == tuple(tiles)


def test_bad_id_with_commas():
    with pytest.raises(InputError, match="'27WX' is not an MGRS tile id"):
        read_tiles("27WXN,27WX")


@pytest.mark.parametrize("value", ["33TUL 22JGS", "T33TUL, t22jgs", "33TUL,22JGS,", " 33tul\t22JGS "])
def test_ids_with_spaces(value):
    assert read_tiles(value) == ("33TUL", "22JGS")


def test_many_ids_with_spaces():
    tiles = [f"{zone:02}N{COLUMNS[zone % 3][0]}{row}" for zone in range(1, 61) for row in "ABCDEF"]
    assert read_tiles(" ".join(tiles)) == tuple(tiles)


def test_several_ids_on_a_line():
    assert parse_tiles(["T33TUL 22JGS  # two", "27wxn,27WXM"]) == ("33TUL", "22JGS", "27WXN", "27WXM")
    with pytest.raises(InputError, match=r"^tiles, line 2: '27WX' is not an MGRS tile id"):
        parse_tiles(["33TUL", "22JGS 27WX"])


@pytest.mark.parametrize("value", ["", " "])
def test_nothing_is_no_list(value):
    with pytest.raises(InputError, match=rf"^'{value}' is not an MGRS tile id|no file"):
        read_tiles(value)


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        *[
            (name, "33TUL")
            for name in ("33TUL", "T33TUL", "33tul.zarr", "T33TUL_20190416.tif", "claytile_33TUL_2_1.tif")
        ],
        *[(name, None) for name in ("chips", "2019-04-16", "33TULX", "33TAL", "tiles33TUL", "")],
    ],
)
def test_tile_after_which_something_is_named(name, tile):
    assert tile_in(name) == tile
