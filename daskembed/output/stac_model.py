"""The STAC item of an encoder: its input, scaling and output in the fields of the MLM extension (pure)."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from daskembed.output.stac_documents import CATALOG, FILE, SHA256, VERSION, Kind, links, model_id, model_path
from daskembed.sensors.bands import CLAY_V0, Sensor
from daskembed.sensors.table import known_sensors

MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
_EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
_CLAY = "https://github.com/Clay-foundation/model"
_WORLD = [[[-180.0, -90.0], [180.0, -90.0], [180.0, 90.0], [-180.0, 90.0], [-180.0, -90.0]]]


def model_item(kind: Kind, root: str | None) -> dict[str, Any]:
    """The item of the encoder that made files of a kind, as far as these say it.

    Bands and scaling are those of the package's table of sensors. Of a sensor of somebody's own the files have a digest
    and no numbers: its bands are left out, and that is said.
    """
    sensor = {CLAY_V0.name: CLAY_V0, **known_sensors()}.get(str(kind.get("sensor")))
    name = re.sub(r"[^A-Za-z0-9_. -]+", "-", " ".join(str(kind[key]) for key in ("encoder", "size") if kind.get(key)))
    path = model_path(kind)
    bands = {} if sensor is None else {"eo:bands": [_band(band.name, band.wavelength) for band in sensor.bands]}
    untrained = bool(kind.get("untrained"))
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [MLM, FILE, *([_EO] if bands else [])],
        "id": model_id(kind),
        "geometry": {"type": "Polygon", "coordinates": _WORLD},
        "bbox": [-180.0, -90.0, 180.0, 90.0],
        "properties": {
            "title": f"{name}, level {kind['level']}",
            # As the extension asks of models that are for no time in particular.
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "mlm:name": name,
            "mlm:architecture": "Vision Transformer" if _is_clay(kind) else str(kind["encoder"]),
            "mlm:framework": "PyTorch",
            "mlm:tasks": ["similarity-search"],
            "mlm:pretrained": not untrained,
            **({"mlm:pretrained_source": None} if untrained else {}),
            "mlm:input": [_input(kind, sensor)],
            "mlm:output": [_output(kind)],
        },
        "links": links(path, root, ("parent", CATALOG)),
        "assets": {
            "model": {
                "href": checkpoint_url(kind),
                "title": f"Weights: {kind['checkpoint']}",
                "roles": ["mlm:model"],
                "mlm:artifact_type": "safetensors.torch.save_file"
                if PurePosixPath(kind["checkpoint"]).suffix == ".safetensors"
                else "torch.save",
                **bands,
                **({"file:checksum": SHA256 + kind["sha256"]} if isinstance(kind.get("sha256"), str) else {}),
            }
        },
    }


def _is_clay(kind: Kind) -> bool:
    return str(kind["encoder"]).startswith("clay-")


def _band(name: str, wavelength: float | None) -> dict[str, Any]:
    return {"name": name, **({} if wavelength is None else {"center_wavelength": wavelength})}


def _input(kind: Kind, sensor: Sensor | None) -> dict[str, Any]:
    window = kind.get("window")
    side = window if type(window) is int and window > 0 else -1
    told: dict[str, Any] = {"name": f"images of {kind.get('sensor', 'a sensor')}"}
    if sensor is None:
        axes, count = ["batch", "channel", "height", "width"], -1
        told |= {"bands": [], "description": "of a sensor whose bands and scaling the files do not tell"}
    else:
        axes, count = ["batch", "bands", "height", "width"], len(sensor.bands)
        told["bands"] = list(sensor.names)
        told["value_scaling"] = [{"type": "z-score", "mean": one.mean, "stddev": one.std} for one in sensor.bands]
        if sensor.decibels:
            decibels = {"format": "numpy", "expression": "10 * numpy.log10(image)"}
            told |= {"pre_processing_function": decibels, "description": "linear power, scaled as decibels"}
    return told | {"input": {"shape": [-1, count, side, side], "dim_order": axes, "data_type": "float32"}}


def _output(kind: Kind) -> dict[str, Any]:
    windows = kind.get("windows", 1)
    rows = "a chip" if windows == 1 else f"one of {windows} windows of a chip"
    return {
        "name": "embeddings",
        "description": f"level {kind['level']}; a row of a file is of {rows}",
        "tasks": ["similarity-search"],
        "result": {"shape": [-1, *kind["shape"]], "dim_order": ["batch", *kind["dims"]], "data_type": "float32"},
    }


def checkpoint_url(kind: Kind) -> str:
    """The URL of a checkpoint; of one that has none, where the model is described, or a name."""
    checkpoint = str(kind["checkpoint"])
    if match := re.fullmatch(r"hf://([^@]+)@([^/]+)/(.+)", checkpoint):
        return "https://huggingface.co/{}/resolve/{}/{}".format(*match.groups())
    if "://" in checkpoint:
        return checkpoint
    return _CLAY if _is_clay(kind) else f"urn:daskembed:checkpoint:{quote(checkpoint)}"
