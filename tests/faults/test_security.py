"""Attacks: checkpoints and YAML that would run code, open ports, and processes that outlive their run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import TILES, Command, wait_for
from distributed import Client
from distributed.security import Security

from daskembed.clusters.connection import connect
from daskembed.clusters.presets import preset_folder
from daskembed.encoders.loading import load_encoder
from daskembed.errors import CheckpointError, InputError
from daskembed.geo import mgrs as tiles

# Checkpoints that would run code


class Payload:
    """Unpickled the ordinary way, it makes a file with a shell command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


class Persistent(pickle.Unpickler):
    """The ordinary unpickler, which executes what it is told."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def text(value: str) -> bytes:
    """A string as a pickle has it."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, arguments, REDUCE."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def python_of(proof: Path) -> bytes:
    return text(f"open({str(proof)!r}, 'w')")


def shell_of(proof: Path) -> bytes:
    return text(f"touch {proof}")


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda proof: call("os", "system", shell_of(proof)),
    "posix.system": lambda proof: call("posix", "system", shell_of(proof)),
    "builtins.eval": lambda proof: call("builtins", "eval", python_of(proof)),
    "__builtin__.eval": lambda proof: call("__builtin__", "eval", python_of(proof)),
    "builtins.exec": lambda proof: call("builtins", "exec", python_of(proof)),
    "builtins.getattr": lambda proof: (
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
        + b"("
        + shell_of(proof)
        + b"tR"
    ),
    "STACK_GLOBAL": lambda proof: text("os") + text("system") + b"\x93(" + shell_of(proof) + b"tR",
    "INST": lambda proof: b"(" + shell_of(proof) + b"ios\nsystem\n",
    "OBJ": lambda proof: b"(cbuiltins\nexec\n" + python_of(proof) + b"o",
    "subprocess.call": lambda proof: call("subprocess", "call", b"](" + text("touch") + text(str(proof)) + b"e"),
    "pickle in a pickle": lambda proof: call(
        "pickle", "loads", b"c_codecs\nencode\n(" + text(f"cos\nsystem\n(Vtouch {proof}\ntR.") + text("latin1") + b"tR"
    ),
    "in a dict's key": lambda proof: b"}" + call("os", "system", shell_of(proof)) + b"K\x01s",
    "in a tensor's arguments": lambda proof: call(
        "torch._utils", "_rebuild_tensor_v2", call("os", "system", shell_of(proof))
    ),
    "in a persistent id": lambda proof: b"(" + text("storage") + call("os", "system", shell_of(proof)) + b"tQ",
    "behind a plain value": lambda proof: b"K\x010" + call("os", "system", shell_of(proof)),
}
"""What runs code in the ordinary unpickler, without the first two bytes and the last."""

TRICKS: dict[str, bytes] = {
    "rebuild by os.system": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        b"cos\nsystem\n",
        b"ctorch\nTensor\n",
        b"(" + text("true") + b"t",
        b"}",
    ),
    "rebuild by eval": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        b"cbuiltins\neval\n",
        b"ctorch\nTensor\n",
        b"(" + text("1") + b"t",
        b"}",
    ),
    "rebuild to another type": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"cio\nFileIO\n",
        b"(" + text("x") + b"t",
        b"}",
    ),
    "a subclass": call(
        "torch._utils",
        "_rebuild_wrapper_subclass",
        b"csubprocess\nPopen\n",
        b"Nctorch\nfloat32\n",
        b"(K\x01t(K\x01tK\x00N",
    ),
    "a dotted name": call("torch._utils", "sys.modules.get", text("os")),
    "another function of an allowed module": call("torch._utils", "_import_dotted_name", text("os.system")),
    "torch.load": call("torch", "load", text("/etc/passwd")),
    "torch.hub.load": call("torch.hub", "load", text("a/b"), text("c")),
    "torch.ops.load_library": call("torch", "ops.load_library", text("/tmp/x.so")),
    "a state that is set": b"ctorch\nTensor\n(t\x81}" + text("__class__") + b"cos\nsystem\nsb",
    "an extension": b"\x82\x01)R",
    "a storage of a foreign type": b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x04tQ",
    "no end of marks": b"(" * 1000,
    "no stack": b"R",
    "a memo that is not there": b"h\x07",
}
"""What goes for the functions that torch allows."""


def write_zip(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file, contextlib.suppress(UserWarning):
        for name, data in members:
            file.writestr(name, data)


def torch_zip(path: Path, pickled: bytes) -> None:
    write_zip(
        path,
        ("archive/data.pkl", pickled),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(16)),
        ("archive/version", b"3\n"),
    )


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_encoder(str(path), precision="fp32")
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_runs_code(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "payload-ran"
    pickled = b"\x80\x02" + PICKLES[name](proof) + b"."
    for suffix in ("ckpt", "safetensors"):
        path = tmp_path / f"a.{suffix}"
        torch_zip(path, pickled)
        assert "refused" in refusal(path) or "damaged checkpoint" in refusal(path)
        path.write_bytes(pickled)
        assert "bare pickle, which could execute code" in refusal(path)
    torch_zip(path, b"\x80\x02}" + text("state_dict") + b"}" + text("model.encoder.a") + pickled[2:-1] + b"ss.")
    refusal(path)
    assert not proof.exists()
    # It is a real one.
    with contextlib.suppress(Exception):
        Persistent(io.BytesIO(pickled)).load()
    wait_for(proof.exists, 10)


@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_with_what_torch_allows(tmp_path: Path, name: str) -> None:
    torch_zip(tmp_path / "a.ckpt", b"\x80\x02" + TRICKS[name] + b".")
    refusal(tmp_path / "a.ckpt")
    torch_zip(tmp_path / "a.ckpt", b"\x80\x02}" + text("state_dict") + TRICKS[name] + b"s.")
    refusal(tmp_path / "a.ckpt")


@pytest.fixture
def evil(tmp_path: Path) -> bytes:
    """A pickle that would make the file ``payload-ran``."""
    return pickle.dumps(Payload(tmp_path / "payload-ran"), 2)


@pytest.fixture
def good() -> bytes:
    """The pickle of a state dict without tensors."""
    return pickle.dumps({"state_dict": {}}, 2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("first", ["evil", "good"])
def test_zip_with_two_pickles(tmp_path: Path, evil: bytes, good: bytes, first: str) -> None:
    one, two = (evil, good) if first == "evil" else (good, evil)
    for names in (
        ("archive/data.pkl", "archive/data.pkl"),
        ("archive/data.pkl", "archive/other.pkl"),
        ("archive/data.pkl", "data.pkl"),
        ("archive/data.pkl", "archive/constants.pkl"),
        ("archive/data.pkl", "../archive/data.pkl"),
    ):
        write_zip(tmp_path / "a.ckpt", (names[0], one), (names[1], two), ("archive/version", b"3\n"))
        refusal(tmp_path / "a.ckpt")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize(
    "name", ["../../data.pkl", "/tmp/archive/data.pkl", "archive/../data.pkl", "data.pkl", "a/./data.pkl"]
)
def test_zip_with_odd_names_is_written_nowhere(tmp_path: Path, evil: bytes, name: str) -> None:
    folder = tmp_path / "x" / "y"
    folder.mkdir(parents=True)
    write_zip(folder / "a.ckpt", (name, evil), ("archive/version", b"3\n"))
    refusal(folder / "a.ckpt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.ckpt", "x", "y"]
    assert not Path("/tmp/archive").exists()


def write_tar(path: Path, evil: bytes) -> None:
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            file.addfile(info, io.BytesIO(evil))


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_formats_of_old_and_files_of_two_formats(tmp_path: Path, evil: bytes, good: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_tar(path, evil)
    refusal(path)
    tar = path.read_bytes()
    torch.save({"state_dict": {"a": Payload(tmp_path / "payload-ran")}}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    refusal(path)
    torch_zip(path, good)
    whole = path.read_bytes()
    # A zip is found by its end, the others by their beginning.
    for front in (tar, old, evil, b"\0" * 512):
        path.write_bytes(front + whole)
        refusal(path)
    for header in (evil, b"{" + evil):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        refusal(path)
    assert not (tmp_path / "payload-ran").exists()


# Checkpoints that promise more than they have


def tensor(shape: bytes, elements: bytes = b"K\x04", key: str = "0") -> bytes:
    """A float32 tensor of this shape in a storage of 16 bytes, which may claim to have more elements."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + elements + b"tQ"
    return call("torch._utils", "_rebuild_tensor_v2", storage, b"K\x00", shape, b"K\x01\x85", b"\x89", b"}")


HUGE = b"\x8a\x06" + (10**13).to_bytes(6, "little")
GREEDY: dict[str, bytes] = {
    "a storage beyond its record": tensor(HUGE + b"\x85", HUGE),
    "a storage a little beyond its record": tensor(b"K\x05\x85", b"K\x05"),
    "a storage without a record": tensor(b"K\x04\x85", key="1"),
    "a record outside": tensor(b"K\x04\x85", key="../../../etc/passwd"),
    "a tensor beyond its storage": tensor(HUGE + b"\x85"),
    "a negative size": tensor(b"J\xff\xff\xff\xff\x85"),
    "a tensor without values": call(
        "torch._utils",
        "_rebuild_meta_tensor_no_storage",
        b"ctorch\nfloat32\n",
        b"M\x00\x03\x85",
        b"K\x01\x85",
        b"\x89",
    ),
    "a tensor of no memory": call("torch", "FloatTensor", HUGE),
    "bytes": call("builtins", "bytearray", b"\x8a\x07" + (10**16).to_bytes(7, "little")),
    "a string beyond the end": b"X\xff\xff\xff\x7fabc",
    "integers": b"\x8b\xff\xff\xff\x7f\x01",
}


@pytest.mark.parametrize("name", GREEDY)
def test_promises_of_a_pickle(tmp_path: Path, name: str) -> None:
    path, before = tmp_path / "a.ckpt", psutil.Process().memory_info().rss
    key = text("model.encoder.transformer.norm.weight")
    torch_zip(path, b"\x80\x02}" + text("state_dict") + b"}" + key + GREEDY[name] + b"ss.")
    refusal(path)
    assert psutil.Process().memory_info().rss < before + 2**28


@pytest.mark.parametrize("kind", ["meta", "sparse", "integers", "complex", "quantized"])
def test_weights_that_are_no_numbers_to_compute_with(tmp_path: Path, kind: str) -> None:
    plain = torch.zeros(256)
    with contextlib.suppress(UserWarning):
        odd = {
            "meta": lambda: plain.to("meta"),
            "sparse": plain.to_sparse,
            "integers": plain.int,
            "complex": lambda: plain.to(torch.complex64),
            "quantized": lambda: torch.quantize_per_tensor(plain, 1.0, 0, torch.qint8),
        }[kind]()
    torch.save({"state_dict": {"model.encoder.transformer.norm.weight": odd}}, tmp_path / "a.ckpt")
    assert "something else than dense floating-point numbers under model.encoder.transformer.norm.weight" in refusal(
        tmp_path / "a.ckpt"
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_that_grows(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "a.ckpt"
    members = [("archive/data.pkl", good), ("archive/version", b"3\n"), ("archive/data/0", bytes(2**26))]
    write_zip(path, *members, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    assert "promises 671" in refusal(path)
    # The same bytes under many names.
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [("archive/data.pkl", good), ("archive/data/0", bytes(2**16))]:
            file.writestr(name, data)
        file.filelist += file.filelist[-1:] * 1000
    assert "promises 65" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {"a": {"dtype": "O", "shape": [2], "data_offsets": [0, 16]}},
    ],
)
def test_promises_of_a_safetensors_header(tmp_path: Path, header: dict[str, Any]) -> None:
    path, encoded = tmp_path / "a.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(16))
    assert "damaged safetensors file" in refusal(path)
    path.write_bytes(struct.pack("<Q", 2**62) + encoded + bytes(16))
    refusal(path)


@pytest.mark.parametrize("hidden", ["get", "items", "keys", "__iter__"])
def test_dict_whose_methods_are_hidden(tmp_path: Path, hidden: str) -> None:
    ordered = b"ccollections\nOrderedDict\n)R"
    inner = ordered + b"}" + text(hidden) + b"K\x01sb"
    torch_zip(tmp_path / "a.ckpt", b"\x80\x02" + inner + b".")
    assert "has no state_dict" in refusal(tmp_path / "a.ckpt")
    torch_zip(tmp_path / "a.ckpt", b"\x80\x02}" + text("state_dict") + inner + b"s.")
    refusal(tmp_path / "a.ckpt")


def test_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    for name in ("\x1b]0;owned\x07", "a\nb", "\r\x1b[2K", "x" * 10_000, "model.encoder.\x1b[31m", "\u202egnp"):
        torch.save({"state_dict": {name: torch.zeros(1)}}, tmp_path / "a.ckpt")
        refusal(tmp_path / "a.ckpt")
        torch.save({name: torch.zeros(1)}, tmp_path / "a.ckpt")
        refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("times", [400, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_bytes_changed_at_random(tmp_path: Path, times: int) -> None:
    chance, path = random.Random(times), tmp_path / "a.ckpt"
    torch.save({"state_dict": {"model.encoder.a": torch.ones(3), "model.encoder.b": torch.zeros(2)}}, path)
    whole = path.read_bytes()
    for _ in range(times):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        refusal(path)


# YAML

EVIL_YAML = "!!python/object/apply:os.system ['touch {proof}']"


@pytest.mark.parametrize(
    "document",
    ["{evil}\n", "class: {evil}\n", "class: distributed.LocalCluster\narguments:\n  name: {evil}\n", "? {evil}\n: 1\n"],
)
def test_cluster_file_with_python_in_it(tmp_path: Path, document: str) -> None:
    proof, path = tmp_path / "payload-ran", tmp_path / "mine.yaml"
    path.write_text(document.format(evil=EVIL_YAML.format(proof=proof)))
    with (
        pytest.raises(InputError, match=r"mine.yaml is refused: .*python/object.*plain values only"),
        connect(str(path)),
    ):
        pass
    assert not proof.exists()
    # It is a real one.
    yaml.unsafe_load(path.read_text())
    assert proof.exists()


def test_tiles_file_with_python_in_it(tmp_path: Path) -> None:
    proof, path = tmp_path / "payload-ran", tmp_path / "tiles.yaml"
    path.write_text(f"- {EVIL_YAML.format(proof=proof)}\n")
    with pytest.raises(InputError, match="is not an MGRS tile id"):
        tiles.read_tiles(str(path))
    assert not proof.exists()


def test_configuration_with_python_in_it(tmp_path: Path) -> None:
    proof, folder = tmp_path / "payload-ran", tmp_path / "dask"
    folder.mkdir()
    (folder / "daskembed.yaml").write_text(f"daskembed:\n  level: {EVIL_YAML.format(proof=proof)}\n")
    done = subprocess.run(
        [sys.executable, "-m", "daskembed", "run", "--tiles", "33TUL", "--output", str(tmp_path / "out")],
        env=os.environ | {"DASK_CONFIG": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("daskembed: ")
    assert str(folder / "daskembed.yaml") in done.stderr
    assert "python/object" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not proof.exists()


# Open ports


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses and ports on which a process and its children listen."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {
                (c.laddr.ip, c.laddr.port) for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN
            }
    return found


@pytest.mark.parametrize("preset", ["local", "local-cuda"])
def test_nothing_listens_to_other_machines(tmp_path: Path, preset: str) -> None:
    description = yaml.safe_load(preset_folder().joinpath(f"{preset}.yaml").read_text())
    if preset == "local-cuda":
        # Its class needs a GPU and is a kind of this one.
        description["class"] = "distributed.LocalCluster"
    description.setdefault("arguments", {})["n_workers"] = 1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(description))
    with connect(str(tmp_path / "mine.yaml")) as client:
        client.wait_for_workers(1, timeout=60)
        found = listening(psutil.Process())
        # Scheduler, dashboard, nanny and worker.
        assert len(found) >= 4
        assert {ip for ip, _ in found} <= {"127.0.0.1", "::1"}


def test_listen_is_for_clusters_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text("class: distributed.SSHCluster\narguments: {hosts: [nowhere.invalid]}\n")
    for flag, asked in (("`listen`", {"listen": "0.0.0.0"}), ("`tls`", {"tls": True})):
        for cluster in ("tcp://127.0.0.1:1", "tls://127.0.0.1:1", str(tmp_path / "far.yaml")):
            with (
                pytest.raises(InputError, match=f"{flag} is for a cluster that is started on this machine") as error,
                connect(cluster, **asked),  # type: ignore[arg-type]
            ):
                pass
            assert cluster in str(error.value)


LISTENING = """
import sys, psutil
from daskembed.clusters.connection import connect

if __name__ == "__main__":
    with connect(sys.argv[1], listen=sys.argv[2]) as client:
        client.wait_for_workers(1, timeout=60)
        me = psutil.Process()
        connections = [c for each in [me, *me.children(recursive=True)] for c in each.net_connections("inet")]
        print(*{c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN})
"""


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_listen_says_what_it_means(tmp_path: Path, host: str, warned: bool) -> None:
    (tmp_path / "script.py").write_text(LISTENING)
    (tmp_path / "mine.yaml").write_text("class: daskembed.clusters.local\narguments: {n_workers: 1}\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "mine.yaml"), host],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [host]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: anyone who reaches tcp://")]
    assert len(warnings) == warned
    assert all("can execute code as you: use `tls=True`" in warning for warning in warnings)


# TLS


def speaks_tls(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain):
            return True
    except (ssl.SSLError, ConnectionError):
        return False


def speaks_http(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            return plain.recv(5) == b"HTTP/"
    return False


def test_a_run_with_tls(command: Command, undisturbed: dict[str, str]) -> None:
    process = command.start("--tls")
    try:
        wait_for(lambda: command.encoded or process.poll() is not None)
        ports = [port for _, port in listening(psutil.Process(process.pid))]
        # Their pages; a page would wait for the end of a TLS greeting.
        rest = [port for port in ports if not speaks_http(port)]
        # Scheduler, nanny and worker.
        assert len(rest) >= 3
        assert all(speaks_tls(port) for port in rest)
    finally:
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "warning" not in text
    assert command.files == undisturbed


def write_certificates(folder: Path) -> dict[str, str]:
    """Certificates in files, and the environment that names them to Dask."""
    folder.mkdir()
    made = Security.temporary()
    names = {"ca.pem": made.tls_ca_file, "cert.pem": made.tls_client_cert, "key.pem": made.tls_client_key}
    for name, content in names.items():
        (folder / name).write_text(content)
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    roles = {
        f"{tls}{role}__{kind.upper()}": str(folder / f"{kind}.pem")
        for role in ("CLIENT", "SCHEDULER", "WORKER")
        for kind in ("cert", "key")
    }
    return roles | {f"{tls}CA_FILE": str(folder / "ca.pem")}


def test_nobody_without_its_certificates_comes_in(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("class: daskembed.clusters.local\narguments: {n_workers: 0}\n")
    with connect(str(tmp_path / "mine.yaml"), tls=True) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(InputError, match="no Dask scheduler answers"), connect(address.replace("tls:", "tcp:")):
            pass
        with pytest.raises(InputError, match="ca-file is not set in Dask's configuration"), connect(address):
            pass
        with pytest.raises(OSError, match="certificate"):
            Client(address, security=Security.temporary(), timeout="10s", set_as_default=False)


def test_scheduler_elsewhere_with_certificates_in_files(
    command: Command, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    certificates = write_certificates(tmp_path / "tls")
    quiet: dict[str, Any] = {
        "env": os.environ
        | certificates
        | {
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "COUNTING_LOG": str(command.log),
            "DASK_DASKEMBED__TORCH_THREADS": "1",
        },
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    dask, file = [sys.executable, "-m", "distributed.cli.dask_scheduler"], tmp_path / "scheduler.json"
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*dask, *here, "--protocol", "tls", "--port", "0", "--scheduler-file", str(file)], **quiet
    )
    processes = [scheduler]
    try:
        wait_for(lambda: file.exists() and file.stat().st_size)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, *here, "--protocol", "tls"]
        processes.append(subprocess.Popen([*worker, "--nthreads", "2", "--death-timeout", "5"], **quiet))
        command.env |= certificates
        status, text = command.run("--cluster", address)
        assert status == 0, text
        assert command.files == undisturbed
    finally:
        for each in processes:
            each.terminate()
            each.wait(30)


# Processes that outlive their run


def session_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes of a command's session but those that are dead and not yet reaped."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(each.pid) == process.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


@pytest.fixture
def started(command: Command) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command; whatever is left of it is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> subprocess.Popen[str]:
        processes.append(command.start(*flags))
        return processes[-1]

    yield start
    for process in processes:
        for each in session_of(process):
            each.kill()
        process.communicate()


def test_sigterm_is_a_ctrl_c(command: Command, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(lambda: 0 < command.left <= sum(TILES.values()) - 4 or process.poll() is not None)
    process.terminate()
    text, _ = process.communicate(timeout=120)
    wait_for(lambda: session_of(process) == [], 30)
    assert process.returncode == 130, text
    assert "the same command goes on from here" in text
    assert "Traceback" not in text
    assert not (command.output / "_daskembed/running_v001.json").exists()
    assert 0 < command.left < sum(TILES.values())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("number", "to", "times"),
    [
        (signal.SIGTERM, "group", 1),
        *(
            pytest.param(number, to, 15, marks=pytest.mark.long)
            for number in (signal.SIGTERM, signal.SIGKILL)
            for to in ("command", "group")
        ),
    ],
)
def test_a_signal_at_any_time_leaves_no_process(
    command: Command,
    started: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
    to: str,
    times: int,
) -> None:
    chance = random.Random(f"{number} {to} {times}")
    for _ in range(times):
        process = started()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Starting takes about seven seconds, the work five.
            process.communicate(timeout=chance.uniform(0.5, 11))
        with contextlib.suppress(ProcessLookupError):
            (os.kill if to == "command" else os.killpg)(process.pid, number)
        text, _ = process.communicate(timeout=120)
        # Before the command is there to hear it, a signal does what it does to any process.
        assert process.returncode in (0, 130, -number), text
        wait_for(lambda process=process: session_of(process) == [], 30)


def test_workers_end_with_a_killed_command(command: Command, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(lambda: command.encoded >= 2 or process.poll() is not None)
    assert len(session_of(process)) >= 2
    process.kill()
    wait_for(lambda: session_of(process) == [], 30)


@pytest.mark.parametrize("fails", ["the start of a worker", "the run"])
def test_a_failure_leaves_no_process(
    command: Command, started: Callable[..., subprocess.Popen[str]], tmp_path: Path, fails: str
) -> None:
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "class": "daskembed.clusters.local",
                "arguments": {"preload": ["raise RuntimeError('no')"]} if fails == "the start of a worker" else {},
            }
        )
    )
    command.output.mkdir()
    if fails == "the run":
        # Refused once there is a cluster.
        (command.output / "33TUL_20190416_20190416_v001.gpq").write_bytes(b"not Parquet")
    process = started("--cluster", str(tmp_path / "mine.yaml"))
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2, text
    wait_for(lambda: session_of(process) == [], 30)
