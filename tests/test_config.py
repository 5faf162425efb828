"""Settings: Dask's configuration over the packaged defaults."""

from __future__ import annotations

import os
import subprocess
import sys

import dask
import pytest

from daskembed import config


@pytest.mark.parametrize("given", [{"daskembed.batch-size": 5}, {"daskembed": {"batch_size": 5}}])
def test_one_setting_leaves_the_others_at_their_defaults(given):
    with dask.config.set(given):
        assert config.get("batch-size") == 5
        assert config.get("on-nan") == "quarantine"
    assert config.get("batch-size") == 32


def test_a_setting_without_default_is_none():
    assert config.get("no-such-setting") is None


def test_the_environment_sets_defaults():
    env = os.environ | {"DASK_DASKEMBED__BATCH_SIZE": "7"}
    code = "from daskembed import config; print(config.get('batch-size'), config.get('version'))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "001"]
