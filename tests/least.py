"""A size of each Clay that computes in no time, ``untrained:least``, for tests of all but the models themselves.

`conftest` has it loaded by the tests' workers too. The vectors are as long as those of size tiny.
"""

from __future__ import annotations

from daskembed.encoders import clay_v0, clay_v1_5

clay_v0.SIZES["least"] = (clay_v0.SIZES["tiny"][0], 1, 1, 1)
clay_v1_5.SIZES["least"] = (clay_v1_5.SIZES["tiny"][0], 1, 1, 16, 1)
