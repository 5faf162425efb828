"""The documentation: its blocks run, its flags are there, its links lead somewhere, the README leads everywhere."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import posixpath
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import dask
import pytest
import rasterio
import yaml
from distributed import LocalCluster

import daskembed
from daskembed.cli import demo_catalogue
from daskembed.cli.main import main
from daskembed.cli.parser import make_parser
from daskembed.sources.stac.catalogue import _FILES_KEYS, _IMAGES_KEYS, _KEYS, find_catalogue
from daskembed.testing import HeightImage, OpticalImage, RadarImage, write_checkpoint, write_scenes

TOP = Path(__file__).parent.parent
FOUND = (
    *TOP.glob("*.md"),
    *TOP.glob("docs/**/*.md"),
    *TOP.glob("examples/*.md"),
    *TOP.glob("benchmarks/*.md"),
    *TOP.glob("tests/faults/*.md"),
)
PAGES = sorted(str(path.relative_to(TOP)) for path in FOUND)
BLOCK = re.compile(r"(?:^<!-- (?P<note>.*) -->\n)?^```(?P<language>\w*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)(?P<target>[^()#\s]*)(?:#(?P<anchor>[^()\s]*))?(?=\))")


class Block(NamedTuple):
    language: str
    text: str
    run: bool
    """False behind a comment that says why not, or that it is a command of .ci/run."""
    line: int


def blocks(page: str) -> list[Block]:
    # What is read and written, not what a model makes of it, is told here: the least model's vectors are as long.
    text = (TOP / page).read_text().replace("untrained:tiny", "untrained:least")
    return [
        Block(
            found["language"],
            found["text"],
            not (found["note"] or "").startswith(("command: ", "not run: ")),
            text[: found.start("text")].count("\n"),
        )
        for found in BLOCK.finditer(text)
    ]


@pytest.fixture(scope="module")
def place(chips: Path, duckdb_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the pages name, in which they run; their commands share one cluster."""
    folder = tmp_path_factory.mktemp("docs")
    # In this process, so that it finds the modules that this finds.
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=":0"
        ) as cluster,
        pytest.MonkeyPatch.context() as patch,
        dask.config.set(
            {
                "daskembed.cluster": cluster.scheduler_address,
                "daskembed.checkpoint": "clay-v0.ckpt",
                "daskembed.cache": str(folder / "cache"),
                # Whoever configures logging is not quietened, and other tests read it.
                "logging": {"distributed": "warning"},
            }
        ),
    ):
        patch.chdir(folder)
        # Where DuckDB keeps its extensions.
        patch.setenv("HOME", str(duckdb_home))
        (folder / "examples").symlink_to(TOP / "examples")
        shutil.copy(TOP / "examples/tiles.txt", folder)
        write_checkpoint(folder / "clay-v0.ckpt", size="least")
        (folder / "daskembed-demo").mkdir()
        for name in ("chips", "daskembed-demo/chips"):
            (folder / name).symlink_to(chips)
        write_rasters(folder, next(chips.rglob("*.tif")))
        demo = ["--tiles", "33TUL", "--source", "daskembed-demo/chips", "--output"]
        command(["run", *demo, "daskembed-demo/embeddings", "--checkpoint", "untrained:least"])
        command(["cube", *demo, "daskembed-demo/cubes"])
        write_local_scenes(folder / "daskembed-demo/scenes")
        (folder / "cubes").symlink_to("daskembed-demo/cubes")
        yield folder


def write_rasters(folder: Path, chip: Path) -> None:
    """A whole tile of one chip, as one raster and as a file a band."""
    (folder / "rasters").mkdir()
    shutil.copy(chip, folder / "rasters/33TUL_20190416.tif")
    day = folder / "bands/33TUL/2019-04-16"
    day.mkdir(parents=True)
    with rasterio.open(chip) as file:
        profile, pixels, names = file.profile | {"count": 1}, file.read(), file.descriptions
    for name, band in zip(names, pixels, strict=True):
        with rasterio.open(day / f"{name}.tif", "w", **profile) as file:
            file.write(band, 1)


def write_local_scenes(folder: Path) -> None:
    """One date of what the demo of catalogues leaves, where its first chip lies."""
    images = (OpticalImage("2021-06-03T10:20:31Z"), RadarImage("2021-06-04T05:10:02Z"), HeightImage())
    made = write_scenes(folder, images=images, start=demo_catalogue.START, shape=(516, 516))
    made.description.rename(folder / "local.yaml")


def command(words: list[str]) -> None:
    with redirect_stdout(StringIO()) as told:
        status = main(words)
    assert status == 0, f"daskembed {' '.join(words)}: {told.getvalue()}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language for block in blocks(page))])
def test_blocks(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(place / "embeddings", ignore_errors=True)  # each page is read by itself
    variables: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python" and block.run:
            exec(compile("\n" * block.line + block.text, page, "exec"), variables)
        elif block.language == "json":
            assert json.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
        elif block.language == "bash":
            run_shell(block, monkeypatch)


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a block; of those that are not to be run, see that they take their flags."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("PYTHONPATH="):
            monkeypatch.syspath_prepend(words.pop(0).partition("=")[2])
        if words[:2] == ["python", "-m"]:
            del words[:2]
        if words[:1] == ["daskembed"]:
            make_parser().parse_args(words[1:])
        if words and block.run:
            assert words[0] == "daskembed", f"nobody runs: {line}"
            command(words[1:])


def test_the_example_of_a_catalogue_is_one(tmp_path: Path) -> None:
    (example,) = (block.text for block in blocks("docs/catalogues.md") if block.language == "yaml")
    (tmp_path / "mine.yaml").write_text(example)
    catalogue = find_catalogue(str(tmp_path / "mine.yaml"))
    assert catalogue is not None
    assert {images.role for images in catalogue.images} == {"optical", "radar", "height"}
    # All that one can say is in it.
    described = yaml.safe_load(example)
    assert set(described) == _KEYS
    assert set().union(*described["images"]) == _IMAGES_KEYS
    assert set().union(*described["files"]) == _FILES_KEYS


def linked(page: str, text: str) -> Iterator[tuple[str, str]]:
    """Path in the repository and heading of each link of a page to another, or to itself."""
    for found in LINK.finditer(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), found["target"]))
        yield (path if found["target"] else page), found["anchor"] or ""


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for path, anchor in linked(page, BLOCK.sub("", (TOP / page).read_text())):
        assert (TOP / path).is_file(), path
        if anchor:
            headings = re.findall("^#+ (.*)$", (TOP / path).read_text().lower(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings], path


def test_the_readme_leads_to_every_page() -> None:
    assert len((TOP / "README.md").read_text().splitlines()) <= 150
    seen = waiting = {"README.md"}
    while waiting:
        waiting = {path for page in waiting for path, _ in linked(page, (TOP / page).read_text())} & set(PAGES) - seen
        seen |= waiting
    assert set(PAGES) - seen == set()


def helped(name: str) -> set[str]:
    """All flags that the help of a command tells of."""
    with redirect_stdout(StringIO()) as told, pytest.raises(SystemExit):
        main([name, "--help"])
    return set(re.findall("--[a-z-]+", told.getvalue())) - {"--help"}


COMMANDS = ("run", "plan", "scenes", "cube", "export", "calibrate", "tiles", "clusters", "doctor", "demo", "status")
COMMANDS += ("preview", "search", "stac", "validate")


@pytest.mark.parametrize("page", PAGES)
def test_flags(page: str) -> None:
    others = {"--help", "--scheduler-file", "--smallest", "--strict"}
    named = set(re.findall("`(?:daskembed [a-z]+ )?(--[a-z-]+)", (TOP / page).read_text()))
    assert named - others.union(*map(helped, COMMANDS)) == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_modules_and_functions(page: str) -> None:
    for named in re.findall(r"`(daskembed[/.]\w[\w./]*)`", (TOP / page).read_text()):
        if "/" in named:
            assert (TOP / named).exists(), named
        else:
            pkgutil.resolve_name(named)


@pytest.fixture
def hooks() -> ModuleType:
    """What the documentation's build adds."""
    spec = importlib.util.spec_from_file_location("hooks", TOP / "docs/hooks.py")
    assert spec
    assert spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def test_the_reference_of_python(hooks: ModuleType) -> None:
    directives = re.findall("^::: (.*)$", hooks.exported(), re.MULTILINE)
    assert {f"daskembed.{name}" for name in daskembed.__all__[1:]} < set(directives)
    assert all(map(pkgutil.resolve_name, directives))
    # What is only imported on first use is found by type checkers, and by the build, where they look.
    typed = re.findall(r"^    from (\S+) import (\w+) as \2$", Path(daskembed.__file__).read_text(), re.MULTILINE)
    assert {name: f"daskembed.{home}" for name, home in daskembed._HOME.items()} == {name: home for home, name in typed}


def test_the_command_reference(hooks: ModuleType) -> None:
    parts = dict(re.findall(r"^## daskembed (\w+)\n(.*?)(?=^## |\Z)", hooks.commands(), re.MULTILINE | re.DOTALL))
    assert tuple(parts) == COMMANDS
    assert "| `offset` | pixels (y, x) from a whole tile's corner to the first chip |" in hooks.options()
    assert "| `--tiles FILE|IDS` | file of MGRS tile ids, one a line, or the ids |" in parts["run"]
    assert "--level" not in parts["plan"]
    for name in ("plan", "scenes"):
        parts[name] += parts["run"]
    assert {name: helped(name) - set(re.findall("--[a-z-]+", part)) for name, part in parts.items()} == {
        name: set() for name in COMMANDS
    }
