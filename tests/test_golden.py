"""k2ref against transformers on the golden checkpoints: the numbers that must not move."""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import k2ref
from k2ref.trace import Trace

GOLDEN = Path(__file__).parent / "data" / "golden"
PROVENANCE = json.loads((GOLDEN / "provenance.json").read_text())["checkpoints"]
# Measured on x86-64, all paths: at most 6.2e-6 for logits and 6.4e-6 for hidden states, where the
# largest values are 4 to 5. The rest is room for other machines' matrix products on the NumPy path.
TOLERANCE = 5e-5


@cache
def golden(name):
    with np.load(GOLDEN / name / "reference.npz") as file:
        return k2ref.load(GOLDEN / name, threads=1), dict(file)


@pytest.mark.parametrize("name", PROVENANCE)
def test_golden_files_are_those_of_the_provenance(name):
    found = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (GOLDEN / name).iterdir()}
    assert found == PROVENANCE[name]["files"]


@pytest.mark.parametrize("name", PROVENANCE)
def test_forward_matches_transformers_layer_by_layer(name, path):
    model, reference = golden(name)
    trace, positions = Trace(), reference["positions"]
    logits = k2ref.forward(model, reference["ids"], trace=trace)
    n_layers = model.config.num_hidden_layers
    names = ["embed", *(f"layers.{i}.out" for i in range(n_layers - 1)), "norm"]
    assert len(names) == len(reference["hidden"]) == n_layers + 1
    for stage, expected in zip(names, reference["hidden"], strict=True):
        error = np.abs(trace.arrays[stage][positions] - expected).max()
        assert error <= TOLERANCE, f"{stage}: {error}"
    assert np.abs(logits[positions] - reference["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", PROVENANCE)
def test_greedy_continuation_is_that_of_transformers(name, path):
    model, reference = golden(name)
    expected = reference["greedy"].tolist()
    n_new = 24
    prompt = expected[:-n_new]
    tokens = k2ref.generate(model, prompt, max_new_tokens=n_new, temperature=0, stop_ids=[])
    assert prompt + list(tokens) == expected


@pytest.mark.parametrize("name", PROVENANCE)
def test_greedy_continuation_from_decode_steps_alone(name, path):
    model, reference = golden(name)
    expected = reference["greedy"].tolist()
    cache = k2ref.KVCache(model.config, len(expected))
    for position, token in enumerate(expected[:-1]):
        logits = k2ref.forward(model, [token], cache)
        if position >= 39:  # the first 40 are the prompt
            assert logits[0].argmax() == expected[position + 1]
