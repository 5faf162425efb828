"""The table of what can be asked of a run: one list of keywords, defaults of the configuration, nothing undecided."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import dask
import pytest

import daskembed
from daskembed.runs.cube_layout import READING, Job
from daskembed.runs.options import CubeOptions, Options, RunOptions, choice_of, words_of
from daskembed.runs.settings import Settings
from daskembed.runs.tiles import resolve
from daskembed.sources.choice import Choice
from daskembed.sources.origin import open_source
from daskembed.sources.reading import Reading, parse_dates
from daskembed.sources.rules import NO_RULES
from daskembed.storage.stores import Storage


def test_the_keywords_are_those_of_the_table() -> None:
    table = {one.name: str(one.type) for one in fields(Options)}
    # Paths are text in the table.
    kinds = {name: kind.__forward_arg__ for name, kind in RunOptions.__annotations__.items()}
    keywords = {name: kind.replace("StrPath", "str") for name, kind in kinds.items()}
    assert Options.of({"source": Path("chips"), "output": Path("out")}, RunOptions).source == "chips"
    assert keywords.keys() == table.keys()
    assert {name: kind.removesuffix(" | None") for name, kind in keywords.items()} == {
        name: kind.removesuffix(" | None") for name, kind in table.items()
    }
    assert CubeOptions.__annotations__.items() <= RunOptions.__annotations__.items()


def test_what_is_not_given_is_the_configurations() -> None:
    left = Options.of({}, RunOptions)
    assert left == Options.of(dict.fromkeys(RunOptions.__annotations__), RunOptions)
    assert left == Options.of({"source": "", "level": "", "version": ""}, RunOptions)
    assert (left.source, left.version, left.max_quarantined) == ("s3://clay-tiles-02/02", "001", 0.1)
    assert (left.offset, left.edge, left.rules, left.overwrite, left.dates) == ((0, 0), "drop", NO_RULES, False, None)
    with dask.config.set({"daskembed.batch-size": 5, "daskembed.version": 7, "daskembed.offset-applied": False}):
        found = Options.of({"max_quarantined": 0, "level": "patch"}, RunOptions)
    assert (found.batch_size, found.version, found.offset_applied) == (5, "7", "no")
    assert (found.max_quarantined, found.level) == (0, "patch")


def test_what_the_configuration_does_not_have_is_not_taken_from_it() -> None:
    with dask.config.set({"daskembed.listen": "0.0.0.0", "daskembed.overwrite": True}):
        assert (Options.of({}, RunOptions).listen, Options.of({}, RunOptions).overwrite) == (None, False)


@pytest.mark.parametrize(
    ("function", "keyword", "meant"),
    [(daskembed.run, "sorce", "source"), (daskembed.plan, "xyzzy", None), (daskembed.run, "dtypes", "dtype")],
)
def test_unknown_keywords_are_refused(function: Any, keyword: str, meant: str | None) -> None:
    with pytest.raises(TypeError) as caught:
        function("33TUL", **{keyword: "x"})
    hint = f"; did you mean {meant}?" if meant else ""
    assert str(caught.value) == f"unexpected keyword argument {keyword!r}{hint}"


def test_cubes_take_no_options_of_embeddings() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'level'"):
        daskembed.write_cubes("33TUL", output="out", level="mean")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("function", "known"),
    [(daskembed.run, RunOptions), (daskembed.plan, RunOptions), (daskembed.write_cubes, CubeOptions)],
)
def test_the_documentation_has_all(function: Any, known: type[Any]) -> None:
    text = inspect.getdoc(function)
    assert text is not None
    for name, words in words_of(known).items():
        assert f"\n{name}\n    {words.keyword or words.help}" in text
    assert "\noptions\n" not in text
    assert "\n\nRaises\n------\nInputError\n" in text


def resolved(tmp_path: Path, **options: Any) -> Any:
    asked = {"source": str(tmp_path), "output": str(tmp_path / "out"), "checkpoint": "untrained:tiny", **options}
    return resolve(Options.of(asked, RunOptions))


def test_of_auto_precision_nothing_is_kept_before_it_is_said(tmp_path: Path) -> None:
    decide = resolved(tmp_path, precision="auto")
    assert not isinstance(decide, Settings)
    assert [decide(precision).encoder.precision for precision in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(daskembed.InputError, match="unknown precision 'half'"):
        resolved(tmp_path, precision="half")


def test_settings_are_told_apart_as_before(tmp_path: Path) -> None:
    """What receipts compare: another identity would make every published file one of other settings."""
    assert resolved(tmp_path)("fp32").identity == {
        "source": str(tmp_path),
        "encoder": "clay-v0 tiny",
        "sensor": "clay-v0",
        "window": 512,
        "checkpoint": "untrained:tiny:0",
        "level": "mean",
        "precision": "fp32",
        "on_nan": "quarantine",
        "format": "geoparquet",
        "dtype": "float32",
        "offset": None,
        "edge": None,
        "rules": None,
        "dates": None,
    }
    chosen = {"dates": "2019-01-01/2019-12-31", "offset": (0, 256), "edge": "pad", "numbers": "stored", "readers": 3}
    other = resolved(tmp_path, **chosen, rules=daskembed.Rules(zeros=False, max_cloud=0.5))("bf16").identity
    assert (
        other.items()
        >= {
            "dates": "2019-01-01/2019-12-31",
            "offset": "0,256",
            "edge": "pad",
            "numbers": "stored",
            "rules": "max_cloud 0.5; not zeros",
            "precision": "bf16",
        }.items()
    )


def test_settings_of_cubes_are_told_apart_as_before(tmp_path: Path) -> None:
    source = Storage(str(tmp_path))
    before = Job(source, source).settings
    assert set(before) == {"layout", "bands", "compression", "chips_a_shard"}
    some = replace(READING, dates=parse_dates("2019-01-01/2019-12-31"))
    assert Job(source, source, some).settings == {**before, "dates": "2019-01-01/2019-12-31"}


CHOSEN = {
    "max_scene_cloud": 10,
    "max_scene_nodata": 1.5,
    "scenes": 3,
    "pick": "spread",
    "radar_days": 0,
    "resampling": "cubic",
}


def test_which_scenes_of_a_catalogue() -> None:
    asked = Options.of({**CHOSEN, "source": "earth-search"}, RunOptions)
    catalogue = open_source("earth-search")
    found = choice_of(asked, catalogue)
    assert found == Choice(
        scenes=3, pick="spread", max_scene_cloud=10, max_scene_nodata=1.5, radar_days=0, resampling="cubic"
    )
    told = "scenes 3, pick spread, max_scene_cloud 10, max_scene_nodata 1.5, radar_days 0, resampling cubic"
    assert Reading(choice=found).scenes == {"scenes": told}
    assert str(replace(found, max_scene_cloud=10.0)) == told
    assert choice_of(Options.of({}, RunOptions), catalogue) == Choice()


@pytest.mark.parametrize("name", [*CHOSEN, "refresh"])
def test_what_is_chosen_of_scenes_is_refused_where_there_are_none(tmp_path: Path, name: str) -> None:
    given: dict[str, Any] = {name: CHOSEN.get(name, True)}
    said = f"`{name}`: of scenes of a catalogue, and {tmp_path} is none; leave out what has no effect"
    with pytest.raises(daskembed.InputError) as caught:
        resolved(tmp_path, **given)
    assert str(caught.value) == said
    with pytest.raises(daskembed.InputError) as caught:
        daskembed.write_cubes("33TUL", source=str(tmp_path), output=str(tmp_path / "out"), **given)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_scene_cloud": 101}, "`max_scene_cloud=101`: expected percent, from 0 to 100, such as 50"),
        ({"max_scene_cloud": float("nan")}, "`max_scene_cloud=nan`: expected percent, from 0 to 100, such as 50"),
        ({"max_scene_nodata": -0.5}, "`max_scene_nodata=-0.5`: expected percent, from 0 to 100, such as 20"),
        ({"max_scene_cloud": 0.5}, "`max_scene_cloud=0.5`: expected percent, 0 or from 1 to 100: did you mean 50?"),
        ({"max_scene_nodata": 0.2}, "`max_scene_nodata=0.2`: expected percent, 0 or from 1 to 100: did you mean 20?"),
        ({"scenes": 0}, "`scenes=0`: expected a number of dates from 1"),
        ({"radar_days": -1}, "`radar_days=-1`: expected a number of days from 0 to 366, such as 3"),
        ({"radar_days": 10**9}, "`radar_days=1000000000`: expected a number of days from 0 to 366, such as 3"),
        ({"pick": "best"}, "unknown `pick` 'best': choose one of clear, spread"),
        ({"resampling": "mean"}, "unknown `resampling` 'mean': choose one of nearest, bilinear, cubic"),
    ],
)
def test_choices_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(daskembed.InputError) as caught:
        Reading(choice=Choice(**given)).check()
    assert str(caught.value) == said
