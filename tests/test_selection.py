from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from daskembed.errors import InputError
from daskembed.geo.mgrs import TILE, tile_corner
from daskembed.sensors.bands import CLAY_V0
from daskembed.sensors.table import get_sensor
from daskembed.sources.choice import Choice
from daskembed.sources.reading import Reading
from daskembed.sources.stac.catalogue import find_catalogue, packaged
from daskembed.sources.stac.items import Asset, Item
from daskembed.sources.stac.selection import select

HERE = "33TUL"
PC = packaged()["planetary-computer"]
EPSG, WEST, NORTH = tile_corner(HERE)
TO_DEGREES = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
MAY = (date(2024, 5, 1), date(2024, 5, 30))
OPTICAL_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "SCL")


def footprint(left: float, right: float, top: float = 0.0, bottom: float = 1.0) -> shapely.Polygon:
    """A part of the tile, in shares of its sides from the north-west."""
    return shapely.Polygon(
        TO_DEGREES.transform(WEST + x * TILE, NORTH - y * TILE)
        for x, y in ((left, top), (left, bottom), (right, bottom), (right, top))
    )


def item(collection, name, time, shape, assets, **told):
    return Item(
        collection=collection,
        id=name,
        url=f"https://stac.example/{name}",
        time=datetime.fromisoformat(time).replace(tzinfo=UTC),
        bbox=shape.bounds,
        footprint=shape.wkt,
        assets={key: Asset(f"https://files.example/{name}/{key}.tif") for key in assets},
        **told,
    )


def optical(name, time, cloud=1.0, part=(0, 1), *, baseline="05.10", platform="sentinel-2a", processed="", **told):
    when = datetime.fromisoformat(time)
    shape = footprint(*part)
    told = {
        "nodata": round(100 * (1 - (min(part[1], 1) - max(part[0], 0))), 6),
        "tile": HERE,
        "acquisition": f"{platform}_{when:%Y%m%dT%H%M%S}",
    } | told
    return item(
        *("sentinel-2-l2a", name, time, shape, OPTICAL_BANDS),
        **({"cloud": cloud, "baseline": baseline, "platform": platform, "processed": processed or None} | told),
    )


def radar(name, time, part=(-0.5, 1.5), orbit="descending", bands=("vv", "vh"), **told):
    return item(
        *("sentinel-1-rtc", name, time, footprint(*part, -0.1, 1.1), bands),
        **({"platform": "sentinel-1a", "orbit_state": orbit, "acquisition": f"sentinel-1a_{time}"} | told),
    )


def height(name, west, south):
    return item("cop-dem-glo-30", name, "2021-04-22", shapely.box(west, south, west + 1, south + 1), ("data",))


HEIGHTS = [height(f"N{south}_E0{west}", west, south) for south in (45, 46) for west in (12, 13)]


def finder(items, asked=None):
    """What a catalogue of these items would find; `asked` takes what it is asked for."""

    def find(catalogue, images, bounds, start, end):
        if asked is not None:
            asked.append((images.collection, bounds, start, end))
        return [
            one
            for one in items
            if one.collection == images.collection
            and (start is None or start <= one.time.date())
            and (end is None or one.time.date() <= end)
        ]

    return find


def chosen(items, *, sensor="sentinel-2-l2a", dates=MAY, **choice):
    sensor = CLAY_V0 if sensor == "clay-v0" else get_sensor(sensor)
    return select(HERE, PC, Reading(sensor=sensor, dates=dates, choice=Choice(**choice)), finder(items))


def names(selection, role="optical"):
    return [[used.item.id for used in scene.items if used.role == role] for scene in selection.scenes]


def reasons(selection):
    return {left.item.id: left.reason for left in selection.left_out}


def test_the_least_cloudy_date_is_used():
    items = [optical(f"d{day}", f"2024-05-0{day}T10:00:00", cloud) for day, cloud in ((2, 30.0), (4, 3.0), (6, 9.0))]
    found = chosen(items)
    assert names(found) == [["d4"]]
    assert found.scenes[0].day == date(2024, 5, 4)
    assert found.scenes[0].items[0].share == pytest.approx(1)
    assert reasons(found) == {
        "d2": "is fit but not needed: the one that is used ranks better (this one: cloud 30 %, empty 0 %)",
        "d6": "is fit but not needed: the one that is used ranks better (this one: cloud 9 %, empty 0 %)",
    }
    assert found.notes == ()


def test_several_dates_are_in_the_order_of_their_days():
    items = [optical(f"d{day}", f"2024-05-0{day}T10:00:00", cloud) for day, cloud in ((2, 30.0), (4, 3.0), (6, 9.0))]
    found = chosen(items, scenes=2)
    assert names(found) == [["d4"], ["d6"]]
    assert reasons(found)["d2"].startswith("is fit but not needed: the 2 that are used rank better")
    assert chosen(items, scenes=5).notes == ("3 dates of the 5 asked for: no other is fit",)


def test_too_cloudy_and_too_empty_scenes_are_left_out():
    items = [
        optical("cloudy", "2024-05-02T10:00:00", 50.5),
        optical("limit", "2024-05-04T10:00:00", 50.0),
        optical("empty", "2024-05-06T10:00:00", 1.0, nodata=20.5),
        optical("unsaid", "2024-05-08T10:00:00", None),
    ]
    found = chosen(items, scenes=9)
    assert names(found) == [["limit"]]
    assert reasons(found) == {
        "cloudy": "is cloudy in 50.5 %: `max_scene_cloud` is 50",
        "empty": "has nothing in 20.5 % of the tile: `max_scene_nodata` is 20",
        "unsaid": "does not say how cloudy it is: `max_scene_cloud` 100 takes it",
    }
    assert len(chosen(items, scenes=9, max_scene_cloud=100, max_scene_nodata=100).scenes) == 4
    # What does not say it is the last to be taken.
    assert names(chosen(items, scenes=3, max_scene_cloud=100, max_scene_nodata=100)) == [
        ["cloudy"],
        ["limit"],
        ["empty"],
    ]


def test_where_an_item_does_not_say_what_is_empty_its_footprint_does():
    found = chosen([optical("swath", "2024-05-02T10:00:00", part=(0, 0.75), nodata=None)], max_scene_nodata=24)
    assert reasons(found) == {"swath": "has nothing in 25 % of the tile: `max_scene_nodata` is 24"}


def test_of_redundant_copies_the_newest_baseline_is_used():
    copies = [
        optical("old", "2022-05-04T10:00:00", 3.0, baseline="04.00", processed="2022-05-04T20:00:00"),
        optical("older", "2022-05-04T10:00:00", 1.0, baseline="02.12", processed="2024-05-04T20:00:00"),
        optical("new", "2022-05-04T10:00:00", 4.0, baseline="05.00", processed="2023-01-04T20:00:00"),
        optical("newest", "2022-05-04T10:00:00", 5.0, baseline="05.00", processed="2023-01-05T20:00:00"),
    ]
    found = chosen(copies, dates=(date(2022, 5, 1), date(2022, 5, 30)))
    assert names(found) == [["newest"]]
    assert set(reasons(found)) == {"old", "older", "new"}
    assert set(reasons(found).values()) == {"shows the same as newest, which is newer"}


def test_an_older_copy_that_shows_more_of_the_tile_is_no_redundant_one():
    items = [
        optical("whole", "2024-05-04T10:00:00", 2.0, baseline="02.12"),
        optical("half", "2024-05-04T10:00:00", 2.0, (0, 0.6), baseline="05.10"),
    ]
    found = chosen(items)
    # What the newest shows is taken from it.
    assert names(found) == [["half", "whole"]]


def test_images_of_another_satellite_are_no_copies():
    items = [
        optical("a", "2024-05-04T10:00:00", 9.0),
        optical("b", "2024-05-04T10:20:00", 3.0, platform="sentinel-2b"),
    ]
    found = chosen(items, scenes=2)
    assert names(found) == [["b"]]
    assert reasons(found) == {"a": "adds nothing to b of the same day"}


def test_granules_that_only_together_cover_a_tile_are_joined():
    items = [
        optical("east", "2024-05-04T10:00:14", 10.0, (0.45, 1), acquisition="GS2A_1"),
        optical("west", "2024-05-04T10:00:00", 4.0, (0, 0.5), acquisition="GS2A_1"),
        optical("lone", "2024-05-06T10:00:00", 1.0, (0.5, 1)),
    ]
    found = chosen(items, scenes=2)
    assert names(found) == [["east", "west"]]
    assert [round(used.share, 2) for used in found.scenes[0].items] == [0.55, 0.5]
    assert reasons(found) == {"lone": "has nothing in 50 % of the tile: `max_scene_nodata` is 20"}
    # Clouds of what each has.
    cloud = (55 * 10 + 50 * 4) / 105
    told = chosen(items, max_scene_cloud=5)
    assert reasons(told)["west"] == f"is cloudy in {cloud:.2f} % with the others of its day: `max_scene_cloud` is 5"


def test_granules_that_leave_too_much_out_together_are_not_used():
    items = [
        optical("east", "2024-05-04T10:00:14", 10.0, (0.65, 1)),
        optical("west", "2024-05-04T10:00:00", 4.0, (0, 0.3)),
    ]
    expected = "has nothing in 35 % of the tile with the others of its day: `max_scene_nodata` is 20"
    assert reasons(chosen(items)) == {"east": expected, "west": expected}


def test_what_granules_share_is_counted_once():
    items = [
        optical("east", "2024-05-04T10:00:14", 10.0, (0.3, 0.7)),
        optical("west", "2024-05-04T10:00:00", 4.0, (0, 0.5)),
    ]
    told = reasons(chosen(items))["west"]
    assert told == "has nothing in 30 % of the tile with the others of its day: `max_scene_nodata` is 20"


def test_two_passes_of_a_day_are_joined_where_none_is_enough():
    items = [
        optical("first", "2024-05-04T10:00:00", 4.0, (0, 0.6)),
        optical("second", "2024-05-04T11:40:00", 4.0, (0.4, 1)),
    ]
    assert names(chosen(items)) == [["first", "second"]]
    whole = optical("third", "2024-05-04T13:20:00", 20.0)
    found = chosen([*items, whole])
    assert names(found) == [["third"]]
    assert reasons(found) == dict.fromkeys(("first", "second"), "adds nothing to third of the same day")


def test_a_pass_over_midnight_is_of_the_day_on_which_it_began():
    items = [
        optical("before", "2024-05-04T23:59:50", 4.0, (0, 0.5)),
        optical("after", "2024-05-05T00:00:10", 4.0, (0.5, 1)),
    ]
    found = chosen(items)
    assert [scene.day for scene in found.scenes] == [date(2024, 5, 4)]
    assert names(found) == [["after", "before"]]


def test_images_of_other_tiles_and_without_a_band_are_left_out():
    lacking = optical("lacking", "2024-05-04T10:00:00")
    lacking = replace(lacking, assets={key: one for key, one in lacking.assets.items() if key not in ("B05", "B12")})
    items = [
        lacking,
        optical("other", "2024-05-04T10:00:00", tile="33TVL"),
        replace(optical("away", "2024-05-04T10:00:00"), footprint=footprint(1.2, 1.5).wkt),
    ]
    found = chosen(items)
    assert found.scenes == ()
    assert reasons(found) == {
        "lacking": "has no rededge1, swir22",
        "other": "is of the tile 33TVL",
        "away": "covers nothing of the tile",
    }


def test_spread_over_the_period():
    days = {2: 9.0, 4: 3.0, 11: 40.0, 18: 8.0, 20: 7.0, 29: 60.0}
    items = [optical(f"d{day}", f"2024-05-{day:02}T10:00:00", cloud) for day, cloud in days.items()]
    found = chosen(items, scenes=3, pick="spread")
    # The parts are the 1st to the 10th, to the 20th, and to the 30th.
    assert names(found) == [["d4"], ["d20"]]
    better = "is fit but not needed: the one used of its part of the period ranks better"
    assert reasons(found) == {
        "d2": f"{better} (this one: cloud 9 %, empty 0 %)",
        "d11": f"{better} (this one: cloud 40 %, empty 0 %)",
        "d18": f"{better} (this one: cloud 8 %, empty 0 %)",
        "d29": "is cloudy in 60 %: `max_scene_cloud` is 50",
    }
    assert found.notes == ("2 dates of the 3 asked for, each of another part of the period: no other is fit",)


def test_without_a_period_nothing_is_searched():
    with pytest.raises(InputError, match="`dates`: expected the period in which planetary-computer is searched"):
        select(HERE, PC, Reading(sensor=get_sensor("sentinel-2-l2a")), finder([]))


def test_what_is_asked_of_the_catalogue():
    asked = []
    items = [optical("o", "2024-05-04T10:00:00"), radar("r", "2024-05-05T05:00:00"), *HEIGHTS]
    select(HERE, PC, Reading(sensor=CLAY_V0, dates=MAY, choice=Choice(radar_days=2)), finder(items, asked))
    assert [(name, start, end) for name, _, start, end in asked] == [
        ("sentinel-2-l2a", *MAY),
        ("sentinel-1-rtc", date(2024, 5, 2), date(2024, 5, 6)),
        ("cop-dem-glo-30", None, None),
    ]
    assert asked[0][1] == pytest.approx(footprint(0, 1).bounds, abs=0.01)


def test_clay_v0_has_radar_and_elevation_beside():
    items = [
        optical("o", "2024-05-04T10:00:00"),
        radar("west", "2024-05-03T05:00:00", (-0.5, 0.6)),
        radar("east", "2024-05-06T17:00:00", (0.4, 1.5)),
        *HEIGHTS,
    ]
    found = chosen(items, sensor="clay-v0")
    assert names(found) == [["o"]]
    assert names(found, "radar") == [["west", "east"]]
    assert names(found, "height") == [[one.id for one in HEIGHTS]]
    assert found.left_out == ()
    assert found.notes == ()
    assert [round(used.share, 2) for used in found.scenes[0].items if used.role == "radar"] == [0.6, 0.6]


def test_radar_is_of_one_orbit_state_and_the_nearest_in_time():
    items = [
        optical("o", "2024-05-04T10:00:00"),
        radar("part", "2024-05-04T16:00:00", (0.5, 1.5), "ascending"),
        radar("before", "2024-05-02T05:00:00"),
        radar("after", "2024-05-07T05:00:00"),
        *HEIGHTS,
    ]
    found = chosen(items, sensor="clay-v0")
    assert names(found, "radar") == [["before"]]
    assert reasons(found) == dict.fromkeys(("part", "after"), "is not needed beside a scene that is used")


def test_the_radar_that_is_nearest_in_time_counts_first():
    items = [
        optical("o", "2024-05-04T10:00:00"),
        radar("whole", "2024-05-07T05:00:00"),
        radar("near", "2024-05-05T05:00:00", (0.5, 1.5)),
        *HEIGHTS,
    ]
    assert names(chosen(items, sensor="clay-v0"), "radar") == [["near", "whole"]]


@pytest.mark.parametrize(("time", "near"), [("2024-05-01T00:00:01", True), ("2024-04-30T23:59:59", False)])
def test_radar_is_within_whole_days(time, near):
    found = chosen([optical("o", "2024-05-04T23:00:00"), radar("r", time), *HEIGHTS], sensor="clay-v0")
    assert bool(found.scenes) == near


def test_a_scene_without_radar_gives_way_to_the_next_one():
    items = [
        optical("clearest", "2024-05-04T10:00:00", 0.1),
        optical("next", "2024-05-20T10:00:00", 7.0),
        radar("r", "2024-05-22T05:00:00"),
        *HEIGHTS,
    ]
    found = chosen(items, sensor="clay-v0")
    assert names(found) == [["next"]]
    assert reasons(found) == {"clearest": "has no radar within 3 days"}
    assert chosen([items[0], items[2]], sensor="clay-v0").scenes == ()


def test_single_polarisation_is_left_out():
    items = [
        optical("o", "2024-05-04T10:00:00"),
        radar("single", "2024-05-04T05:00:00", bands=("vv",)),
        radar("other", "2024-05-04T06:00:00", bands=("hh", "hv")),
        radar("both", "2024-05-06T05:00:00"),
        *HEIGHTS,
    ]
    found = chosen(items, sensor="clay-v0")
    assert names(found, "radar") == [["both"]]
    assert reasons(found) == {"single": "has no vh", "other": "has no vh, vv"}


def test_gaps_of_radar_and_elevation_are_told():
    items = [optical("o", "2024-05-04T10:00:00"), radar("r", "2024-05-04T05:00:00", (0.25, 1.5)), HEIGHTS[0]]
    found = chosen(items, sensor="clay-v0")
    assert found.notes[0] == "no radar beside 2024-05-04 in 25 % of the tile"
    assert found.notes[1].startswith("no elevation in ")


def test_radar_alone():
    items = [
        radar("a1", "2024-05-04T05:00:00", (-0.5, 0.6)),
        radar("a2", "2024-05-04T05:00:25", (0.4, 1.5)),
        radar("b", "2024-05-10T17:00:00", (0, 0.7), "ascending"),
        radar("c", "2024-05-16T05:00:00", (0, 0.9)),
    ]
    found = chosen(items, sensor="sentinel-1-rtc", scenes=2)
    assert names(found, "radar") == [["a1", "a2"], ["c"]]
    assert reasons(found) == {"b": "has nothing in 30 % of the tile: `max_scene_nodata` is 20"}
    assert names(chosen(items, sensor="sentinel-1-rtc"), "radar") == [["a1", "a2"]]


def test_radar_of_two_orbit_states_is_not_joined():
    items = [
        radar("down", "2024-05-04T05:00:00", (0, 0.6)),
        radar("up", "2024-05-04T17:00:00", (0.4, 1.5), "ascending"),
    ]
    found = chosen(items, sensor="sentinel-1-rtc")
    assert found.scenes == ()
    assert set(reasons(found)) == {"down", "up"}


def landsat(name, time, top, bottom, cloud=2.0):
    bands = ("red", "green", "blue", "nir08", "swir16", "swir22")
    return item(
        *("landsat-c2-l2", name, time, footprint(-0.2, 1.2, top, bottom), bands),
        cloud=cloud,
        platform="landsat-9",
        acquisition=f"landsat-9_{time}",
    )


def test_landsat_alone():
    items = [
        landsat("row-27", "2024-05-04T10:00:00", -1, 0.6),
        landsat("row-28", "2024-05-04T10:00:24", 0.5, 2),
        landsat("cloudy", "2024-05-20T10:00:00", -1, 2, 70.0),
    ]
    found = chosen(items, sensor="landsat-c2l2-sr", scenes=2)
    assert names(found) == [["row-27", "row-28"]]
    assert reasons(found) == {"cloudy": "is cloudy in 70 %: `max_scene_cloud` is 50"}


@st.composite
def listed(draw):
    items = []
    for number in range(draw(st.integers(0, 9))):
        day, second = draw(st.integers(1, 6)), draw(st.integers(0, 2)) * 7
        left = draw(st.sampled_from([0, 0.3, 0.5]))
        items.append(
            optical(
                *(f"o{number}", f"2024-05-{day:02}T10:00:{second:02}", draw(st.sampled_from([0.0, 5.0, 5.0, 60.0]))),
                part=(left, draw(st.sampled_from([left + 0.4, 1.0]))),
                baseline=draw(st.sampled_from(["02.12", "05.10", None])),
                platform=draw(st.sampled_from(["sentinel-2a", "sentinel-2b"])),
            )
        )
    for number in range(draw(st.integers(0, 6))):
        day, orbit = draw(st.integers(1, 8)), draw(st.sampled_from(["ascending", "descending"]))
        part = draw(st.sampled_from([(-0.5, 0.5), (0.4, 1.5), (-0.5, 1.5)]))
        items.append(radar(f"r{number}", f"2024-05-{day:02}T05:00:00", part, orbit, acquisition=f"r{number}"))
    return items + HEIGHTS[: draw(st.integers(0, 4))]


@settings(max_examples=60)
@given(listed(), st.randoms(), st.sampled_from(["clear", "spread"]), st.integers(1, 3))
def test_the_order_of_items_does_not_matter_and_none_is_lost(items, random, pick, scenes):
    choice = {"sensor": "clay-v0", "pick": pick, "scenes": scenes, "dates": (MAY[0], MAY[0] + timedelta(days=8))}
    found = chosen(items, **choice)
    shuffled = [*items, *items[:3]]
    random.shuffle(shuffled)
    assert chosen(shuffled, **choice) == found
    assert len({scene.day for scene in found.scenes}) == len(found.scenes) <= scenes
    used = {one.item.id for scene in found.scenes for one in scene.items}
    left = set(reasons(found))
    assert not used & left
    # Radar and elevation that no scene could have are not asked for.
    assert {one.id for one in items if one.tile} <= used | left
    if found.scenes:
        assert {one.id for one in items if one.collection == "cop-dem-glo-30"} <= used | left
    assert all(left.reason for left in found.left_out)
    for scene in found.scenes:
        states = {one.item.orbit_state for one in scene.items if one.role == "radar"}
        assert len(states) == 1
        assert all(abs((one.item.time.date() - scene.day).days) <= 3 for one in scene.items if one.role == "radar")


def real_selection(shared, name, tile, dates, sensor="sentinel-2-l2a", **choice):
    path = shared / "data" / "stac" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"needs real items of catalogues, and there are none at {path}")
    catalogue = find_catalogue(str(path))
    assert catalogue is not None
    reading = Reading(sensor=get_sensor(sensor), dates=dates, choice=Choice(**choice))
    return select(tile, catalogue, reading)


@pytest.mark.real
def test_real_items_of_the_planetary_computer(shared):
    period = (date(2020, 6, 1), date(2020, 7, 31))
    found = real_selection(shared, "planetary-computer-s2-35MNM", "35MNM", period, scenes=3)
    assert names(found) == [
        ["S2B_MSIL2A_20200716T080609_R078_T35MNM_20200816T092511"],
        ["S2B_MSIL2A_20200726T080609_R078_T35MNM_20200908T180357"],
        ["S2A_MSIL2A_20200731T080611_R078_T35MNM_20200818T062751"],
    ]
    assert len(found.left_out) == 10
    spread = real_selection(shared, "planetary-computer-s2-35MNM", "35MNM", period, scenes=4, pick="spread")
    assert [str(scene.day) for scene in spread.scenes] == ["2020-06-16", "2020-06-21", "2020-07-16", "2020-07-26"]


@pytest.mark.real
def test_real_items_near_the_pole(shared):
    period = (date(2024, 4, 1), date(2024, 4, 30))
    found = real_selection(shared, "planetary-computer-s2", "47XML", period)
    assert found.scenes == ()
    assert reasons(found)["S2B_MSIL2A_20240419T095549_R122_T47XML_20240419T123458"] == (
        "has nothing in 27.37 % of the tile: `max_scene_nodata` is 20"
    )
    found = real_selection(shared, "planetary-computer-s2", "47XML", period, max_scene_nodata=30)
    assert names(found) == [["S2B_MSIL2A_20240419T095549_R122_T47XML_20240419T123458"]]
    assert found.scenes[0].items[0].share == pytest.approx(0.722, abs=0.001)


@pytest.mark.real
def test_real_items_of_earth_search(shared):
    period = (date(2024, 3, 31), date(2024, 4, 30))
    found = real_selection(shared, "earth-search-c1-13TDE", "13TDE", period)
    assert names(found) == [["S2A_T13TDE_20240405T175934_L2A"]]
    told = reasons(found)
    assert told["S2A_T13TDE_20240402T174230_L2A"] == "has nothing in 75.13 % of the tile: `max_scene_nodata` is 20"
    assert told["S2B_T13TDE_20240410T175332_L2A"] == "is cloudy in 77.65 %: `max_scene_cloud` is 50"
    assert told["S2A_T13TDE_20240415T180048_L2A"].startswith(
        "is fit but not needed: the one that is used ranks better (this one: cloud 22 %"
    )
    assert len(told) == 9
    found = real_selection(shared, "earth-search-v1-s2-32TPS", "32TPS", (date(2023, 6, 1), date(2023, 6, 30)))
    assert names(found) == [["S2A_32TPS_20230602_0_L2A"]]


@pytest.mark.real
def test_real_items_of_the_copernicus_data_space(shared):
    found = real_selection(shared, "cdse-s2-55WFR", "55WFR", (date(2026, 5, 1), date(2026, 5, 31)))
    assert names(found) == [["S2C_MSIL2A_20260527T014651_N0512_R017_T55WFR_20260527T042005"]]


@pytest.mark.real
def test_real_items_of_radar(shared):
    # Two slices of one pass cover it only together.
    found = real_selection(
        *(shared, "planetary-computer-s1-rtc", "33RWQ", (date(2024, 4, 1), date(2024, 4, 30)), "sentinel-1-rtc"),
        max_scene_nodata=100,
    )
    assert [[used.item.id[17:48] for used in scene.items] for scene in found.scenes] == [
        ["20240419T045839_20240419T045904", "20240419T045904_20240419T045916"]
    ]
    assert found.scenes[0].items[0].item.orbit_state == "descending"
