"""Sampling: from logits to probabilities, and from probabilities to one token.

The model ends with a logit per word of the vocabulary; this file decides what is said. The order of
the steps is the one of Hugging Face transformers (`_get_logits_processor` in generation/utils.py):

    repetition penalty -> temperature -> top_k -> top_p -> min_p -> draw

Each filter sees the probabilities that the one before left, scaled to a sum of 1. Other engines
differ: llama.cpp scales by the temperature last (llama.cpp#4091), vLLM applies min_p before top_k;
at temperature 1 with one filter they all agree. Everything here is float64 and pure; the only
state is the random generator that the caller brings. One uniform number is drawn for each token
and looked up in the cumulative probabilities, in the order of ids: the same logits and the same
seed give the same tokens.

Chapter 12.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np

from k2ref.doors.intake import quoted

# What else may decide over a token, with the value that is off (null always is). The fields are
# those of GenerationConfig in transformers; greedy decoding is temperature 0 here.
NOT_DONE = {
    "do_sample": True, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0,
    "penalty_alpha": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None,
    "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "guidance_scale": 1,
    "encoder_repetition_penalty": 1, "encoder_no_repeat_ngram_size": 0, "suppress_tokens": [],
    "begin_suppress_tokens": [], "bad_words_ids": [], "force_words_ids": [], "constraints": [],
    "sequence_bias": {}, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "forced_decoder_ids": [], "exponential_decay_length_penalty": None, "stop_strings": [],
    "watermarking_config": None, "dola_layers": None,
}  # fmt: skip


def not_done(values):
    """Name what a generation_config.json asks for that would change tokens and is not done."""
    return [name for name, off in NOT_DONE.items() if values.get(name) not in (None, off)]


@dataclass(frozen=True)
class Settings:
    """The settings of sampling, checked.

    `temperature` 0 is greedy; `top_k` 0 or None, `top_p` 1 or None, `min_p` 0 or None and
    `repetition_penalty` 1 or None are off.

    Raises: ValueError, naming the knob, where a value makes no sense.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self):
        _check("temperature", self.temperature, "a number >= 0 (0 is greedy)", lambda v: v >= 0)
        if self.top_k is not None:
            _check("top_k", self.top_k, "a whole number >= 0 (0 is off)",
                   lambda v: v >= 0 and isinstance(v, Integral))
        if self.top_p is not None:
            # Trap: top_p = 0 is an empty nucleus, from which some engines draw noise.
            # https://github.com/google-deepmind/simply/pull/42
            _check("top_p", self.top_p, "above 0 and at most 1 (1 is off)", lambda v: 0 < v <= 1)
        if self.min_p is not None:
            _check("min_p", self.min_p, "from 0 (off) to 1", lambda v: 0 <= v <= 1)
        if self.repetition_penalty is not None:
            _check("repetition_penalty", self.repetition_penalty, "above 0 (1 is off)",
                   lambda v: v > 0)


class Choice(NamedTuple):
    """The token that was drawn, its log-probability, and the likeliest others.

    Log-probabilities are natural, of the model's own distribution: before penalty, temperature
    and filters, as vLLM reports them (`raw_logprobs`). So they do not change with the settings, and
    a filtered token still has a finite one. `top` is [(id, logprob), ...], likeliest first.
    """

    id: int
    logprob: float
    top: list


def probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Turn logits into the probabilities that the next token is drawn from.

    (W,) -> (W,)

    Output float64, sum 1. Equal logits are ranked by id, the lower first; so a filter that cuts
    between equals keeps the lower ids, and greedy takes the lowest.
    - temperature: logits are divided by it; 0 gives everything to the largest logit.
    - top_k: the `k` likeliest stay.
    - top_p: the smallest set whose mass reaches `p` stays, likeliest first (the "nucleus").
    - min_p: what is at least `min_p` times as likely as the likeliest stays.
    The likeliest token survives every filter.
    Source: top_p, Holtzman et al. 2019, arXiv 1904.09751; min_p, Nguyen et al. 2024, arXiv
    2407.01082; order, transformers generation/utils.py, `_get_logits_processor`.
    Raises: ValueError if a logit is not finite or a setting makes no sense.
    """
    settings = Settings(temperature, top_k, top_p, min_p)
    logits = check_finite(logits)
    if settings.temperature == 0:
        greedy = np.zeros(logits.size)
        greedy[np.argmax(logits)] = 1.0
        return greedy
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature sends the rest to -inf
        p = np.exp((logits - logits.max()) / settings.temperature)
    # Ranked by logit: of two that differ by less than a rounding, exp makes equals.
    order = np.argsort(-logits, kind="stable")
    kept = p[order[:top_k]] if top_k else p[order]
    if top_p is not None and top_p < 1:
        # Trap: the token that crosses the line belongs to the nucleus; `mass <= top_p` drops it.
        # https://github.com/Biohub/esm/pull/360
        # Trap: counted from the top, so that a tiny top_p leaves one token, not none.
        # https://github.com/ml-explore/mlx-lm/pull/1912
        mass = np.cumsum(kept)
        kept = kept[: np.searchsorted(mass, top_p * mass[-1], side="left") + 1]
    if min_p:
        kept = kept[kept >= min_p * kept[0]]
    result = np.zeros(logits.size)
    result[order[: kept.size]] = kept / kept.sum()
    return result


def penalize_repetition(logits, seen, penalty):
    """Make every token that was seen before less likely: divide its logit, or multiply if negative.

    (W,), ... -> (W,)

    Output float64, a new array. A token seen ten times is penalized once; above 1 discourages.
    Source: Keskar et al. 2019 (CTRL), section 4.1, arXiv 1909.05858, with the sign rule of
    transformers' `RepetitionPenaltyLogitsProcessor`.
    """
    logits = np.array(logits, np.float64)
    seen = np.asarray(seen, np.int64)
    # Trap: dividing a negative logit would make the token likelier.
    # https://github.com/huggingface/transformers/issues/2302
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def log_probabilities(logits):
    """Turn logits into natural log-probabilities.

    (W,) -> (W,)

    Output float64.
    """
    logits = check_finite(logits)
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def pick(p, u):
    """Find the token at height `u` of the stacked probabilities: the inverse of the cumulative sum.

    (W,), () -> ()

    `u` is uniform in [0, 1). A token of probability 0 is never picked: its step has no height.
    """
    cumulative = np.cumsum(p)
    # Scaled by the last sum instead of 1, which rounding may miss on either side.
    return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))


def sample(logits, rng, seen=(), n_top=0, **settings):
    """Choose the next token: penalize, filter, draw; report what the model itself thought of it.

    (W,), ... -> Choice

    `rng` is a `numpy.random.Generator`; it gives one number for each call, also when the choice is
    greedy, so that one greedy token does not shift the rest. `seen` are the ids that the
    repetition penalty is about, `settings` the fields of `Settings`.
    Raises: ValueError if a logit is not finite or a setting makes no sense.
    """
    penalty = Settings(**settings).repetition_penalty
    settings.pop("repetition_penalty", None)
    logprobs, model_logits = log_probabilities(logits), logits
    if penalty is not None:
        logits = penalize_repetition(logits, seen, penalty)
    chosen = pick(probabilities(logits, **settings), rng.random())
    best = np.argsort(-check_finite(model_logits), kind="stable")[:n_top] if n_top else ()
    top = [(int(i), float(logprobs[i])) for i in best]
    return Choice(chosen, float(logprobs[chosen]), top)


def check_finite(logits):
    """Return the logits as float64.

    (W,) -> (W,)

    Raises: ValueError if one is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 1 or logits.size == 0:
        raise ValueError(f"logits must be one row (W,), found shape {logits.shape}")
    bad = np.flatnonzero(~np.isfinite(logits))
    if bad.size:
        raise ValueError(f"the logits must be finite, found {logits[bad[0]]} for token {bad[0]} "
                         f"({bad.size} of {logits.size} are not); a weight of the checkpoint may "
                         "be damaged")
    return logits


def _check(name, value, expected, is_good):
    try:
        good = type(value) is not bool and math.isfinite(value) and is_good(value)
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"{name} must be {expected}, found {quoted(value)}")
