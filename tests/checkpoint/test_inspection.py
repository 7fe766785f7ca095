"""`--inspect`: sound checkpoints are called sound, and whatever is amiss is found and named."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import ConfigError
from k2ref.checkpoint import inspection
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.shards import INDEX, CheckpointError, open_shards
from k2ref.checkpoint.weights import Checkpoint
from k2ref.cli.main import main
from scripts.checkpoints.small import (
    LAYOUTS,
    random_tensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

FIRST, SECOND = (f"model-0000{i}-of-000002.safetensors" for i in (1, 2))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def directory(sound, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(sound, tmp_path / "copy")


def index_of(directory):
    return json.loads((directory / INDEX).read_text())


def change_index(directory, change):
    index = index_of(directory)
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def rewrite(directory, change):
    """Write one file of all tensors, changed, in the place of two with an index."""
    tensors = random_tensors(Config.from_dict(tiny_config()), seed=0)
    change(tensors)
    for name in (FIRST, SECOND, INDEX):
        (directory / name).unlink()
    write_safetensors(directory / "model.safetensors", tensors)


def kinds_of(found):
    return Counter(fault.kind for fault in found.faults)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_checkpoint_of_every_layout(tmp_path, layout):
    path = write_checkpoint(tmp_path, layout=layout)
    found, text = inspection.inspect(path), inspection.report(path)
    _, tensors = open_shards(path)
    assert found.is_sound and found.found == tensors and None not in found.bound.values()
    n_bytes = sum(stored.stop - stored.start for stored in tensors.values())
    assert f"{len(tensors):,} tensors, {n_bytes:,} bytes of data" in text
    assert "nothing is missing, nothing is extra" in text and "amiss" not in text
    config = Config.from_dir(path)
    for kind, n in config.n_bytes_by_kind.items():
        if kind in ("attention", "lm_head", "dense_mlp"):  # each in one format, of known size
            assert f"{kind:16} " in text and f" {n:17,} " in text
    assert f"{config.n_parameters / 1e6:.1f} million weights" in text
    assert ("left alone by k2ref" in text) == (layout in ("thinking", "k25", "deepseek"))
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_layers_that_are_equal_are_one_row(sound):
    text = inspection.report(sound)
    rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows if row[0] in ("0", "1-2")] == ["0", "1-2"]


def test_a_missing_shard_is_said_once_not_for_each_tensor(directory):
    (directory / SECOND).unlink()
    found, text = inspection.inspect(directory), inspection.report(directory)
    assert not found.is_sound and len(found.bad_files) == 1 and found.faults == []
    assert "amiss: 1 files that cannot be used" in text
    assert f"file: {SECOND}: expected a file, found none" in text
    assert "found " in text and "missing:" not in text


def test_a_truncated_shard_is_named(directory):
    data = (directory / FIRST).read_bytes()
    (directory / FIRST).write_bytes(data[:-1])
    text = inspection.report(directory)
    assert f"file: {FIRST}: expected a file of {len(data)} bytes" in text and "truncated" in text


def test_all_that_is_amiss_is_listed_at_once(directory):
    def change(tensors):
        del tensors["model.norm.weight"]
        dtype, values = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = dtype, values[:-1].copy()
        tensors["model.more.weight"] = "BF16", np.zeros(4, np.uint16)

    rewrite(directory, change)
    found, text = inspection.inspect(directory), inspection.report(directory)
    assert kinds_of(found) == {"missing": 1, "wrong": 1, "extra": 1}
    for expected in ("missing: model.norm.weight", "wrong: lm_head.weight",
                     "expected BF16 or F32 [512, 64], found BF16 [511, 64]",
                     "extra: model.more.weight", "1 tensors missing"):
        assert expected in text, expected


def test_names_that_differ_in_numbers_are_one_line(directory):
    def change(tensors):
        for name in list(tensors):
            if ".mlp.experts.3." in name:
                del tensors[name]

    rewrite(directory, change)
    found, text = inspection.inspect(directory), inspection.report(directory)
    assert kinds_of(found) == {"missing": 2 * 9}  # two layers, three matrices of three parts
    assert "model.layers.{1-2}.mlp.experts.3.up_proj.weight_packed (2 tensors)" in text
    assert text.count("missing: ") == 9


def test_an_index_that_disagrees(directory):
    name = next(name for name, file in index_of(directory)["weight_map"].items() if file == FIRST)
    other = "model.embed_tokens.weight"
    change_index(directory, lambda weight_map: (
        weight_map.update({name: SECOND, "model.ghost.weight": FIRST}), weight_map.pop(other)))
    found = inspection.inspect(directory)
    said = {fault.name: (fault.kind, fault.expected) for fault in found.faults}
    assert said[name] == ("wrong", f"in {SECOND}, as the index says")
    assert said["model.ghost.weight"] == ("missing", f"in {FIRST}, as the index says")
    assert said[other] == ("wrong", "in the index, too")
    assert "model.ghost.weight" in inspection.report(directory)


def test_a_tensor_in_two_files(directory):
    shutil.copy(directory / FIRST, directory / "more.safetensors")
    name = next(name for name, file in index_of(directory)["weight_map"].items() if file == FIRST)
    change_index(directory, lambda weight_map: weight_map.update({"x": "more.safetensors"}))
    found = inspection.inspect(directory)
    again = next(fault for fault in found.faults if fault.name == name)
    assert again.kind in ("extra", "wrong") and not found.is_sound


def test_what_is_no_checkpoint_at_all(tmp_path):
    with pytest.raises((ConfigError, OSError), match="config.json"):
        inspection.report(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    with pytest.raises(CheckpointError, match="neither"):
        inspection.report(tmp_path)


@given(st.data())
def test_what_is_sound_opens_and_what_is_not_does_not(sound, tmp_path_factory, data):
    """A hundred ways to break a header; opening and inspecting must agree on each."""
    directory = shutil.copytree(sound, tmp_path_factory.mktemp("broken") / "copy")
    tensors = random_tensors(Config.from_dict(tiny_config()), seed=0)
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=2)):
        how = data.draw(st.sampled_from(["drop", "rename", "shorten", "retype", "same"]))
        dtype, values = tensors[name]
        if how in ("drop", "rename"):
            del tensors[name]
        if how == "rename":
            tensors["language_model." + name] = dtype, values
        if how == "shorten":
            tensors[name] = dtype, values[1:].copy()
        if how == "retype" and dtype == "BF16":
            tensors[name] = "F32", values.astype(np.float32)
    for name in (FIRST, SECOND, INDEX):
        (directory / name).unlink()
    write_safetensors(directory / "model.safetensors", tensors)
    found = inspection.inspect(directory)
    try:
        Checkpoint.open(directory, Config.from_dir(directory)).close()
    except CheckpointError as error:
        assert not found.is_sound, error
        assert any(fault.name in str(error) for fault in found.faults)
    else:
        assert found.is_sound, found.faults
    assert ("amiss" in inspection.report(directory)) != found.is_sound
    shutil.rmtree(directory)


def damage(directory, data):
    """Do one or two of the things that happen to a directory."""
    for _ in range(data.draw(st.integers(1, 2))):
        file = directory / data.draw(st.sampled_from(
            [FIRST, SECOND, INDEX, "config.json", "generation_config.json", "tokenizer_config.json",
             "tiktoken.model"]))  # fmt: skip
        how = data.draw(st.sampled_from(["bytes", "cut", "swap", "drop", "folder", "pointer"]))
        content = bytearray(file.read_bytes()) if file.is_file() else bytearray(b"{}")
        if how == "bytes":  # an early one is in the header, another may be in a weight_shape
            at = data.draw(st.integers(0, min(20_000, max(0, len(content) - 1))))
            content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        if how == "cut":
            content = content[: data.draw(st.integers(0, len(content)))]
        if how == "swap":
            content = content.replace(b"32", b"64", 1)
        if how == "pointer":
            content = b"version https://git-lfs.github.com/spec/v1\n"
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if how == "folder":
            file.mkdir()
        elif how != "drop":
            file.write_bytes(content)


@given(st.data())
def test_what_is_sound_loads_and_what_loads_is_sound(tmp_path_factory, data):
    """Files of every kind, damaged: `inspect` calls a directory sound where `load` takes it."""
    directory = tmp_path_factory.mktemp("damaged")
    layout = data.draw(st.sampled_from(["thinking", "deepseek"]))
    write_checkpoint(directory, tokenizer=True, layout=layout)
    (directory / "generation_config.json").write_text('{"eos_token_id": [258], "top_p": 0.9}')
    damage(directory, data)
    try:
        k2ref.load(directory, threads=1)
    except ValueError as error:
        loads = error
    else:
        loads = True
    try:
        is_sound = inspection.inspect(directory).is_sound
    except ValueError:
        is_sound = False
    assert is_sound == (loads is True), loads


@pytest.mark.parametrize(("file", "text", "words"), [
    ("generation_config.json", '{"eos_token_id": [[2]]}', "eos_token_id: expected"),
    ("generation_config.json", '{"temperature": "hot"}', "temperature must be"),
    ("tokenizer_config.json", "{}", "tokenizer_config.json: expected"),
    ("tiktoken.model", "YQ==", "tiktoken.model, line 1"),
])
def test_the_small_files_are_looked_at(directory, capsys, file, text, words):
    write_checkpoint(directory, tokenizer=True)
    (directory / file).write_text(text)
    found = inspection.inspect(directory)
    assert not found.is_sound and words in found.bad_files[0]
    assert main(["--inspect", str(directory)]) == 2
    assert f"file: {file}" in capsys.readouterr().out


def test_what_load_warns_of_is_a_note_here(directory, capsys):
    (directory / "generation_config.json").write_text('{"num_beams": 4}')
    assert main(["--inspect", str(directory)]) == 0
    assert capsys.readouterr().err == ("k2ref: generation_config.json: k2ref does nothing about "
                                       "num_beams; it writes as if they were not there\n")


def test_a_wrong_weight_shape_is_found_as_load_finds_it(directory):
    name = "model.layers.1.mlp.experts.5.up_proj.weight_shape"
    rewrite(directory, lambda tensors: tensors.update({name: ("I32", np.array([1, 2], "<i4"))}))
    [fault] = inspection.inspect(directory).faults
    assert (fault.kind, fault.name, fault.found) == ("wrong", name, "[1, 2]")
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(directory, Config.from_dir(directory))


@pytest.mark.parametrize("layers, experts", [(4096, 8), (200, 160)])
def test_of_far_too_many_tensors_no_names_are_made(directory, layers, experts):
    config = json.loads((directory / "config.json").read_text())
    config.update(num_hidden_layers=layers, n_routed_experts=experts)
    (directory / "config.json").write_text(json.dumps(config))
    for look in (inspection.inspect, k2ref.load):
        with pytest.raises(CheckpointError, match=r"expected at least \d+ tensors"):
            look(directory)


def test_names_in_a_report_are_made_harmless(directory):
    name = "model.\x1b[31m\u202e"
    rewrite(directory, lambda tensors: tensors.update({name: ("BF16", np.zeros(2, np.uint16))}))
    assert all(line.isprintable() for line in inspection.report(directory).splitlines())


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_each_number_once(numbers):
    text = inspection.ranges(sorted(numbers))
    if text.endswith("..."):
        assert len(text) <= 30
        return
    named = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(numbers)


def test_a_long_list_is_cut(directory):
    rewrite(directory, lambda tensors: [
        tensors.update({f"extra{'x' * (5 * i)}": ("BF16", np.zeros(2, np.uint16))})
        for i in range(50)])
    lines = inspection.report(directory).splitlines()
    assert "lines more" in lines[-1]
    assert len(lines) < 80 and max(map(len, lines[1:])) <= 100
