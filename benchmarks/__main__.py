"""Run one benchmark by name, print its table, and append its numbers to a JSON-lines file on request."""

from __future__ import annotations

import argparse
import importlib
import json
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import machine, print_table

NAMES = {
    "encoder": "the encoder alone, against the measured rate of matrix products",
    "decode": "bytes to pixels: rasterio and imagecodecs on the same files",
    "cube": "chips of a Zarr cube against GeoTIFFs: bytes, and chips a second of one core",
    "read": "chips a second from an S3-compatible server with latency, by readers",
    "job": "files to published file, small weights, with the shares of its stages",
    "overlap": "how busy a slow fake device is behind a slow fake source",
    "scheduling": "scheduler and client: CPU time a block, memory from 20 to 1,000 tiles",
    "workers": "two worker processes against one, and the longest that a worker idled while tiles waited",
    "fleet": "64 pretended workers on one scheduler: how much of their sum a run gets, by block size",
    "write": "parts and publishing, as a share of the job and with the memory they take",
    "export": "exports against pyarrow's write_dataset of the same rows: MB/s, memory, bytes of a point look-up",
    "stac": "scenes of a catalogue over a slow network: the share of it that is used, and against odc.stac.load",
    "whole": "a whole tile from Zarr and GeoTIFF, in storage blocks of several sizes: time and memory",
    "baseline": "ours against a plain DataLoader, attention written out and one write at the end, in two precisions",
    "small": "float16 and int8 vectors: how many nearest neighbours they find again, by what is clipped",
    "plan": "what `plan` expects of the demo and of a tile of 441 chips, and what their runs take",
    "preview": "pages of 1,000 tiles: their size, how long they take to write, and until a browser can be used",
    "start": "the command on 16 chips: where the time beside its work goes",
    "search": "one million vectors: in memory against a plain read and FAISS, and from files; 100 queries at once",
    "gpu": "everything about one GPU, parity first",
}


def main() -> None:
    """Run the benchmark that the command line names."""
    listed = "\n".join(f"  {name:<11} {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(NAMES), metavar="NAME")
    parser.add_argument("--smallest", action="store_true", help="see that it runs: the numbers mean nothing then")
    parser.add_argument("--json", type=Path, help="append the numbers to this file, a line a run")
    options = parser.parse_args()
    about = machine()
    print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows = importlib.import_module(f"benchmarks.{options.name}").run(smallest=options.smallest)
    print_table(rows)
    if options.json:
        line = {"benchmark": options.name, "time": datetime.now(UTC).isoformat(), "machine": about, "rows": rows}
        with options.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
