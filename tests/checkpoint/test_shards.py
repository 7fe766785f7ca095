"""Shards and their index: whatever is malformed or leads elsewhere is refused in one sentence."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import open_dir, refused

import k2ref
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint, CheckpointError
from scripts.checkpoints.small import (
    make_header,
    random_tensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

NORM = "model.layers.0.input_layernorm.weight"


def change_index(path, change):
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/hosts", "..", ".", "", "a/b", "a\\b", "a\0b", "\ud800"]
)
def test_an_index_may_only_name_files_of_its_directory(tmp_path, shard):
    write_checkpoint(tmp_path / "sound")
    shutil.copy(next((tmp_path / "sound").glob("model-*")), tmp_path / "model.safetensors")
    change_index(tmp_path / "sound", lambda index: index["weight_map"].update({NORM: shard}))
    refused(tmp_path / "sound", "index.json", "names of files in the directory", repr(shard))


def test_a_symlink_may_not_lead_out_of_the_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "sound")
    shard = next((tmp_path / "sound").glob("model-00002*"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "sound", shard.name, "a link to", "elsewhere")
    shard.unlink()
    shard.symlink_to(shard)
    refused(tmp_path / "sound", shard.name)


def test_the_hub_cache_links_into_its_own_blobs(tmp_path):
    snapshot = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    for other, is_sound in (("models--a--b", True), ("models--a--c", False)):
        blobs = tmp_path / other / "blobs"
        blobs.mkdir(parents=True)
        for file in snapshot.iterdir():
            if file.suffix in (".json", ".safetensors"):
                real = blobs / file.name[::-1]
                shutil.copy(file, real)
                file.unlink()
                file.symlink_to(os.path.relpath(real, snapshot))
        if is_sound:
            open_dir(snapshot).close()
        else:
            refused(snapshot, "a link to", "models--a--c")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"), ("{", "JSON"), ("[]", "object"), ("{}", "weight_map"), ("[" * 10**5, "JSON"),
        ('{"weight_map": {}}', "weight_map"), ('{"weight_map": {"a": 1}}', "not a string"),
        ('{"weight_map": {"a": ["x"]}}', "not a string"),
        ('{"weight_map": {"a": "x", "a": "x"}}', "'a' 2 times"),
        ('{"weight_map": {"a": "x"}, "weight_map": {"a": "x"}}', "'weight_map' 2 times"),
        ('{"weight_map": {"a": "no-such-file"}}', "no-such-file"),
        ('{"weight_map": {"a": "folder"}}', "regular file"),
        ('{"weight_map": {"a": "config.json"}}', "header"),
    ],
)  # fmt: skip
def test_malformed_indices_are_refused(tmp_path, text, word):
    write_checkpoint(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, word)


def test_index_and_shards_must_agree(tmp_path):
    write_checkpoint(tmp_path)
    other = "model-00001-of-000002.safetensors"
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    moved = next(name for name, shard in weight_map.items() if shard != other)
    change_index(tmp_path, lambda index: index["weight_map"].update({moved: other}))
    refused(tmp_path, weight_map[moved], repr(moved), other)
    change_index(tmp_path, lambda index: index["weight_map"].pop(moved))
    refused(tmp_path, weight_map[moved], repr(moved), "in model.safetensors.index.json, too")
    change_index(tmp_path, lambda i: i["weight_map"].update({moved: weight_map[moved], "x": other}))
    refused(tmp_path, other, "'x'", "none")


def test_a_missing_shard_or_an_empty_directory_is_refused(tmp_path):
    write_checkpoint(tmp_path)
    os.unlink(tmp_path / "model-00002-of-000002.safetensors")
    refused(tmp_path, "model-00002-of-000002.safetensors")
    os.unlink(tmp_path / "model.safetensors.index.json")
    refused(tmp_path, "neither")


SMALL = {**tiny_config("moonlight"), "num_hidden_layers": 1, "vocab_size": 8, "hidden_size": 4,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
SMALL_TENSORS = random_tensors(Config.from_dict(SMALL), seed=0)


def open_small(path, **written):
    path.mkdir(exist_ok=True)
    write_safetensors(path / "model.safetensors", SMALL_TENSORS, **written)
    return Checkpoint.open(path, Config.from_dict(SMALL))


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 100, -1, 1])
def test_truncated_and_overlong_files_are_refused(tmp_path, n_bytes):
    open_small(tmp_path).close()
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data + b"\0" if n_bytes == 1 else data[:n_bytes])
    with pytest.raises(CheckpointError, match="model.safetensors: expected .* found"):
        Checkpoint.open(tmp_path, Config.from_dict(SMALL))


@pytest.mark.parametrize("n_header", [2**63, 2**64 - 1, 100_000_001])
def test_header_lengths_beyond_file_and_limit_are_refused(tmp_path, n_header):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(n_header.to_bytes(8, "little"))
        file.truncate(100_000_100)  # a hole: it takes no disk
    with pytest.raises(CheckpointError, match=f"expected a header .* found one of {n_header}"):
        Checkpoint.open(tmp_path, Config.from_dict(SMALL))


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff{}", b"{}{}", b"[" * 10**5, b"\0"])
def test_headers_that_are_not_a_json_object_are_refused(tmp_path, header):
    with pytest.raises(CheckpointError, match="model.safetensors: expected"):
        open_small(tmp_path, header=header)


def entry_changes():
    first, second = list(SMALL_TENSORS)[:2]
    start, stop = make_header(SMALL_TENSORS)[second]["data_offsets"]
    n_bytes = stop - start
    offsets = [
        [start + 2, stop], [start, stop - 2], [start - 2, stop - 2], [start + 2, stop + 2],
        [stop, start], [-n_bytes, 0], [float(start), stop], [start], [start, stop, stop], None,
        [str(start), str(stop)], [0, n_bytes], [2**64, 2**64 + n_bytes], [False, n_bytes],
    ]  # fmt: skip
    shapes = [[], [n_bytes], [-1, -4], [1.0], ["4"], [[4]], None, "4", [True, n_bytes // 2], 4]
    dtypes = ["F32", "bf16", "", None, 2, "PICKLE", ["BF16"]]
    yield from ((second, "data_offsets", value) for value in offsets)
    yield from ((second, "shape", value) for value in shapes)
    yield from ((second, "dtype", value) for value in dtypes)
    yield first, "data_offsets", [2, 66]
    yield second, "strides", [1]


@pytest.mark.parametrize(("name", "key", "value"), list(entry_changes()))
def test_malformed_header_entries_are_named(tmp_path, name, key, value):
    header = make_header(SMALL_TENSORS)
    header[name][key] = value
    with pytest.raises(CheckpointError, match="model.safetensors: tensor '.*: expected .* found"):
        open_small(tmp_path, header=header)


@pytest.mark.parametrize(("sound", "other"), [([1], [True]), ([1], [1.0]), ([], ""), ([], {})])
def test_a_shape_that_only_equals_one_seen_before_is_refused(tmp_path, sound, other):
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + 2]}
        for name, shape, start in (("first", sound, 0), ("second", sound, 2), ("third", other, 4))
    }
    with pytest.raises(CheckpointError, match="tensor 'third': expected a shape"):
        open_small(tmp_path, header=header)


def test_holes_overlaps_and_duplicates_are_refused(tmp_path):
    header = make_header(SMALL_TENSORS)
    for entry in list(header.values())[1:]:
        entry["data_offsets"] = [entry["data_offsets"][0] + 8, entry["data_offsets"][1] + 8]
    with pytest.raises(CheckpointError, match="leaves a hole before it"):
        open_small(tmp_path, header=header)
    header = make_header(SMALL_TENSORS)
    header["model.embed_tokens.weight"]["data_offsets"] = header["lm_head.weight"]["data_offsets"]
    with pytest.raises(CheckpointError, match="overlaps the one before it|leaves a hole"):
        open_small(tmp_path, header=header)
    text = json.dumps(make_header(SMALL_TENSORS))
    twice = text[:-1] + ', "lm_head.weight": ' + json.dumps(header["lm_head.weight"]) + "}"
    with pytest.raises(CheckpointError, match="'lm_head.weight' 2 times"):
        open_small(tmp_path, header=twice.encode())
    for metadata in ([], {"format": 1}, "pt"):
        with pytest.raises(CheckpointError, match="__metadata__"):
            open_small(tmp_path, header={**make_header(SMALL_TENSORS), "__metadata__": metadata})


def test_metadata_that_is_null_is_none(tmp_path):
    open_small(tmp_path, header={**make_header(SMALL_TENSORS), "__metadata__": None}).close()


@pytest.mark.parametrize(("text", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 96000000\n", "git lfs pull"),
    (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "a page of HTML"),
    (b"\n\n<html>" + b" " * 100, "a page of HTML"),
])  # fmt: skip
def test_what_stands_in_the_place_of_a_download_is_called_by_name(tmp_path, text, words):
    for name in ("model.safetensors", "config.json", "tokenizer_config.json", "tiktoken.model",
                 "generation_config.json", "model.safetensors.index.json"):
        directory = tmp_path / name
        write_checkpoint(directory, tokenizer=True, n_shards=2 if "index" in name else 1)
        (directory / name).write_bytes(text)
        with pytest.raises(ValueError, match=f"{name}: expected .*found .*{words}") as error:
            k2ref.load(directory)
        assert "download it again" in str(error.value)


def test_errors_are_of_bearable_length(tmp_path):
    long = "model.\x1b[31m" + "x" * 100_000
    header = make_header(SMALL_TENSORS)
    for change in ({long: {}}, {long: {"dtype": long, "shape": [0], "data_offsets": [0, 0]}},
                   {long: {"dtype": "F32", "shape": [1] * 9999, "data_offsets": [0, 0]}},
                   {"__metadata__": long}):
        with pytest.raises(CheckpointError) as error:
            open_small(tmp_path, header={**header, **change})
        assert str(error.value).isprintable() and len(str(error.value)) < 1000
    write_checkpoint(tmp_path / "index")
    for weight_map in ({NORM: long}, {long: "x"}, {NORM: "x" * 300}):
        (tmp_path / "index" / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError) as error:
            open_dir(tmp_path / "index")
        assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_data_that_is_not_aligned_is_refused(tmp_path):
    odd = {"vision_tower.a": ("F8_E4M3", np.zeros(1, "u1"))}
    write_safetensors(tmp_path / "model.safetensors", {**odd, **SMALL_TENSORS})
    with pytest.raises(CheckpointError, match="data at a multiple of 2 bytes"):
        Checkpoint.open(tmp_path, Config.from_dict(SMALL))
    write_safetensors(tmp_path / "model.safetensors", {**SMALL_TENSORS, **odd})
    Checkpoint.open(tmp_path, Config.from_dict(SMALL)).close()


json_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
json_values = json_leaves | st.lists(json_leaves, max_size=3)
headers = st.sampled_from(list(SMALL_TENSORS))


def mutated(data) -> dict | bytes:
    """Draw a header with one to three things wrong in it, as an object or byte by byte."""
    header = make_header(SMALL_TENSORS)
    if data.draw(st.booleans()):
        text = bytearray(json.dumps(header).encode())
        for _ in range(data.draw(st.integers(1, 3))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        return bytes(text)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(headers)
        at = header.get(name)
        if not isinstance(at, dict) or data.draw(st.booleans()):
            at = header
        key = data.draw(st.sampled_from(sorted(at)) | st.text(max_size=4))
        at[key] = data.draw(json_values | headers.map(make_header(SMALL_TENSORS).get))
    return header


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_to_a_header_is_sound_or_a_checkpoint_error(tmp_path, data):
    header = mutated(data)
    try:
        checkpoint = open_small(tmp_path, header=header)
    except CheckpointError as error:
        assert str(error).isprintable()
    else:  # what was changed did not matter: every tensor is still the one that was written
        for name, (_, array) in SMALL_TENSORS.items():
            _, _, shape, start, stop = checkpoint.tensors[name]
            assert shape == array.shape and stop - start == array.nbytes
        checkpoint.close()
