"""Text of others, wherever it is shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from daskembed.cli.main import main
from daskembed.errors import every_error
from daskembed.output.state import Receipt, write_receipt
from daskembed.output.status import status
from daskembed.output.validate.findings import Finding
from daskembed.runs.notebook import progress_as_html
from daskembed.runs.plan import Plan
from daskembed.runs.results import Progress, RunResult, TileResult
from daskembed.runs.summary import describe_plan, summary
from daskembed.storage.stores import Storage
from daskembed.text import all_visible, visible

EVIL = "\x1b]0;owned\x07\x1b[2J a\nb\r \u202egnp.exe \u2028 \x85 \x9b31m \udcff"
SHOWN = r"\x1b]0;owned\x07\x1b[2J a\nb\r \u202egnp.exe \u2028 \x85 \x9b31m \udcff"


def fit(text: str) -> None:
    """No line of it commands anything."""
    for line in text.split("\n"):
        assert visible(line) == line
    assert "owned" in text


def test_what_is_made_visible() -> None:
    assert visible(EVIL) == SHOWN
    for kept in ("plain", "Žižkov 数", "a\u00a0b\u3000c", "back\\slash", "🛰"):
        assert visible(kept) == kept
    assert all_visible({"a": [EVIL, 1, None], EVIL: {"b": (EVIL,)}}) == {"a": [SHOWN, 1, None], SHOWN: {"b": [SHOWN]}}


@pytest.mark.parametrize("kind", sorted(every_error(), key=str))
def test_errors_say_it_so(kind: type[Exception]) -> None:
    assert str(pickle.loads(pickle.dumps(kind(f"{EVIL} is bad")))) == f"{SHOWN} is bad"


def test_findings_say_it_so_and_not_for_ever() -> None:
    assert str(Finding("geo", EVIL)) == SHOWN
    assert len(Finding("geo", "x" * 10**6).message) < 2000


def test_lines_of_a_run_and_a_plan() -> None:
    bad = {f"s3://b/{EVIL}": EVIL}
    tiles = (
        TileResult("33TUL", "done", quarantined=bad, notes=(EVIL,), files=(EVIL,)),
        TileResult("33TUM", "failed", reason=EVIL),
    )
    fit(summary(RunResult(EVIL, tiles, 0, 0, 1.0, False, {})))
    fit(describe_plan(Plan(EVIL, "mean", (), (), {"33TUL": EVIL}, 0, 0, 0, {}, 1, None, 1, None)))
    fit(progress_as_html(Progress(1, "", "", said=[f"{EVIL}<script>"])))
    assert "<script>" not in progress_as_html(Progress(1, "", "", said=[f"{EVIL}<script>"]))


@pytest.mark.parametrize("flags", [[], ["--quarantined"], ["--json"]])
def test_status_of_anothers_output(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"s3://b/{EVIL}"
    receipt = Receipt("33TUL", "001", [], 0, {url: EVIL}, {}, {}, [EVIL], {}, "", "2020", "2021")
    write_receipt(Storage(str(tmp_path)), receipt)
    assert status(str(tmp_path)).tiles[0].quarantined == {url: EVIL}
    main(["status", str(tmp_path), *flags])
    fit(capsys.readouterr().out)


def test_a_command_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "\x1b]0;owned\x07.gpq")]) == 2
    fit(capsys.readouterr().err)
