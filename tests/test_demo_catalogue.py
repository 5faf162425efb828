"""The demo of catalogues, whole: a STAC API, an object store and a local cluster on this machine."""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from pathlib import Path

import geopandas as gpd
import pytest

from daskembed.cli import demo_catalogue
from daskembed.cli.demo import as_typed
from daskembed.cli.main import main
from daskembed.cli.parser import make_parser
from daskembed.testing import loopback


def taken_out(output: Path) -> dict[str | None, set[int]]:
    """What a receipt says of the 1000, by baseline, of Sentinel-2."""
    receipt = json.loads(next((output / "_daskembed/receipts").glob("*.json")).read_text())
    items = [item for scene in receipt["scenes"] for item in scene["items"] if item["baseline"]]
    return {item["baseline"]: set(item["offsets"].values()) for item in items}


def test_all_that_it_types_works_and_both_servers_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_catalogue, "SHAPE", (516, 516))
    asked = list[loopback.Request]()
    answer = loopback.FileServer._answer

    def noted(store: loopback.FileServer, handler: loopback._Handler) -> None:
        answer(store, handler)
        asked.append(store.requests[-1])

    monkeypatch.setattr(loopback.FileServer, "_answer", noted)
    folder = tmp_path / "demo"
    assert main(["demo", "--source", "stac", str(folder)]) == 0
    told = capsys.readouterr().out
    typed = [shlex.split(line)[2:] for line in told.splitlines() if line.startswith("$ daskembed ")]
    assert [words[0] for words in typed] == ["scenes", "run", "status", "validate"]
    assert "S2A_MSIL2A_20240602T102031_R122_T33TUL_20240602T152031, which is newer" in told
    assert "is cloudy in 71.5 %" in told
    assert "0 chips quarantined" in told or "quarantined  0" in told
    offered = list[list[str]]()
    for line in told.partition("Both servers are closed")[2].replace("\\\n", " ").splitlines():
        if line.startswith(f"  {as_typed('daskembed')} "):
            offered.append(shlex.split(line)[1:])
            make_parser().parse_args(offered[-1])
    assert told.count("--encoder clay-v0") == 5

    # In a folder of its own: the demo of chips makes files of the same names.
    file = next((folder / "scene-embeddings").glob("*.gpq"))
    assert not (folder / "embeddings").exists()
    frame = gpd.read_parquet(file)
    assert sorted({str(day) for day in frame["date"]}) == ["2021-06-03", "2024-06-02"]
    assert taken_out(folder / "scene-embeddings") == {"03.00": {0}, "05.10": {1000}}
    # Of what is left out no file was ever asked for: there is none.
    assert {request.method for request in asked} == {"GET"}
    shown = json.loads((folder / "scenes/items.json").read_text())["features"]
    store = next(iter(shown[0]["assets"].values()))["href"].partition("/sentinel2-l2/")[0]
    for url in (store, (folder / "scenes/catalogue.yaml").read_text().split()[1]):
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(url)

    # What is left needs neither, and the 1000 is taken out as it was.
    asked.clear()
    assert main(offered[0]) == 0
    assert taken_out(folder / "scene-patches") == {"03.00": {0}, "05.10": {1000}}
    assert sorted(set(gpd.read_parquet(next((folder / "scene-patches").glob("*.gpq")))["date"])) == sorted(
        set(frame["date"])
    )
    assert asked == []
    capsys.readouterr()

    # Typed again it goes on where it was: the store is where the items of the first time say.
    before = file.read_bytes()
    assert main(["demo", "--source", "stac", str(folder)]) == 0
    assert "0 encoded now" in capsys.readouterr().out
    assert file.read_bytes() == before
    assert asked == []
