"""scripts/make_checkpoint.py: the official layout in every number that is known, at any size."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

import k2ref
from k2ref import quant
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint
from k2ref.trace import Trace
from scripts import make_checkpoint
from scripts.checkpoints import noise
from scripts.checkpoints.small import tiny_config

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


@pytest.fixture(autouse=True)
def little_noise(monkeypatch):
    """Draw blocks of noise that are small, and large beside the arrays here."""
    monkeypatch.setattr(noise, "BLOCK", 1 << 18)


def make(path, layout="thinking", **changes):
    values = tiny_config(layout)
    values.get("text_config", values).update(changes)
    make_checkpoint.write(path, values)
    return path


def narrow(layout="thinking", **changes):
    """The tiny configuration with the depth of K2."""
    return {**tiny_config(layout), "num_hidden_layers": 61, "n_routed_experts": 4, **changes}


@pytest.mark.thorough
def test_the_rehearsal_has_the_official_names_counts_and_bytes(tmp_path, monkeypatch):
    """At full size, with the data as holes; without `weight_shape`, which would take 300 MB."""
    monkeypatch.setattr(make_checkpoint.Noise, "pieces", lambda self, stored: [])
    values = make_checkpoint.read_config(CONFIGS / "Kimi-K2-Thinking.json")
    shards = make_checkpoint.list_shards(Config.from_dict(values))
    everything = [s for stored in shards.values() for s in stored]
    assert list(shards) == [f"model-{i:05d}-of-000062.safetensors" for i in range(1, 63)]
    assert len(everything) == 208_276
    assert sum(s.n_bytes for s in everything) == 594_205_920_512
    by_shard = [sum(s.n_bytes for s in stored) for stored in shards.values()]
    assert by_shard == [995_000_576, *[9_808_554_752] * 60, 4_697_634_816]
    make_checkpoint.write_index(tmp_path / "index.json", shards, seed=0)
    text = (tmp_path / "index.json").read_text()
    assert len(text) == 20_450_783
    index = json.loads(text)
    assert index["metadata"] == {"total_size": 594_205_920_512}
    assert sorted(index["weight_map"]) != list(index["weight_map"])


def test_a_sparse_checkpoint_runs_and_takes_little_disk(tmp_path):
    values = narrow(moe_intermediate_size=2048, transformers_version="4.51.3")
    make_checkpoint.write(tmp_path / "out", values, sparse=True)
    model = k2ref.load(tmp_path / "out")
    logits = k2ref.forward(model, [1, 2, 3])
    assert logits.shape == (3, values["vocab_size"]) and not logits.any()
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 62
    size = sum(file.stat().st_size for file in files)
    assert size > model.config.n_payload_bytes
    # A file system with holes has them; one without is not our business.
    probe = tmp_path / "probe"
    with open(probe, "wb") as file:
        file.truncate(1 << 20)
    if probe.stat().st_blocks == 0:
        assert sum(file.stat().st_blocks * 512 for file in files) < size / 4


def test_filled_parts_of_a_sparse_checkpoint_make_routing_depend_on_the_token(tmp_path):
    fill = ("norms", "router", "embedding")
    make_checkpoint.write(tmp_path / "out", tiny_config(), sparse=True, fill=fill)
    model, trace = k2ref.load(tmp_path / "out"), Trace()
    k2ref.forward(model, list(range(20)), trace=trace)
    assert len(np.unique(np.sort(trace.arrays["layers.1.moe.chosen"], axis=1), axis=0)) > 3


@pytest.mark.parametrize("layout", ["thinking", "fp8", "moonlight"])
def test_activations_keep_their_size_over_61_layers(tmp_path, layout):
    make_checkpoint.write(tmp_path / "out", narrow(layout, hidden_size=160), seed=4)
    trace = Trace()
    logits = k2ref.forward(k2ref.load(tmp_path / "out"), [5, 6, 7, 5, 400], trace=trace)
    sizes = [float(np.sqrt(np.mean(trace.arrays[f"layers.{i}.out"] ** 2))) for i in range(61)]
    # Each of 122 steps adds a part of its own, about as large as the embedding or smaller.
    assert 0.5 < min(sizes) and max(sizes) < 122
    assert 0.3 < logits.std() < 3
    # Tokens stay apart: activations do not all turn one way.
    last = trace.arrays["layers.60.out"]
    last = last / np.linalg.norm(last, axis=1, keepdims=True)
    assert abs(last[0] @ last[4]) < 0.9


@pytest.mark.parametrize("layout", ["thinking", "k25", "fp8", "moonlight"])
def test_every_layout_is_sound_and_not_the_same_twice(tmp_path, layout):
    make(tmp_path / "out", layout)
    config = Config.from_dir(tmp_path / "out")
    with Checkpoint.open(tmp_path / "out", config) as checkpoint:
        D, F = config.hidden_size, config.moe_intermediate_size
        at = "model.layers.1.mlp.experts."
        first, second = (checkpoint.weight(f"{at}{e}.gate_proj", (F, D)) for e in (0, 1))
        assert isinstance(first, {"thinking": quant.Int4, "k25": quant.Int4, "fp8": quant.Fp8,
                                  "moonlight": quant.Bf16}[layout])
        a, b = first.dequantize(), second.dequantize()
        assert (a != b).mean() > 0.5
        # The scales of these few blocks are up to 15 % off, and so is the largest of each block.
        assert abs(a.std() * D**0.5 - 1) < 0.3 and abs(a.mean()) < 0.1 * a.std()


def test_seeds_repeat_and_differ(tmp_path):
    def data(name, seed):
        make_checkpoint.write(tmp_path / name, tiny_config(), seed)
        return [file.read_bytes() for file in sorted((tmp_path / name).iterdir())]

    first = data("a", 1)
    assert data("b", 1) == first
    assert data("c", 2) != first


def test_the_vocabulary_covers_every_id(tmp_path):
    make(tmp_path / "out", vocab_size=3000, bos_token_id=2744, eos_token_id=2746, pad_token_id=2999)
    tokenizer = k2ref.Tokenizer.from_dir(tmp_path / "out")
    assert tokenizer.n_vocab == 3000
    assert tokenizer.special_id("<|im_end|>") == 2746
    assert tokenizer.decode(tokenizer.encode("Hi, 中文!")) == "Hi, 中文!"
    assert len({tokenizer.decode_bytes([i]) for i in range(2744)}) == 2744


def test_a_vocabulary_beside_the_config_is_used(tmp_path):
    make(tmp_path / "given")
    for name in ("tiktoken.model", "tokenizer_config.json"):
        path = tmp_path / "given" / name
        path.write_text(path.read_text() + "\n")
    config = tmp_path / "given" / "config.json"
    assert make_checkpoint.main([str(tmp_path / "out"), "--config", str(config)]) == 0
    for name in ("tiktoken.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_text().endswith("\n\n" if "model" in name else "}\n")


def test_the_command_changes_layers_and_experts(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config()))
    args = [str(tmp_path / "out"), "--config", str(config), "--layers", "2", "--experts", "2"]
    assert make_checkpoint.main(args) == 0
    made = Config.from_dir(tmp_path / "out")
    assert made.num_hidden_layers == 2
    assert (made.n_routed_experts, made.num_experts_per_tok) == (2, 2)
    assert "GB/s" in capsys.readouterr().out
    assert make_checkpoint.main(args) == 2
    assert "expected a directory that does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"text_config": 1}'])
def test_a_config_that_is_none_is_one_sentence(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    out = str(tmp_path / "out")
    assert make_checkpoint.main([out, "--config", str(tmp_path / "config.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("make_checkpoint: ") and error.count("\n") == 1
    assert "config.json" in error


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    def fail(self, stored):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    args = [str(tmp_path / "out"), "--config", str(tmp_path / "config.json")]
    with monkeypatch.context() as patch:
        patch.setattr(make_checkpoint.Noise, "pieces", fail)
        assert make_checkpoint.main(args) == 2
    assert "found it full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    monkeypatch.setattr(make_checkpoint.shutil, "disk_usage",
                        lambda path: type("Usage", (), {"free": 1000}))
    assert make_checkpoint.main(args) == 2
    assert "of room on the disk" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
