"""The embedded model: its files are the ones of the card, in K2's layout; it does what is said."""

import dataclasses
import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import k2ref
from k2ref import quant
from scripts.tiny import answers, evaluate
from scripts.tiny.lessons import sums

HERE = Path(__file__).parents[1]
TINY = Path(k2ref.__file__).parent / "tiny"
SHARD = "model-00001-of-000001.safetensors"
FIRST_SPECIAL = 163584  # of the official vocabulary; ours begins at vocab_size - 256

# What a smaller model changes in the official config.json; all else is K2 Thinking's, unchanged.
SIZES = {
    "hidden_size", "intermediate_size", "kv_lora_rank", "moe_intermediate_size",
    "n_routed_experts", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers",
    "num_key_value_heads", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "vocab_size",
}
TOKEN_IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}
# The release of transformers it was checked with; the official value stands for stale tensors.
OTHERWISE = {"transformers_version"}

# Held-out cases of which so many are right of N_CASES; the card has the table of all rows.
N_CASES = 20
LEAST = {
    "one-step sums through the calculator: right answer": 20,
    "word problems: operation and unit": 20,
    "word problems: the name in the answer too": 17,
    "two- and three-step chains": 20,
    "capitals, unseen phrasing": 20,
    "column addition up to 3 digits, no tools": 20,
    "lookup, lookup, add": 19,
    "out of scope: says so, names the topic": 19,
}


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


@pytest.fixture(scope="module")
def config():
    return json.loads((TINY / "config.json").read_text())


def test_the_files_are_those_of_the_card():
    card = (TINY / "README.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$", card, re.MULTILINE))
    files = {path.name for path in TINY.iterdir() if path.is_file()}
    assert set(written) == files - {"README.md", "__init__.py"}
    for name, digest in written.items():
        # A checkout with other line ends would change the text files, and break the checkpoint.
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest, name


def test_config_has_the_official_form(config):
    official = json.loads((HERE / "data/configs/Kimi-K2-Thinking.json").read_text())
    assert list(config) == list(official)
    for name in official.keys() - SIZES - TOKEN_IDS - OTHERWISE:
        assert config[name] == official[name], name
    for name in SIZES:
        assert type(config[name]) is int and 0 < config[name] < official[name], name
    for name in TOKEN_IDS:
        offset = official[name] - FIRST_SPECIAL
        assert config[name] == config["vocab_size"] - 256 + offset, name


def test_size(model):
    assert 1_500_000 < model.config.n_parameters < 4_000_000
    assert sum(path.stat().st_size for path in TINY.iterdir() if path.is_file()) < 8_000_000


def test_tensors_have_the_official_types_and_names(config):
    index = json.loads((TINY / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {SHARD}
    n_bytes = 0
    with safe_open(TINY / SHARD, "np") as shard:
        assert set(shard.keys()) == set(index["weight_map"])
        for name in shard.keys():
            part = shard.get_slice(name)
            dtype, shape = part.get_dtype(), part.get_shape()
            if name.endswith("weight_shape"):
                assert (dtype, shape) == ("I32", [2])
                packed = shard.get_slice(name.replace("_shape", "_packed")).get_shape()
                assert shard.get_tensor(name).tolist() == [packed[0], packed[1] * 8]
            elif name.endswith("weight_packed"):
                assert dtype == "I32" and ".mlp.experts." in name
            elif name.endswith("e_score_correction_bias"):
                assert (dtype, shape) == ("F32", [config["n_routed_experts"]])
            else:
                assert dtype == "BF16", name
            n_bytes += np.prod(shape) * (2 if dtype == "BF16" else 4)
    assert index["metadata"]["total_size"] == n_bytes


def test_n_payload_bytes_is_the_size_of_all_tensors(model):
    index = json.loads((TINY / "model.safetensors.index.json").read_text())
    assert model.config.n_payload_bytes == index["metadata"]["total_size"]


def test_generation_config_has_the_official_form(config):
    found = json.loads((TINY / "generation_config.json").read_text())
    assert found == {"max_length": 262144, "eos_token_id": config["eos_token_id"]}


def test_special_tokens_are_at_the_official_offsets(model):
    official = {
        "[BOS]": 163584, "[EOS]": 163585, "<|im_end|>": 163586, "<|im_user|>": 163587,
        "<|im_assistant|>": 163588, "<|start_header_id|>": 163590, "<|end_header_id|>": 163591,
        "[EOT]": 163593, "<|im_system|>": 163594, "<|tool_calls_section_begin|>": 163595,
        "<|tool_calls_section_end|>": 163596, "<|tool_call_begin|>": 163597,
        "<|tool_call_argument_begin|>": 163598, "<|tool_call_end|>": 163599,
        "<|im_middle|>": 163601, "<|media_begin|>": 163602, "<|media_content|>": 163603,
        "<|media_end|>": 163604, "<|media_pad|>": 163605, "<think>": 163606, "</think>": 163607,
        "[UNK]": 163838, "[PAD]": 163839,
    }
    first = model.config.vocab_size - 256
    for name, id in official.items():
        assert model.tokenizer.special_id(name) == id - FIRST_SPECIAL + first, name
    assert model.tokenizer.n_vocab == model.config.vocab_size


@given(st.integers(0, 10**12))
def test_every_digit_is_one_token(number):
    tokenizer = k2ref.Tokenizer.from_dir(TINY)
    assert [tokenizer.decode([id]) for id in tokenizer.encode(str(number))] == list(str(number))


def test_every_expert_is_a_fixed_point_of_the_rounding_it_was_trained_with(model):
    config = model.config
    F, D = config.moe_intermediate_size, config.hidden_size
    shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
        for expert in range(config.n_routed_experts):
            for part, shape in shapes.items():
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}"
                found = model.checkpoint.weight(name, shape)
                again = quant.quantize_int4(found.dequantize())
                assert np.array_equal(again.packed, found.packed), name
                assert np.array_equal(again.scale, found.scale), name


def test_golden_answers(model):
    golden = json.loads(answers.GOLDEN.read_text(encoding="utf-8"))
    assert [(case["tools"], case["questions"]) for case in golden] == answers.CASES
    for case in golden:
        found = answers.play(model, case["tools"], case["questions"])
        assert found == case["written"], case["questions"]


@pytest.mark.thorough
@pytest.mark.parametrize("name, least", LEAST.items())
def test_held_out_cases(model, name, least):
    right, n, wrong = evaluate.simple(evaluate.Player(model, 0.0), name, N_CASES)
    assert right >= least, wrong


def test_a_wrong_answer_counts_as_wrong(model):
    exchange = sums.one_step(random.Random(1), held_out=True)
    player = evaluate.Player(model, 0.0)
    assert not player.play(dataclasses.replace(exchange, content="4"))[1]
    other = dataclasses.replace(exchange, calls=[("", "no_such_tool", "{}", "")])
    assert player.play(other)[0] == 0


@pytest.mark.parametrize("text, calls, end", [
    ("Plah has 5 apples left.", True, True), ("Noah has 6 apples left.", True, False),
    ("Noah has 5 pears left.", True, False), ("", True, False)])
def test_a_row_says_how_much_must_be_right(text, calls, end):
    exchange = dataclasses.replace(sums.one_step(random.Random(1)),
                                   content="Noah has 5 apples left.")
    assert evaluate.is_enough("calls", exchange, text) == calls
    assert evaluate.is_enough("end", exchange, text) == end
    assert not evaluate.is_enough("all", exchange, text)


@pytest.mark.oracle
def test_transformers_gives_the_same_logits(model):
    pytest.importorskip("transformers")
    from scripts.checkpoints import oracle

    prompt = k2ref.render(model.tokenizer, [{"role": "user", "content": "What is 604 + 7?"}])
    ids = list(prompt) + list(k2ref.generate(model, prompt, temperature=0))
    logits, _, _ = oracle.run(oracle.reference_model(TINY), ids)
    ours = k2ref.forward(model, ids)
    # float32 sums of at most 512 terms in another order, four layers deep, logits below 40.
    assert np.abs(ours - logits).max() < 2e-4
    assert np.array_equal(ours.argmax(-1), logits.argmax(-1))
