"""Checkpoints: fetched once, refused with a reason, never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
import safetensors.torch
import torch

from daskembed.encoders import clay_v0, clay_v1_5
from daskembed.encoders.checkpoint import inspect_checkpoint, is_here, load_state, recognise
from daskembed.encoders.loading import load_encoder
from daskembed.encoders.protocol import Encoder
from daskembed.encoders.untrained import untrained_state
from daskembed.errors import CheckpointError, InputError
from daskembed.testing import write_checkpoint

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The weights of untrained:tiny:0 as a Lightning checkpoint; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


@pytest.fixture
def state() -> State:
    """The weights of untrained:tiny:0 under the names of a checkpoint."""
    return {f"model.encoder.{name}": tensor for name, tensor in untrained_state(clay_v0, "tiny", 0).items()}


@pytest.fixture
def cache(tmp_path) -> Iterator[Path]:
    """The folder that downloads are kept in."""
    folder = tmp_path / "cache" / "of checkpoints"
    with dask.config.set({"daskembed.cache": str(folder)}):
        yield folder


def save(path: Path, state: object) -> str:
    torch.save({"epoch": 0, "state_dict": state, "hyper_parameters": {}}, path)
    return str(path)


def refusal(location: str | Path) -> str:
    """What a checkpoint is refused with, in one line that names it."""
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(str(location), clay_v0)
    message = str(error.value)
    assert str(location) in message
    assert "\n" not in message
    return message


# --- What is accepted ---------------------------------------------------------------


def test_description_of_a_checkpoint(checkpoint):
    encoder = load_encoder(str(checkpoint), precision="fp32", batch_size=3, readers=5)
    assert (encoder.name, encoder.checkpoint, encoder.size) == ("clay-v0", str(checkpoint), "tiny")
    assert encoder.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (encoder.precision, encoder.batch_size, encoder.readers) == ("fp32", 3, 5)
    assert not encoder.untrained


def test_both_formats_give_the_same_state(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "tiny.safetensors")
    expected = untrained_state(clay_v0, "tiny", 0)
    for path in (checkpoint, other):
        found = load_state(load_encoder(str(path), precision="fp32"), clay_v0)
        assert sorted(found) == sorted(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == torch.float32
            assert torch.equal(found[name], tensor), name


def test_format_is_seen_in_the_content_not_the_name(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other.safetensors").rename(tmp_path / "other.ckpt")
    renamed = tmp_path / "tiny.safetensors"
    renamed.symlink_to(checkpoint)
    assert inspect_checkpoint(str(other), clay_v0)[2] == "tiny"
    assert inspect_checkpoint(str(renamed), clay_v0)[2] == "tiny"


def test_decoder_is_ignored(state, tmp_path):
    state |= {"model.decoder.mask_patch": torch.zeros(512), "model.decoder.cls_token": torch.zeros(1)}
    found = load_state(load_encoder(save(tmp_path / "a.ckpt", state), precision="fp32"), clay_v0)
    assert set(found) == set(clay_v0.parameter_shapes("tiny"))


def test_half_precision_is_widened(state, tmp_path):
    half = {name: tensor.half() for name, tensor in state.items()}
    found = load_state(load_encoder(save(tmp_path / "a.ckpt", half), precision="fp32"), clay_v0)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    name = "transformer.norm.weight"
    assert torch.equal(found[name], half[f"model.encoder.{name}"].float())


def test_spellings_of_a_local_path(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    found = {inspect_checkpoint(p, clay_v0) for p in ("tiny.ckpt", "~/tiny.ckpt", f"file://{checkpoint}")}
    assert found == {inspect_checkpoint(str(checkpoint), clay_v0)}


def test_another_file_at_the_same_place_is_noticed(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt", seed=0)
    encoder = load_encoder(str(path), precision="fp32")
    write_checkpoint(path, seed=1)
    other = hashlib.sha256(path.read_bytes()).hexdigest()
    message = (
        f"differs between machines: SHA-256 {other[:12]} here, {str(encoder.sha256)[:12]} where the run was started"
    )
    with pytest.raises(CheckpointError, match=message):
        load_state(encoder, clay_v0)


# --- What could execute code --------------------------------------------------------


class Payload:
    """Makes a folder when unpickled the ordinary way."""

    def __init__(self, folder: Path, call: Callable[..., object]) -> None:
        self.folder, self.call = str(folder), call

    def __reduce__(self) -> tuple:
        if self.call is eval:
            return eval, (f"__import__('os').mkdir({self.folder!r})",)
        return self.call, (self.folder,)


PLACES = {
    "top level": lambda state, payload: {"state_dict": state, "hyper_parameters": {"model_size": payload}},
    "ignored key": lambda state, payload: {"state_dict": {**state, "model.decoder.extra": payload}},
    "in place of all": lambda state, payload: payload,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("call", "name"), [(os.makedirs, "os.makedirs"), (eval, "eval")])
def test_payload_in_a_checkpoint_is_not_run(state, tmp_path, place, call, name):
    path, proof = tmp_path / "a.ckpt", tmp_path / "payload ran"
    torch.save(PLACES[place](state, Payload(proof, call)), path)
    message = refusal(path)
    assert not proof.exists()
    assert message == (
        f"{path} would execute code when loaded ({name}): refused. A checkpoint holds tensors and plain values only; "
        "save its state_dict alone, or as .safetensors"
    )
    # It is a real one.
    torch.load(path, weights_only=False)
    assert proof.is_dir()


def test_payload_under_the_name_of_the_other_format_is_not_run(tmp_path):
    path, proof = tmp_path / "a.safetensors", tmp_path / "payload ran"
    torch.save(Payload(proof, os.makedirs), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").rename(path)
    refusal(path)
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_bare_pickle(tmp_path, protocol):
    path, proof = tmp_path / "a.ckpt", tmp_path / "payload ran"
    path.write_bytes(pickle.dumps(Payload(proof, os.makedirs), protocol))
    assert "is a bare pickle, which could execute code: expected a zip as torch.save writes it" in refusal(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.is_dir()


def test_torch_file_of_old(state, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    assert "is a bare pickle, which could execute code" in refusal(path)


# --- What is no checkpoint, or damaged ----------------------------------------------


def write_torch_zip(path: Path, pickled: bytes) -> None:
    """A zip as torch.save writes it, with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (
            b"<!DOCTYPE html><html>Sign in</html>",
            "is an HTML or XML page, not a checkpoint: the server answered with an",
        ),
        (b'\n  <?xml version="1.0"?><Error/>', "is an HTML or XML page, not a checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer, not the file itself: fetch",
        ),
        (b"", "is no checkpoint: it starts with b''; expected a Lightning .ckpt or a .safetensors file"),
        (b"II*\0" + bytes(600), r"is no checkpoint: it starts with b'II*\x00\x00"),
        (b"{}", "is no checkpoint: it starts with b'{}'"),
    ],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_other_content(tmp_path, data, what, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    assert refusal(path).startswith(f"{path} {what}")


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.999])
def test_truncated_zip(checkpoint, tmp_path, share):
    data = checkpoint.read_bytes()
    path = tmp_path / "a.ckpt"
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path) == f"{path} is a truncated zip: download it again"


@pytest.mark.parametrize("cut", [1, 1000, 20_000_000])
def test_truncated_safetensors(tmp_path, cut):
    path = write_checkpoint(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-cut])
    assert refusal(path).startswith(f"{path} is a damaged safetensors file: ")


def test_zip_of_something_else(tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "<text/>")
    assert refusal(path).startswith(f"{path} is a damaged checkpoint: ")


def test_damaged_in_the_middle(tmp_path):
    # Wherever its pickle ends or is overwritten, the checkpoint is refused as one.
    buffer = io.BytesIO()
    torch.save({"state_dict": {"model.encoder.a": torch.zeros(2), "model.encoder.b": torch.ones(3)}}, buffer)
    with zipfile.ZipFile(buffer) as file:
        (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        good = file.read(name)
    path = tmp_path / "a.ckpt"
    write_torch_zip(path, b"\x80\x02.")
    refusal(path)
    for end in range(0, len(good), 3):
        write_torch_zip(path, good[:end])
        refusal(path)
        write_torch_zip(path, good[:end] + b"." + good[end + 1 :])
        refusal(path)


def test_missing_file(tmp_path):
    message = refusal(tmp_path / "absent.ckpt")
    assert message.startswith(
        f"no checkpoint {tmp_path}/absent.ckpt: give a .ckpt or .safetensors file or URL, or untr"
    )
    assert refusal(tmp_path) == f"no checkpoint {tmp_path}" + message.removeprefix(
        f"no checkpoint {tmp_path}/absent.ckpt"
    )


# --- What is a checkpoint of something else -----------------------------------------


def test_missing_keys(state, tmp_path):
    names = [f"model.encoder.transformer.layers.{i}.1.net.4.bias" for i in range(4)] + [
        "model.encoder.time_embedding.bias"
    ]
    for name in names[-1:]:
        del state[name]
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path) == f"{path} does not fit Clay v0 tiny: 1 keys are missing: {names[-1]}"
    for name in names[:-1]:
        del state[name]
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path) == (
        f"{path} does not fit Clay v0 tiny: 5 keys are missing: {', '.join([names[-1], *names[:3]])} and 1 more"
    )


def test_extra_keys(state, tmp_path):
    state["model.encoder.transformer.layers.0.0.to_qkv.bias"] = torch.zeros(768)
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path) == (
        f"{path} does not fit Clay v0 tiny: 1 keys are unknown: model.encoder.transformer.layers.0.0.to_qkv.bias"
    )


@pytest.mark.parametrize("shape", [(256, 2, 32, 32), (256, 3, 16, 16), (3,), ()])
def test_misshapen_keys(state, tmp_path, shape):
    state["model.encoder.patch_embedding.rgb.proj.weight"] = torch.zeros(shape)
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path) == (
        f"{path} does not fit Clay v0 tiny: 1 have the wrong shape: model.encoder.patch_embedding.rgb.proj.weight is "
        f"{shape}, expected (256, 3, 32, 32)"
    )


def test_all_that_is_wrong_is_said_at_once(state, tmp_path):
    del state["model.encoder.latlon_embedding.bias"]
    state["model.encoder.surprise"] = torch.zeros(1)
    state["model.encoder.time_embedding.bias"] = torch.zeros(255)
    message = refusal(save(tmp_path / "a.ckpt", state))
    assert "1 keys are missing: model.encoder.latlon_embedding.bias; " in message
    assert "1 keys are unknown: model.encoder.surprise; " in message
    assert message.endswith("1 have the wrong shape: model.encoder.time_embedding.bias is (255,), expected (256,)")


@pytest.mark.usefixtures("released_sizes")
def test_unknown_size(state, tmp_path):
    del state["model.encoder.transformer.layers.3.0.to_qkv.weight"]
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path).startswith(
        f"{path} has dim 256 and 3 layers, which is no size of Clay v0; expected one of "
        "tiny (256, 4), small (768, 12), medium (1024, 24), large (1280, 32)"
    )


@pytest.mark.parametrize("tensor", [torch.zeros(()), torch.zeros(0)], ids=["scalar", "empty"])
def test_norm_that_tells_no_size(state, tmp_path, tensor):
    state["model.encoder.transformer.norm.weight"] = tensor
    assert "which is no size of Clay v0" in refusal(save(tmp_path / "a.ckpt", state))


@pytest.mark.parametrize("key", ["cls_token", "patch_embedding.weight_generator.weight_tokens"])
def test_clay_v1(tmp_path, key):
    path = save(tmp_path / "v1.5.ckpt", {f"model.encoder.{key}": torch.zeros(1), "model.decoder.x": torch.zeros(1)})
    assert refusal(path) == (
        f"{path} is a Clay v1 or v1.5 checkpoint (it has model.encoder.{key}); expected Clay v0: give a checkpoint of "
        "it, or choose the encoder that this one is of"
    )


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.teacher."])
def test_keys_of_another_model(state, tmp_path, prefix):
    foreign = {prefix + name.removeprefix("model.encoder."): tensor for name, tensor in state.items()}
    first = next(iter(foreign))
    message = refusal(save(tmp_path / "a.ckpt", foreign))
    assert message.startswith(f"{tmp_path}/a.ckpt has keys that are not model.encoder.*: {first}, ")
    assert message.endswith("and 70 more; expected a Clay v0 checkpoint")


def test_keys_that_are_no_text(tmp_path):
    refusal(save(tmp_path / "a.ckpt", {0: torch.zeros(1)}))


def test_values_that_are_no_tensors(state, tmp_path):
    state["model.encoder.time_embedding.bias"] = [0.0] * 256
    path = save(tmp_path / "a.ckpt", state)
    assert refusal(path) == f"{path} holds no tensor under model.encoder.time_embedding.bias"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": {}, "epoch": 3}, "model, epoch"),
        ({"state_dict": [1, 2]}, "state_dict"),
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        (OrderedDict({"model.encoder.latlon_embedding.bias": torch.zeros(3)}), "model.encoder.latlon_embedding.bias"),
    ],
)
def test_no_state_dict(tmp_path, content, found):
    path = tmp_path / "a.ckpt"
    torch.save(content, path)
    assert refusal(path) == f"{path} has no state_dict: found {found}; expected a Lightning checkpoint"


# --- Clay v1.5 beside Clay v0 ---------------------------------------------------------

MODULES = {"clay-v0": clay_v0, "clay-v1.5": clay_v1_5}


@pytest.fixture(scope="module")
def state_v1_5() -> State:
    """The weights of untrained:tiny:0 of Clay v1.5 under the names of a checkpoint; not to be changed."""
    return {f"model.encoder.{name}": tensor for name, tensor in untrained_state(clay_v1_5, "tiny", 0).items()}


def write(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        save(path, state)
    return path


def encoder_of(path: Path) -> Encoder:
    """Of a Clay v1.5 checkpoint."""
    location, sha256, size = inspect_checkpoint(str(path), clay_v1_5)
    encoder = load_encoder("untrained:tiny", precision="fp32")
    return dataclasses.replace(encoder, name="clay-v1.5", checkpoint=location, sha256=sha256, size=size)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_encoder_of_a_file_is_recognised(state, state_v1_5, tmp_path, suffix):
    old, new = write(tmp_path / f"a.{suffix}", state), write(tmp_path / f"b.{suffix}", state_v1_5)
    for modules in (MODULES, dict(reversed(MODULES.items()))):
        assert recognise(str(old), modules) == "clay-v0"
        assert recognise(str(new), modules) == "clay-v1.5"
        assert recognise("untrained:tiny", modules) is None
    assert inspect_checkpoint(str(new), clay_v1_5)[2] == "tiny"


def test_damaged_file_is_recognised_by_what_it_has(state_v1_5, tmp_path):
    some = {name: tensor for name, tensor in state_v1_5.items() if "layers.3" not in name and "token" not in name}
    path = write(tmp_path / "a.ckpt", some)
    assert recognise(str(path), MODULES) == "clay-v1.5"
    with pytest.raises(CheckpointError, match=r"dim 192 and 5 layers, which is no size of Clay v1\.5; expected one"):
        inspect_checkpoint(str(path), clay_v1_5)


def test_file_of_no_encoder(tmp_path):
    path = write(tmp_path / "a.ckpt", {"backbone.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError) as error:
        recognise(str(path), MODULES)
    assert str(error.value) == f"{path} has no parameter of Clay v0 or Clay v1.5: found backbone.weight"


def test_one_encoder_s_file_given_as_the_other_s(state, state_v1_5, tmp_path):
    path = write(tmp_path / "a.ckpt", state_v1_5)
    assert refusal(path).startswith(f"{path} is a Clay v1 or v1.5 checkpoint (it has model.encoder.cls_token); ")
    path = write(tmp_path / "b.ckpt", state)
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(str(path), clay_v1_5)
    assert str(error.value) == (
        f"{path} is a Clay v0 checkpoint (it has model.encoder.latlon_embedding.weight); expected Clay v1.5: give a "
        "checkpoint of it, or choose the encoder that this one is of"
    )


def test_v1_0_is_known_by_its_teacher(state_v1_5, tmp_path):
    state = state_v1_5 | {"model.teacher.cls_token": torch.zeros(1, 1, 768)}
    with pytest.raises(
        CheckpointError, match=r"a Clay v1\.0 checkpoint \(it has model\.teacher\.cls_token \(1, 1, 768"
    ):
        inspect_checkpoint(str(write(tmp_path / "a.ckpt", state)), clay_v1_5)
    state["model.teacher.cls_token"] = torch.zeros(1, 1, 1024)
    assert inspect_checkpoint(str(write(tmp_path / "b.ckpt", state)), clay_v1_5)[2] == "tiny"


def test_training_s_tensors_are_ignored(state_v1_5, tmp_path):
    extra = ("decoder.mask_patch", "teacher.cls_token", "proj.weight", "mrl.layers.0.weight", "mrl_loss.weights")
    path = write(tmp_path / "a.ckpt", state_v1_5 | {f"model.{name}": torch.zeros(3) for name in extra})
    assert set(load_state(encoder_of(path), clay_v1_5)) == set(clay_v1_5.parameter_shapes("tiny"))


# --- Files that hold much else ----------------------------------------------------------


def with_teacher(path: Path, state: State, megabytes: int = 40) -> Path:
    return write(path, state | {"model.teacher.blocks": torch.ones(megabytes * 2**18)})


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_encoder_of_a_large_file_is_kept(state_v1_5, cache, tmp_path, suffix):
    half = {name: tensor.half() for name, tensor in state_v1_5.items()}
    path = with_teacher(tmp_path / f"a.{suffix}", half)
    encoder = encoder_of(path)
    assert not cache.exists()
    first = load_state(encoder, clay_v1_5)
    (kept,) = cache.iterdir()
    assert kept.name == f"{encoder.sha256}.encoder.safetensors"
    stored = safetensors.torch.load_file(kept)
    assert stored.keys() == half.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    path.unlink()  # from now on what was kept is all there is
    second = load_state(encoder, clay_v1_5)
    assert first.keys() == second.keys() == clay_v1_5.parameter_shapes("tiny").keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype == torch.float32
        assert torch.equal(tensor, half[f"model.encoder.{name}"].float())
        assert torch.equal(tensor, second[name])
    assert is_here(encoder)


def test_encoder_that_is_most_of_its_file_is_not_kept_twice(state_v1_5, cache, tmp_path):
    load_state(encoder_of(with_teacher(tmp_path / "a.ckpt", state_v1_5, megabytes=12)), clay_v1_5)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"<html>", lambda data: b""])
def test_damaged_copy_of_the_encoder_is_made_again(state_v1_5, cache, tmp_path, damage):
    encoder = encoder_of(with_teacher(tmp_path / "a.ckpt", state_v1_5))
    load_state(encoder, clay_v1_5)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(damage(good))
    found = load_state(encoder, clay_v1_5)
    assert torch.equal(found["cls_token"], state_v1_5["model.encoder.cls_token"])
    assert kept.read_bytes() == good


def test_copy_of_the_encoder_is_checked(state_v1_5, cache, tmp_path):
    encoder = encoder_of(with_teacher(tmp_path / "a.ckpt", state_v1_5))
    cache.mkdir(parents=True)
    name = "model.encoder.cls_token"
    write(cache / f"{encoder.sha256}.encoder.safetensors", state_v1_5 | {name: torch.zeros(1, 1, 3)})
    assert torch.equal(load_state(encoder, clay_v1_5)["cls_token"], state_v1_5[name])


def test_loaded_weights_outlive_a_change_of_the_file(state_v1_5, cache, tmp_path):
    # Also where they were float32 already.
    path = write(tmp_path / "a.safetensors", state_v1_5)
    found = load_state(encoder_of(path), clay_v1_5)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(found["cls_token"], state_v1_5["model.encoder.cls_token"])


def test_full_disk_does_not_keep_the_weights_from_loading(state_v1_5, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file, not a folder")
    with dask.config.set({"daskembed.cache": str(tmp_path / "cache")}):
        assert len(load_state(encoder_of(with_teacher(tmp_path / "a.ckpt", state_v1_5)), clay_v1_5)) == 85
    assert "the encoder's weights are not kept: " in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_values_of_a_large_file_stay_on_the_disk(state_v1_5, cache, tmp_path, suffix):
    path = with_teacher(tmp_path / f"a.{suffix}", state_v1_5, megabytes=400)

    def peak(act: Callable[[], object]) -> float:
        """MB that `act` adds to the resident memory at its highest."""
        Path("/proc/self/clear_refs").write_text("5")

        def read(name: str) -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name))

        before = read("VmRSS")
        act()
        return (read("VmHWM") - before) / 1000

    found = []
    assert peak(lambda: found.append(encoder_of(path))) < 60
    assert peak(lambda: recognise(str(path), MODULES)) < 60
    # The encoder has 16 MB.
    assert peak(lambda: load_state(found[0], clay_v1_5)) < 140


def test_refusals_are_input_errors():
    # The command turns these into one line and exit code 2.
    assert issubclass(CheckpointError, InputError)
