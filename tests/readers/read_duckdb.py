"""DuckDB with its spatial extension from a wheel: `python tests/readers/read_duckdb.py`.

The wheel of the extension is of one version of DuckDB, older than that of the tests, hence an environment of its own.
Without a wheel, `INSTALL spatial` fetches it from DuckDB's server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import environment

environment.enter("duckdb", "duckdb-extension-spatial==1.5.5", "numpy")

import duckdb
import duckdb_extension_spatial
import known
import numpy as np

wheel = Path(duckdb_extension_spatial.__file__).parent / "extensions" / f"v{duckdb.__version__}"
duckdb.execute(f"LOAD '{wheel / 'spatial.duckdb_extension'}'")
folder = known.given()
BOX = "ST_XMin(geometry), ST_YMin(geometry), ST_XMax(geometry), ST_YMax(geometry)"


def read(name: str, where: str = "true") -> Iterator[known.Row]:
    """The rows in the file's own type of values, as the query casts them."""
    dtype = known.rows(name)[0].vector.dtype
    query = f"SELECT source_url, date, embeddings, {BOX} FROM read_parquet('{known.path(name, folder)}') WHERE {where}"
    for url, day, vector, *box in duckdb.sql(query).fetchall():
        yield known.Row(url, day, np.array(vector, dtype), tuple(box))


for name in ("mean", "patch", "windows"):
    known.check(read(name), known.rows(name))
    first, *others = known.rows(name)
    west, south, east, north = first.box
    inside = f"ST_Within(ST_Centroid(geometry), ST_MakeEnvelope({west}, {south}, {east}, {north}))"
    known.check(read(name, inside), [first])
    known.check(read(name, f"NOT {inside}"), others)
    print(f"duckdb {duckdb.__version__} with spatial reads {name}, and of a place only its row")

first, second = known.rows("mean")
query = "SELECT source_url FROM read_parquet(?) ORDER BY list_cosine_similarity(embeddings, ?::FLOAT[]) DESC"
found = [url for (url,) in duckdb.execute(query, [str(known.path("mean", folder)), second.vector.tolist()]).fetchall()]
assert found == [second.source_url, first.source_url]
print("duckdb finds the nearest vector")

near = known.run_block("DuckDB")["near"]
assert [(url, vector) for url, vector in near] == [(row.source_url, row.vector.tolist()) for row in (first, second)]
print("what docs/reading.md says of spatial runs")
