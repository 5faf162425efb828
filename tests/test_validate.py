"""Published files of real runs, damaged in many ways: each damage is found and told in its own words."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from distributed import Client, LocalCluster

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.output.protocol import Published
from daskembed.output.state import read_receipt, receipt_path, write_receipt
from daskembed.output.validate import geoparquet as module
from daskembed.output.validate.check import files_of, validate
from daskembed.output.validate.findings import Finding
from daskembed.storage.stores import Storage
from daskembed.testing import write_chips

FILE = "33TUL_20190416_20220131_v001.gpq"
# The zone beside the antimeridian, across it; Norway's and Svalbard's wide zones; the southern hemisphere.
EDGES = {"60KZF": 4, "01KAB": 1, "32VKM": 1, "33XXG": 1, "22JGS": 1}
CROSSING = "60KZF_20190416_20190416_v001.gpq"


@pytest.fixture(scope="module")
def client():
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def made(client, chips, tmp_path_factory) -> Path:
    """The output of a real run: 33TUL on two dates, seven chips, one of them quarantined."""
    folder = tmp_path_factory.mktemp("validate")
    shutil.copytree(chips, folder / "chips")
    write_chips(folder / "chips", date="2022-01-31", rows=2, cols=2)
    (folder / "chips" / "33TUL" / "2022-01-31" / "claytile_33TUL_20220131_v02_0002.tif").write_bytes(b"hello")
    run(client, "33TUL", folder)
    return folder / "out"


def run(client: Client, tiles: str, folder: Path, **more: Any) -> None:
    given = {"source": str(folder / "chips"), "output": str(folder / "out"), "checkpoint": "untrained:least"}
    daskembed.run(tiles, precision="fp32", cluster=client, **given, **more)


@pytest.fixture(scope="module")
def made_at_edges(client, tmp_path_factory) -> Path:
    """The output of a real run on `EDGES`."""
    folder = tmp_path_factory.mktemp("edges")
    for tile, columns in EDGES.items():
        write_chips(folder / "chips", tile=tile, rows=1, cols=columns)
    run(client, ",".join(EDGES), folder)
    return folder / "out"


@pytest.fixture
def edges(made_at_edges, tmp_path) -> Storage:
    """A copy of it that a test may change."""
    return Storage(str(shutil.copytree(made_at_edges, tmp_path / "edges")))


@pytest.fixture
def output(made, tmp_path) -> Storage:
    """A copy of it that a test may change."""
    return Storage(str(shutil.copytree(made, tmp_path / "out")))


Change = Callable[[pa.Table, dict[str, Any], dict[str, Any]], pa.Table | None]


def rewrite(output: Storage, change: Change, *, name: str = FILE, row_group_size: int | None = None) -> None:
    """Write the file anew, changed, with a receipt that fits it.

    `change` gets the table and the two objects of the footer, and may change these in place.
    """
    path = Path(output.url_of(name))
    table = pq.read_table(path)
    geo, made = (json.loads(table.schema.metadata[key]) for key in (b"geo", b"daskembed"))
    changed = change(table, geo, made)
    table = table if changed is None else changed
    table = table.replace_schema_metadata({"geo": json.dumps(geo), "daskembed": json.dumps(made)})
    pq.write_table(table, path, row_group_size=row_group_size)
    seal(output, name)


def seal(output: Storage, name: str = FILE, *, file: dict[str, Any] | None = None, **changes: Any) -> None:
    """Make the receipt fit the file, but for `changes`, and those of what it says of the file."""
    data = output.get(name)
    receipt = read_receipt(output, receipt_path(name[:5], "001"))
    fitting = replace(Published(name, len(data), hashlib.sha256(data).hexdigest()), **(file or {}))
    write_receipt(output, replace(receipt, files=[fitting], **changes))


def found_in(output: Storage, name: str = FILE) -> list[tuple[str, str]]:
    """Check and message of each finding, notes marked."""
    return [(finding.check, str(finding)) for finding in validate(output.url_of(name))]


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def urls(output: Storage) -> list[str]:
    return pq.read_table(output.url_of(FILE), columns=["source_url"])["source_url"].to_pylist()


# Sound files


def test_a_real_file_is_sound(output):
    assert found_in(output) == []


def test_a_file_written_anew_with_many_row_groups_is_sound(output):
    rewrite(output, lambda table, geo, made: None, row_group_size=2)
    assert pq.read_metadata(output.url_of(FILE)).num_row_groups == 4
    assert found_in(output) == []


@pytest.mark.parametrize("level", ["patch", "group"])
def test_other_levels(client, chips, tmp_path, level):
    shutil.copytree(chips, tmp_path / "chips")
    run(client, "33TUL", tmp_path, level=level)
    assert found_in(Storage(str(tmp_path / "out")), "33TUL_20190416_20190416_v001.gpq") == []


def test_zones_with_edges_of_their_own(edges):
    names = [f"{tile}_20190416_20190416_v001.gpq" for tile in EDGES]
    assert {name: found_in(edges, name) for name in names} == {name: [] for name in names}
    assert "MultiPolygon" in set(gpd.read_parquet(edges.url_of(CROSSING)).geom_type)
    geo = json.loads(pq.read_metadata(edges.url_of(CROSSING)).metadata[b"geo"])
    west, _, east, _ = geo["columns"]["geometry"]["bbox"]
    assert (179 < west < 180, -180 < east < -178) == (True, True)


def test_a_store(output, s3):
    there = Storage(f"{s3}/out")
    for entry in output.entries():
        there.put(entry.path, output.get(entry.path))
    assert found_in(there) == []
    there.put(FILE, output.get(FILE)[:-100])
    assert [check for check, _ in found_in(there)] == ["receipt", "parquet"]
    with pytest.raises(InputError, match="does not exist"):
        validate(there.url_of(FILE.replace("33TUL", "33TUM")))


def test_a_file_that_goes_while_it_is_read(output, s3, monkeypatch, capsys):
    there = Storage(f"{s3}/out")
    there.put(FILE, output.get(FILE))
    check_name = module.check_name

    def go(name):
        there.delete([FILE])
        return (yield from check_name(name))

    monkeypatch.setattr(module, "check_name", go)
    assert main(["validate", there.url_of(FILE)]) == 2
    assert capsys.readouterr().err == f"daskembed: {there.url_of(FILE)} does not exist\n"


class Refusing(BaseHTTPRequestHandler):
    """A store that lists a file and does not give it."""

    def do_HEAD(self):
        self.send_response(200)
        for name, value in (("Content-Length", "5000"), ("ETag", '"1"'), ("Last-Modified", self.date_time_string())):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.send_error(404 if "_daskembed" in self.path else 403)

    def log_message(self, *given):
        pass


def test_a_store_that_refuses_is_no_damaged_file(s3_server, monkeypatch, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        url = f"s3://refusing-{uuid.uuid4().hex}/{FILE}"
        assert main(["validate", url]) == 2
        server.shutdown()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"daskembed: {url}: access denied ")


# Files cut off or damaged


@pytest.mark.parametrize("kept", [0, 1, 3, 100, -1, -8, -1000])
def test_cut_off(output, kept):
    data = output.get(FILE)
    output.put(FILE, data[:kept])
    (_, size), (check, damage) = found_in(output)
    assert size == f"{len(data[:kept])} bytes, the receipt says {len(data)}"
    assert check == "parquet"
    assert damage.startswith("cannot be read as Parquet, it is cut off or damaged: ")


def test_no_parquet_file_at_all(output):
    output.put(FILE, b"hello, world" * 100)
    assert [check for check, _ in found_in(output)] == ["receipt", "parquet"]


def test_flipped_bits_are_found_wherever_they_are(output):
    """By the SHA-256 always, and nothing else goes wrong on the way."""
    data, rng = output.get(FILE), np.random.default_rng(0)
    for position in rng.choice(len(data), 60, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        output.put(FILE, bytes(changed))
        check, message = found_in(output)[0]
        assert check == "receipt"
        assert message == f"SHA-256 {hashlib.sha256(changed).hexdigest()}, the receipt says " + message[-64:]


# The receipt


def test_another_sha(output):
    sha = hashlib.sha256(output.get(FILE)).hexdigest()
    seal(output, file={"sha256": "0" * 64})
    assert found_in(output) == [("receipt", f"SHA-256 {sha}, the receipt says {'0' * 64}")]


def test_another_size(output):
    seal(output, file={"size": 5})
    assert found_in(output) == [("receipt", f"{len(output.get(FILE))} bytes, the receipt says 5")]


def test_another_number_of_chips_in_the_receipt(output):
    seal(output, chips=8)
    assert found_in(output) == [("receipt", "7 rows, the receipt says 8 chips")]


def test_other_settings_in_the_receipt(output):
    seal(output, settings={"level": "group"})
    message = "the footer says that it was made with other settings than the receipt says"
    assert found_in(output) == [("provenance", message)]


def test_a_receipt_of_another_file(output):
    seal(output, file={"name": "33TUL_20190416_20190416_v001.gpq"})
    path = receipt_path("33TUL", "001")
    message = f"the receipt {path} is of another file, 33TUL_20190416_20190416_v001.gpq"
    assert found_in(output) == [("receipt", message)]


def test_a_damaged_receipt(output):
    output.put(receipt_path("33TUL", "001"), b"{")
    ((check, message),) = found_in(output)
    assert check == "receipt"
    assert "33TUL_v001.json is not a receipt of daskembed" in message


def test_no_receipt_is_noted(output):
    output.delete([receipt_path("33TUL", "001")])
    expected = "no receipt _daskembed/receipts/33TUL_v001.json beside it, so that its SHA-256 could not be checked"
    assert found_in(output) == [("receipt", f"note: {expected}")]


# The name


def rename(output: Storage, name: str) -> list[tuple[str, str]]:
    """What is found under another name, but for the receipt, which is not looked for there."""
    Path(output.url_of(FILE)).rename(output.url_of(name))
    return [finding for finding in found_in(output, name) if finding[0] != "receipt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeddings.gpq", "is not of the form {MGRS}_{MINDATE}_{MAXDATE}_v{VERSION}.gpq"),
        (FILE.replace("33TUL", "33TUA"), "33TUA is not an MGRS tile: zone 33, band T has no square UA"),
        (FILE.replace("33TUL", "33IUL"), "'33IUL' is not an MGRS tile id: "),
        (FILE.replace("33TUL", "33tul"), "the tile 33tul is not in capitals"),
        (FILE.replace("20190416", "20190431"), "20190431_20220131 are not two dates YYYYMMDD"),
    ],
)
def test_bad_names(output, name, message):
    ((check, told),) = rename(output, name)
    assert check == "name"
    assert message in told


@pytest.mark.parametrize("tile", ["33TUJ", "33TXL", "34TDR", "32TQQ", "33UUP", "15TUL", "60KZF", "01KAB", "33HUE"])
def test_another_tile(output, tile):
    first, second = rename(output, FILE.replace("33TUL", tile))
    assert first == ("provenance", f"the footer says that it is of tile 33TUL, its name says {tile}")
    assert second[0] == "geometry"
    assert f"(and 6 more): the geometry is not at tile {tile}: expected within 20 km of easting " in second[1]


@pytest.mark.parametrize("all_of_them", [False, True])
def test_chips_of_an_image_larger_than_its_tile(output, all_of_them):
    """They are told of; an image of which nothing is at the tile is another's."""

    def change(table, geo, made):
        shapes = shapely.from_wkb(table["geometry"].to_pylist())
        for row in range(len(shapes)) if all_of_them else [6]:
            shapes[row] = shapely.transform(shapes[row], lambda points: points + np.array([5, 0]))
        geo["columns"]["geometry"]["bbox"] = [10, 40, 20, 50]
        names = [f"/data/33TUL_20190416.tif#2019-04-16/{number:04d}" for number in range(1, len(shapes) + 1)]
        moved = with_column(table, "geometry", pa.array(shapely.to_wkb(shapes), pa.binary()))
        return with_column(moved, "source_url", pa.array(names))

    rewrite(output, change)
    (found,) = [one for one in validate(output.url_of(FILE)) if one.check == "geometry"]
    assert found.severity == ("problem" if all_of_them else "note")
    assert "the geometry is not at tile 33TUL: expected within 20 km of easting" in found.message


def test_other_dates(output):
    first, *ends = rename(output, "33TUL_20190417_20230131_v001.gpq")
    what = "the date is outside 2019-04-17 to 2023-01-31, which the name says"
    assert first[0] == "dates"
    assert first[1].endswith(f"claytile_33TUL_20190416_v02_0001.tif (and 3 more): {what}")
    assert ends == [
        ("dates", "no row is of 2019-04-17, the first date of its name"),
        ("dates", "no row is of 2023-01-31, the last date of its name"),
    ]


def test_a_last_date_that_is_too_early(output):
    late, end = rename(output, "33TUL_20190416_20220130_v001.gpq")
    assert late[1].endswith("(and 2 more): the date is outside 2019-04-16 to 2022-01-30, which the name says")
    assert end == ("dates", "no row is of 2022-01-30, the last date of its name")


def test_dates_the_wrong_way_round(output):
    found = rename(output, "33TUL_20220131_20190416_v001.gpq")
    name = "the name 33TUL_20220131_20190416_v001.gpq"
    assert found[0] == ("name", f"{name}: the first date 2022-01-31 is after the last, 2019-04-16")


@pytest.mark.parametrize("how", ["quarantined", "rejected"])
def test_a_date_whose_chips_are_all_set_aside_is_noted(output, how):
    """Earlier versions put it into the name."""
    path = "_daskembed/receipts/33TUL_v001.json"
    held = json.loads(output.get(path))
    name = FILE.replace("20220131", "20220228")
    held[how]["/chips/33TUL/2022-02-28/claytile_33TUL_20220228_v02_0001.tif"] = "because"
    output.put(path, json.dumps(held).replace(FILE, name).encode())
    message = f"note: no row is of 2022-02-28, the last date of its name; its chips are {how}"
    assert rename(output, name) == [("dates", message)]


# The footer


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "0.4.0", "GeoParquet version 0.4.0, expected 1.0.0"),
        ("version", None, "GeoParquet version None, expected 1.0.0"),
        ("version", "1.1.0", "note: GeoParquet version 1.1.0, expected 1.0.0"),
        ("primary_column", "where", "the footer's primary column is where, expected geometry"),
        ("columns", {}, "the footer's `geo` does not describe a column geometry"),
        ("columns", 3, "the footer's `geo` does not describe a column geometry"),
    ],
)
def test_geo_footer(output, key, value, message):
    rewrite(output, lambda table, geo, made: geo.update({key: value}))
    assert found_in(output) == [("geo", message)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoding", "WKT", "the footer's encoding of the geometries is WKT, expected WKB"),
        ("crs", "EPSG:32633", "the footer's CRS is WGS 84 / UTM zone 33N (EPSG:32633), expected OGC:CRS84"),
        ("crs", None, "the footer's CRS is none that PROJ knows, expected OGC:CRS84"),
        ("crs", {"type": "nonsense"}, "the footer's CRS is none that PROJ knows, expected OGC:CRS84"),
        ("bbox", [1, 2, 3], "the footer's bbox is [1, 2, 3], expected [west, south, east, north]"),
        ("bbox", None, "the footer's bbox is None, expected [west, south, east, north]"),
        ("geometry_types", ["Point"], "the footer's geometry types are ['Point'], expected Polygon and MultiPolygon"),
        ("geometry_types", 7, "the footer's geometry types are 7, expected Polygon and MultiPolygon at most"),
    ],
)
def test_geometry_column_of_the_footer(output, key, value, message):
    rewrite(output, lambda table, geo, made: geo["columns"]["geometry"].update({key: value}))
    (found,) = found_in(output)
    assert found[0] == "geo"
    assert found[1].startswith(message)


def test_crs_may_be_left_out(output):
    rewrite(output, lambda table, geo, made: geo["columns"]["geometry"].pop("crs") and None)
    assert found_in(output) == []


@pytest.mark.parametrize("edge", range(4))
def test_a_bbox_that_does_not_hold_all(output, edge):
    def change(table, geo, made):
        geo["columns"]["geometry"]["bbox"][edge] += 0.01 if edge < 2 else -0.01

    rewrite(output, change)
    ((check, message),) = found_in(output)
    assert check == "geo"
    assert "the geometry is not inside the footer's bbox [" in message


@pytest.mark.parametrize(("key", "check"), [(b"geo", "geo"), (b"daskembed", "provenance")])
def test_footers_that_are_no_json(output, key, check):
    table = pq.read_table(output.url_of(FILE))
    for value in (b"{", b"[1]", b"\xff"):
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: value}), output.url_of(FILE))
        seal(output)
        assert found_in(output) == [(check, f"`{key.decode()}` in the footer is not a JSON object")]


def test_no_geo_footer(output):
    table = pq.read_table(output.url_of(FILE))
    made = {b"daskembed": table.schema.metadata[b"daskembed"]}
    pq.write_table(table.replace_schema_metadata(made), output.url_of(FILE))
    seal(output)
    assert found_in(output) == [("geo", "no `geo` in the footer: not a GeoParquet file")]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tile", "33TUM", "the footer says that it is of tile 33TUM, its name says 33TUL"),
        ("chips", 6, "7 rows, the footer says 6 chips"),
        ("shape", [16, 16], "the embeddings have the shape [256], the footer says [16, 16]"),
        ("shape", "256", "the footer's shape 256 is no list of lengths"),
        ("shape", [], "the footer's shape [] is no list of lengths"),
        ("identity", {}, "the footer says that it was made with other settings than the receipt says"),
    ],
)
def test_provenance(output, key, value, message):
    rewrite(output, lambda table, geo, made: made.update({key: value}))
    assert [told for _, told in found_in(output)] == [message]


def test_provenance_that_lacks_something(output):
    rewrite(output, lambda table, geo, made: [made.pop(key) for key in ("encoder", "shape")] and None)
    assert found_in(output) == [("provenance", "`daskembed` in the footer lacks encoder, shape")]


# Columns


@pytest.mark.parametrize("name", ["source_url", "date", "embeddings", "geometry"])
def test_a_column_is_missing(output, name):
    rewrite(output, lambda table, geo, made: table.drop_columns([name]))
    assert found_in(output) == [("schema", f"0 columns {name}, expected 1")]


def test_a_column_too_many(output):
    rewrite(output, lambda table, geo, made: table.append_column("index", pa.array(range(7))))
    expected = "columns beside source_url, date, embeddings, geometry: index (int64)"
    assert found_in(output) == [("schema", expected)]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("source_url", pa.binary(), "string"), ("date", pa.timestamp("ms"), "date32"), ("geometry", None, "binary")],
)
def test_columns_of_other_types(output, name, kind, expected):
    def change(table, geo, made):
        values = table[name].cast(kind) if kind else pa.array(["POINT (12 45)"] * 7)
        return with_column(table, name, values)

    rewrite(output, change)
    assert found_in(output) == [("schema", f"column {name} is {kind or 'string'}, expected {expected}")]


def test_vectors_of_other_types(output):
    def lists(table, geo, made):
        storage = table["embeddings"].combine_chunks().storage
        return with_column(table, "embeddings", storage.cast(pa.list_(pa.float32())))

    def doubles(table, geo, made):
        kind = pa.fixed_shape_tensor(pa.float64(), (256,))
        storage = pa.array(np.zeros((7, 256)).tolist(), kind.storage_type)
        return with_column(table, "embeddings", pa.ExtensionArray.from_storage(kind, storage))

    rewrite(output, lists)
    assert found_in(output)[0][1].endswith("expected a fixed-shape tensor of float32")
    rewrite(output, doubles)
    assert found_in(output) == [("schema", "column embeddings is of double, expected float32")]


# Rows


def test_no_rows(output):
    rewrite(output, lambda table, geo, made: made.update(chips=0) or table.slice(0, 0))
    seal(output, chips=0)
    assert found_in(output) == [("schema", "no rows")]


def test_a_row_is_missing(output):
    rewrite(output, lambda table, geo, made: table.slice(0, 6))
    assert found_in(output) == [
        ("provenance", "6 rows, the footer says 7 chips"),
        ("receipt", "6 rows, the receipt says 7 chips"),
    ]


def test_a_row_twice(output):
    first = urls(output)[0]

    def change(table, geo, made):
        made["chips"] = 8
        return pa.concat_tables([table.slice(0, 1), table])

    rewrite(output, change, row_group_size=1)
    seal(output, chips=8)
    assert found_in(output) == [("duplicates", f"2 rows have the source_url {first}")]


def test_rows_out_of_order(output):
    names = urls(output)
    rewrite(output, lambda table, geo, made: table.take([0, 1, 3, 2, 4, 5, 6]), row_group_size=3)
    message = f"the rows are not in the order of source_url: {names[2]} comes after {names[3]}"
    assert found_in(output) == [("order", message)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row_group_size", [1, 2, 7])
def test_values_that_are_not_finite(output, value, row_group_size):
    names = urls(output)

    def change(table, geo, made):
        kind = table.schema.field("embeddings").type
        values = np.stack(table["embeddings"].combine_chunks().storage.to_numpy(zero_copy_only=False))
        values[3, 255] = values[5, 0] = values[5, 1] = value
        return with_column(
            table,
            "embeddings",
            pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values.ravel(), 256)),
        )

    rewrite(output, change, row_group_size=row_group_size)
    assert found_in(output) == [("vectors", f"row {names[3]} (and 1 more): NaN or infinity in the embedding")]


def blank(table: pa.Table, name: str, row: int) -> pa.Table:
    """The table without one value."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        keep = [None if number == row else one for number, one in enumerate(column.storage.to_pylist())]
        return with_column(
            table, name, pa.ExtensionArray.from_storage(column.type, pa.array(keep, column.type.storage_type))
        )
    values = [None if number == row else one for number, one in enumerate(column.to_pylist())]
    return with_column(table, name, pa.array(values, column.type))


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("source_url", "schema", "row 2, without source_url: no source_url"),
        ("date", "dates", "row {url}: no date"),
        ("embeddings", "vectors", "row {url}: no embedding"),
        ("geometry", "geometry", "row {url}: no geometry, or none in WKB"),
    ],
)
def test_values_that_are_missing(output, name, check, message):
    url = urls(output)[2]
    rewrite(output, lambda table, geo, made: blank(table, name, 2))
    assert found_in(output) == [(check, message.format(url=url))]


def replace_shape(output: Storage, row: int, wkb: bytes) -> list[tuple[str, str]]:
    def change(table, geo, made):
        shapes = table["geometry"].to_pylist()
        shapes[row] = wkb
        return with_column(table, "geometry", pa.array(shapes, pa.binary()))

    url = urls(output)[row]
    rewrite(output, change)
    return [(check, message.replace(url, "URL")) for check, message in found_in(output)]


def test_bad_geometries(output):
    whole = gpd.read_parquet(output.url_of(FILE)).geometry
    west, south, east, north = whole.iloc[4].bounds

    def found(shape):
        return replace_shape(output, 4, shape if isinstance(shape, bytes) else shapely.to_wkb(shape))

    bow = shapely.Polygon([(west, south), (east, north), (east, south), (west, north)])
    assert found(bow) == [("geometry", "row URL: the geometry is not valid")]
    assert found(shapely.Point(west, south)) == [("geometry", "row URL: the geometry is a Point, expected a polygon")]
    assert found(shapely.Polygon()) == [("geometry", "row URL: the geometry is empty")]
    assert found(b"hello") == [("geometry", "row URL: no geometry, or none in WKB")]
    (kinds,) = found(shapely.MultiPolygon([whole.iloc[4]]))
    assert kinds == ("geo", "row URL: the geometry is a MultiPolygon, which the footer's geometry types lack")
    swapped = shapely.transform(whole.iloc[4], lambda points: points[:, ::-1])
    bbox, place = found(swapped)
    assert bbox[1].startswith("row URL: the geometry is not inside the footer's bbox [")
    assert place[1].startswith("row URL: the geometry is not at tile 33TUL: expected within 20 km of easting 300000 to")


def test_a_polygon_across_the_antimeridian_that_spans_the_globe(edges):
    def change(table, geo, made):
        shapes = shapely.from_wkb(table["geometry"].to_numpy())
        (crossing,) = np.flatnonzero(shapely.get_type_id(shapes) == 6)
        bounds = np.array([part.bounds for part in shapes[crossing].geoms])
        west, east = bounds[bounds[:, 0] > 0][0], bounds[bounds[:, 0] < 0][0]
        shapes[crossing] = shapely.box(east[2], west[1], west[0], west[3])
        geo["columns"]["geometry"]["bbox"][::2] = [-180.0, 180.0]
        return with_column(table, "geometry", pa.array(shapely.to_wkb(shapes), pa.binary()))

    rewrite(edges, change, name=CROSSING)
    ((check, message),) = found_in(edges, CROSSING)
    assert check == "geometry"
    assert message.endswith("the geometry spans the globe: one that crosses the antimeridian is a MultiPolygon")

    def narrow(table, geo, made):
        geo["columns"]["geometry"]["bbox"][::2] = [179.0, -179.0]

    rewrite(edges, narrow, name=CROSSING)
    assert [check for check, _ in found_in(edges, CROSSING)] == ["geometry", "geo"]


def test_a_bbox_across_the_antimeridian(edges):
    def change(west: float, east: float) -> Change:
        return lambda table, geo, made: geo["columns"]["geometry"].update(
            bbox=[west, *geo["columns"]["geometry"]["bbox"][1:2], east, *geo["columns"]["geometry"]["bbox"][3:]]
        )

    rewrite(edges, change(179.0, -179.0), name=CROSSING)
    assert found_in(edges, CROSSING) == []
    rewrite(edges, change(179.99, -179.0), name=CROSSING)
    assert [check for check, _ in found_in(edges, CROSSING)] == ["geo"]


# Files of the reference implementation


@pytest.fixture
def foreign(output) -> Storage:
    """The file as the reference implementation writes it: another schema, one row group, no receipt."""
    frame = gpd.read_parquet(output.url_of(FILE))
    frame = frame.iloc[[1, 0, *range(2, 7)]].reset_index(drop=True)
    frame.insert(0, "index", np.arange(7))
    frame.to_parquet(output.url_of(FILE), compression="zstd", schema_version="1.0.0")
    output.delete([receipt_path("33TUL", "001")])
    return output


def test_the_reference_implementations_files_get_notes(foreign):
    assert pq.read_schema(foreign.url_of(FILE)).field("embeddings").type == pa.list_(pa.float32())
    found = validate(foreign.url_of(FILE))
    assert [(finding.check, finding.severity) for finding in found] == [
        ("receipt", "note"),
        ("provenance", "note"),
        ("schema", "note"),
        ("schema", "note"),
        ("order", "note"),
    ]
    assert "nothing says what made the embeddings" in found[1].message
    assert found[3].message == "columns beside source_url, date, embeddings, geometry: index (int64)"


def test_their_vectors_are_of_one_length_and_finite(foreign):
    table = pq.read_table(foreign.url_of(FILE))
    lists = table["embeddings"].to_pylist()
    lists[2], lists[4][7] = lists[2][:255], float("nan")
    table = with_column(table, "embeddings", pa.array(lists, pa.list_(pa.float32())))
    pq.write_table(table, foreign.url_of(FILE))
    names = urls(foreign)
    assert [finding.message for finding in validate(foreign.url_of(FILE)) if finding.severity == "problem"] == [
        f"row {names[2]}: the embedding has not 256 values, as the first has",
        f"row {names[4]}: NaN or infinity in the embedding",
    ]


# Size


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_large_row_group_is_streamed(output, tmp_path, s3):
    """190 MB of vectors in one row group, as others write them, take a fraction of that in memory."""
    source = pq.read_table(output.url_of(FILE))
    values = np.random.default_rng(0).standard_normal((40, 6 * 16 * 16 * 768), np.float32)
    table = pa.table(
        {
            "source_url": [f"s3://chips/claytile_33TUL_20190416_v02_{number:04d}.tif" for number in range(40)],
            "date": pa.array([date(2019, 4, 16)] * 40, pa.date32()),
            "embeddings": pa.ListArray.from_arrays(
                np.arange(41, dtype=np.int32) * values.shape[1], pa.array(values.ravel())
            ),
            "geometry": pa.array(source["geometry"].to_pylist()[:1] * 40, pa.binary()),
        },
        metadata={b"geo": source.schema.metadata[b"geo"]},
    )
    path = tmp_path / "33TUL_20190416_20190416_v002.gpq"
    pq.write_table(table, path, row_group_size=40, compression="zstd", use_dictionary=False)
    del values, table
    url = f"{s3}/{path.name}"
    Storage(s3).put(path.name, path.read_bytes())
    # From a store, as the pages of a mapped file would count too; the small file first, for what is only loaded then.
    code = (
        "import re, sys; from daskembed.output.validate.check import validate\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "validate(sys.argv[1])\n"
        "before = peak()\n"
        "print([one for one in validate(sys.argv[2]) if one.severity == 'problem'])\n"
        "print(peak() - before)"
    )
    small = output.url_of(FILE)
    done = subprocess.run([sys.executable, "-c", code, small, url], capture_output=True, text=True, check=True)
    problems, most = done.stdout.splitlines()
    assert problems == "[]"
    assert int(most) < 250e6


# The command


def test_the_command(output, capsys):
    good, bad = output.url_of(FILE), output.url_of("33TUM_20190416_20220131_v001.gpq")
    assert main(["validate", good]) == 0
    assert capsys.readouterr().out == f"{good}: ok\n"
    output.put(Path(bad).name, b"")
    assert main(["validate", output.url]) == 3
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"{good}: ok"
    assert [line.partition(": ")[0] for line in others] == [bad, bad]
    assert others[0].startswith(f"{bad}: note: no receipt ")
    assert others[1].startswith(f"{bad}: cannot be read as Parquet")


def test_notes_do_no_harm(foreign, capsys):
    url = foreign.url_of(FILE)
    assert main(["validate", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{url}: ok"
    assert len(lines) == 6
    assert all(line.startswith(f"{url}: note: ") for line in lines[1:])


def test_nothing_to_look_at(tmp_path, capsys, s3):
    for url in (str(tmp_path), str(tmp_path / "x.gpq"), f"{s3}/out", f"{s3}/x.gpq", str(tmp_path / "nowhere")):
        assert main(["validate", url]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("daskembed: ")
        assert url in captured.err
    assert f"no file and no folder {url}\n" in captured.err
    (tmp_path / "embeddings").mkdir()
    assert main(["validate", f"{tmp_path}/embedings"]) == 2
    meant = f"daskembed: no file and no folder {tmp_path}/embedings; did you mean {tmp_path}/embeddings?\n"
    assert capsys.readouterr().err == meant


def test_a_file_that_is_missing_among_others_is_a_problem(output, capsys):
    missing = output.url_of("33TUM_20190416_20220131_v001.gpq")
    assert main(["validate", "--json", output.url_of(FILE), missing]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "files": [{"file": output.url_of(FILE), "ok": True, "findings": []}],
        "not_looked_at": [{"argument": missing, "reason": f"{missing} does not exist"}],
    }
    assert captured.err == f"daskembed: {missing} does not exist\n"


def test_json(output, capsys):
    seal(output, chips=8)
    assert main(["validate", "--json", output.url]) == 3
    found = json.loads(capsys.readouterr().out)
    finding = {"check": "receipt", "message": "7 rows, the receipt says 8 chips", "severity": "problem"}
    assert found["files"] == [{"file": output.url_of(FILE), "ok": False, "findings": [finding]}]
    assert validate(output.url_of(FILE)) == [Finding(**finding)]


def test_relative_paths(output, monkeypatch):
    monkeypatch.chdir(output.url)
    assert validate(FILE) == []
    assert files_of(".") == [output.url_of(FILE)]
    monkeypatch.chdir("_daskembed")
    assert validate(f"../{FILE}") == []


def test_a_folder_is_no_file(output, tmp_path):
    with pytest.raises(InputError, match=r"is a folder: expected a file \*\.gpq"):
        validate(str(tmp_path))


@pytest.mark.parametrize("word", ["status", "validate"])
def test_help_is_quick(word):
    code = (
        "import sys; from daskembed.cli.main import main\n"
        f"try: main(['{word}', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'dask', 'pyarrow', 'obstore', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stdout.endswith("[]\n")
