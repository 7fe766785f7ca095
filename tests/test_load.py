"""Loading: what `load` binds and reads beside the weights, and what it refuses."""

import json
import warnings

import numpy as np
import pytest

import k2ref
from k2ref import ops, quant, sampling
from scripts.checkpoints.small import tiny_config, write_checkpoint


def test_load_binds_views_of_the_files(tiny_model):
    m = tiny_model("thinking")
    assert isinstance(m.layers[1].mlp.expert(0).gate_proj, quant.Int4)
    assert isinstance(m.layers[0].mlp.gate_proj, quant.Bf16)
    assert isinstance(tiny_model("fp8").layers[0].attention.o_proj, quant.Fp8)
    assert not m.lm_head.bits.flags.owndata and not m.lm_head.bits.flags.writeable
    w = m.layers[0].attention
    assert np.shares_memory(w.W_UK[0].bits, w.kv_b_proj.bits)


def test_load_without_a_vocabulary_has_no_tokenizer(tiny_model):
    assert tiny_model().tokenizer is None


def test_load_reads_the_generation_defaults(tmp_path):
    directory = write_checkpoint(tmp_path)
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert k2ref.load(directory).generation_defaults == {"temperature": 0.6}
    (directory / "generation_config.json").unlink()
    assert k2ref.load(directory).generation_defaults == {}
    for broken in ("[1]", "{", "\xff"):
        (directory / "generation_config.json").write_text(broken, encoding="latin-1")
        with pytest.raises(k2ref.ConfigError, match="generation_config.json: expected a JSON"):
            k2ref.load(directory)


def test_load_says_which_generation_defaults_it_does_nothing_about(tmp_path):
    directory = write_checkpoint(tmp_path)
    file = directory / "generation_config.json"
    file.write_text(json.dumps({"suppress_tokens": [1], "num_beams": 4, "typical_p": 0.5,
                                "do_sample": False, "max_length": 9}))
    with pytest.warns(UserWarning, match="about do_sample, num_beams, typical_p, suppress_tokens;"):
        k2ref.load(directory)
    neutral = dict(sampling.NOT_DONE)
    for values in (neutral, dict.fromkeys(neutral), {"temperature": 0.6, "top_p": 0.95,
                   "max_length": 262144, "eos_token_id": 2, "transformers_version": "4.57.1"}):
        file.write_text(json.dumps(values))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            k2ref.load(directory)


def test_load_refuses_a_vocabulary_larger_than_the_model(tmp_path):
    config = tiny_config()
    config.update(vocab_size=300, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    with pytest.raises(k2ref.ConfigError, match="vocab_size is 300 .* the tokenizer has 512 ids"):
        k2ref.load(write_checkpoint(tmp_path, config, tokenizer=True))


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 4097, 2 ** 31, 2 ** 64, 10 ** 4000])
def test_load_refuses_threads_that_are_no_number(threads):
    with pytest.raises(ValueError, match="threads: expected a positive whole number"):
        k2ref.load(threads=threads)


def test_threads_default_to_the_cores():
    assert k2ref.load().threads == ops.default_threads()
    assert k2ref.load(threads=3).threads == 3
