"""Files of catalogues' images that are gone, damaged, replaced, refused, or come from servers that misbehave."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from web import Web

from daskembed.errors import ChipError, StorageDeniedError, StorageError
from daskembed.geo.chips import CHIP, ChipGrid
from daskembed.sensors.bands import KINDS
from daskembed.sources.cutting import SceneChip
from daskembed.sources.rules import Rules
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Scene
from daskembed.sources.stac import blocks
from daskembed.sources.stac.images import look
from daskembed.sources.stac.mosaic import Mosaic, Part
from daskembed.storage import tokens

PIXELS = np.random.default_rng(0).integers(1, 9000, (CHIP, 2 * CHIP), np.uint16)
SIGNED = {"sign": "planetary-computer"}
KEEP = Rules(keep_all=True).or_else(zeros=False, nan=False, max_cloud=2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("files") / "a.tif"
    profile: dict[str, Any] = {"driver": "COG", "blocksize": 256, "compress": "deflate", "overviews": "none"}
    profile |= {"width": 2 * CHIP, "height": CHIP, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=from_origin(300_000, 5_100_000, 10, 10), **profile) as file:
        file.write(PIXELS, 1)
    return path.read_bytes()


@pytest.fixture
def web(data: bytes) -> Iterator[Web]:
    with Web({"one/box/B02.tif": data, "one/box/B03.tif": data}) as server:
        yield server


def scene_of(web: Web, access: dict[str, str] | None = None) -> Scene:
    layers = []
    for band in ("B02", "B03"):
        image = look(f"{web.url}/one/box/{band}.tif", band, access or {})
        assert image.failure is None
        part = Part(image, item="S2_X")
        scale = Scale(numbers=KINDS["sentinel-2"])
        layers.append(Mosaic(band, (part,), 32633, 300_000, 5_100_000, 10, (CHIP, 2 * CHIP), scale))
    return Scene(
        url=f"{web.url}#2024-05-01",
        date=date(2024, 5, 1),
        fingerprint="",
        bands=("B02", "B03"),
        layers=tuple(layers),
        classes=None,
        epsg=32633,
        west=300_000,
        north=5_100_000,
        step=10,
        grid=ChipGrid((CHIP, 2 * CHIP)),
        block=(CHIP, CHIP),
        pixel_bytes=4,
    )


def read(scene: Scene, number: int) -> np.ndarray:
    return SceneChip(scene, number, KEEP).read()


def check(scene: Scene, *numbers: int) -> None:
    for number in numbers:
        columns = slice((number - 1) * CHIP, number * CHIP)
        np.testing.assert_array_equal(read(scene, number), np.stack([PIXELS[:, columns]] * 2))


def test_a_file_that_vanishes_is_named_by_the_chips_that_need_it(web: Web, data: bytes) -> None:
    scene = scene_of(web)
    check(scene, 1)
    del web.files["one/box/B03.tif"]
    with pytest.raises(ChipError, match="B03: the asset 'B03' of S2_X is not there"):
        read(scene, 2)
    check(scene, 1)
    web.files["one/box/B03.tif"] = data
    check(scene, 2)


def test_a_damaged_block_costs_its_own_chips(web: Web, data: bytes) -> None:
    # The last blocks of the first row are those of the second chip.
    with rasterio.MemoryFile(data) as memory, memory.open() as file:
        start, size = (int(file.get_tag_item(f"BLOCK_{what}_3_0", "TIFF", 1)) for what in ("OFFSET", "SIZE"))
    web.files["one/box/B02.tif"] = data[:start] + b"\xff" * size + data[start + size :]
    scene = scene_of(web)
    with pytest.raises(ChipError, match="B02: the asset 'B02' of S2_X cannot be decoded, it is damaged"):
        read(scene, 2)
    check(scene, 1)


def test_a_file_that_is_replaced_is_not_mixed_with_what_it_was(web: Web, data: bytes) -> None:
    scene = scene_of(web)
    check(scene, 1)
    web.files["one/box/B02.tif"] = data[:-1] + b"\0\0"
    with pytest.raises(ChipError, match="B02: the asset 'B02' of S2_X was replaced since its header was read"):
        read(scene, 2)


def test_an_answer_that_breaks_off_is_asked_for_again(web: Web, data: bytes) -> None:
    scene = scene_of(web)
    left = [3]

    def cut(handler: Any) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        start, end = (int(number) for number in handler.headers["Range"].removeprefix("bytes=").split("-"))
        told = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "ETag": f'"{hash(data):x}"'}
        handler.answer(206, data[start : end + 1], told, cut=True)
        return True

    web.fault = cut
    check(scene, 1, 2)
    assert left == [0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_waited_for(status: int, web: Web) -> None:
    scene = scene_of(web)
    left = [2]

    def refuse(handler: Any) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        handler.answer(status, b"later")
        return True

    web.fault = refuse
    check(scene, 1, 2)
    assert left == [0]


def test_a_server_that_knows_no_ranges_is_no_fault_of_the_files(web: Web, data: bytes) -> None:
    web.fault = lambda handler: handler.answer(200, data) is None
    with pytest.raises(StorageError, match=r"B02\.tif"):
        look(f"{web.url}/one/box/B02.tif", "B02", {})


def test_a_server_that_refuses_stops_all(web: Web) -> None:
    scene = scene_of(web)
    web.fault = lambda handler: handler.answer(403, b"no") is None
    with pytest.raises(StorageDeniedError, match="this server wants credentials"):
        read(scene, 1)


@pytest.fixture
def signed(web: Web, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A store that takes the newest token, and no more than `lasting` requests with it."""
    state: dict[str, Any] = {"token": "", "given": 0, "used": 0, "lasting": 10**9, "refusals": []}

    def answer(handler: Any) -> bool:
        path, _, query = handler.path.partition("?")
        if path == "/token/one/box":
            if state["refusals"]:
                handler.answer(state["refusals"].pop(0), b"too many requests")
                return True
            state["given"] += 1
            state["used"], state["token"] = 0, f"sig=HIDDEN{state['given']}"
            until = datetime.now(UTC) + timedelta(minutes=45)
            document = {"token": state["token"], "msft:expiry": until.isoformat()}
            handler.answer(200, json.dumps(document).encode())
            return True
        state["used"] += 1
        if query != state["token"] or state["used"] > state["lasting"]:
            handler.answer(403, b"<Error><Code>AuthenticationFailed</Code></Error>")
            return True
        return False

    web.fault = answer
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{web.url}/token")
    monkeypatch.setattr(tokens, "_tokens", {})
    blocks.forget()
    yield state
    blocks.forget()


def test_a_token_that_expires_in_the_middle_is_renewed_and_nobody_notices(
    web: Web, signed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    scene = scene_of(web, SIGNED)
    signed["lasting"] = 6
    check(scene, 1, 2)
    assert signed["given"] > 1
    assert not caplog.records or "HIDDEN" not in caplog.text
    assert b"HIDDEN" not in pickle.dumps(scene)


def test_a_token_service_that_is_asked_too_often(web: Web, signed: dict[str, Any]) -> None:
    signed["refusals"] = [429, 429]
    check(scene_of(web, SIGNED), 1, 2)
    assert signed["given"] == 1


@pytest.mark.parametrize("refuse", [lambda state: state.update(lasting=0), lambda state: state["refusals"].append(403)])
def test_what_is_refused_for_good_stops_all_and_hides_what_it_was(
    web: Web, signed: dict[str, Any], refuse: Callable[[dict[str, Any]], Any]
) -> None:
    refuse(signed)
    with pytest.raises(StorageDeniedError) as refused:
        look(f"{web.url}/one/box/B02.tif", "B02", SIGNED)
    assert "HIDDEN" not in str(refused.value)
    assert "access denied" in str(refused.value)
