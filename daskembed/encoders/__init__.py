"""Encoders by name, and the recipe of one that travels to the workers in place of its weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from daskembed import config
from daskembed.encoders.description import Description as Description
from daskembed.encoders.description import Place as Place
from daskembed.encoders.protocol import Encoder, EncoderModule
from daskembed.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
