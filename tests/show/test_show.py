"""The page that shows a run: its data are those of the run, it is small, and it loads nothing."""

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from conftest import COMPILED
from scripted import answer, calling, script

import k2ref
from k2ref import sampling
from k2ref.cli.main import main
from k2ref.show import page as show
from k2ref.show import readings
from k2ref.show.recording import Recording
from k2ref.trace import Trace
from scripts.checkpoints.small import LAYOUTS

NASTY = "</script><img src=x onerror=alert(1)><!-- & \u2028"
DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f4": np.float32}
# How far two computations of one probability may lie apart: not at all on the kernels; on NumPy,
# whose logits are off by at most 5e-5 (as in conftest), by half of that: p (1 - p) is at most 1/4.
NEAR = 1e-6 if COMPILED else 2.5e-5
SETTINGS = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2}


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def record(model, file, n_new, asked="What is 37+58?", stop_ids=(), **settings):
    """Ask a model and write the page; return the trace."""
    ids = k2ref.render(model.tokenizer, [{"role": "user", "content": asked}])
    recording = Recording(model, page_file=file, settings=settings, say=str, asked=asked,
                          k2ref="1", checkpoint="c")
    recording.begin(len(ids))
    tokens = k2ref.generate(recording.model, ids, n_new, seed=1, stop_ids=list(stop_ids),
                            **settings)
    while True:
        try:
            recording.wrote(next(tokens))
        except StopIteration as end:
            recording.end(end.value)
            recording.save()
            return recording


def data_of(text):
    """The data in a page, arrays unpacked."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return unpacked(json.loads(data))


def unpacked(value):
    if isinstance(value, dict):
        return {name: unpacked(inner) for name, inner in value.items()}
    if isinstance(value, list) and len(value) == 3 and value[0] in tuple(DTYPES):
        array = np.frombuffer(base64.b64decode(value[2]), DTYPES[value[0]])
        return array.reshape(value[1])
    return value


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A reply of 300 tokens: the recording, the page, its data."""
    file = tmp_path_factory.mktemp("show") / "out.html"
    recording = record(model, file, 300, **SETTINGS)
    text = file.read_text(encoding="utf-8")
    return recording, text, data_of(text)


def test_a_page_of_300_tokens_is_small(run):
    _, text, data = run
    assert len(text.encode()) < 5_000_000 and data["notes"] == []
    assert len(data["tokens"]) == run[0].replies[0][0] + 300


def test_only_what_the_page_needs_is_recorded(model):
    recorded = Trace(show.RECORDED)
    k2ref.forward(model, [5, 6], trace=recorded)
    kept = {name.split(".")[-1] for name in recorded.arrays}
    assert kept == {"embed", "q_nope", "q_rope", "c_kv", "k_rope", "chosen", "mix", "out", "logits"}
    assert [name for name in recorded.arrays if name.endswith("out")] == [
        f"layers.{i}.out" for i in range(4)]


def test_a_page_loads_nothing(run):
    text = re.sub(r'(<script type="application/json".*?>).*?</script>', r"\1", run[1])
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\b|XMLHttp|WebSocket|import\(",
                         text)
    assert re.findall(r'(?:src|href)="?([^"> ]*)', text) == ["data:,"]
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text, re.S)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind, element in (("script", "<script>(.*?)</script>"), ("style", "<style>(.*?)</style>")):
        code = re.search(element, text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_no_attribute_holds_code():
    text = (show.CODE / "page.html").read_text(encoding="utf-8")
    assert not re.search(r'\bon\w+="|style="|javascript:', text)
    for name in show.SCRIPTS:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b",
                             (show.CODE / name).read_text(encoding="utf-8"))


def test_what_was_said_cannot_end_the_element_that_holds_it(model, tmp_path):
    recording = record(model, tmp_path / "a", 2, asked=NASTY)
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text.count("</script") == 2 and "<img" not in text and "<!--" not in text
    data = data_of(text)
    assert data["asked"] == NASTY
    ids = recording.trace.context()["ids"].tolist()
    shown = "".join(data["words"][str(id)][0] for id in ids)
    assert NASTY[:-1] in shown and "&lt;/script&gt;" in re.search("<title>(.*?)</title>", text)[1]


def test_probabilities_are_those_of_sampling(run):
    recording, _, data = run
    logits, ids, n_prompt = recording.trace["logits"], data["tokens"], recording.replies[0][0]
    assert data["first"] == 0 and data["p"][0] == -1 and data["rank"][0] == 0
    for t in range(1, len(ids)):
        row = logits[t - 1]
        p = np.exp(sampling.log_probabilities(row))
        assert data["p"][t] == pytest.approx(p[ids[t]], rel=1e-6)
        top = np.argsort(-row, kind="stable")[:show.N_TOP]
        assert data["top"][t].tolist() == top.tolist()
        assert data["rank"][t] == 1 + (row > row[ids[t]]).sum()
        # float32 has no smaller steps than 2**-149, which is much where p is about 1e-41.
        np.testing.assert_allclose(data["top_p"][t], p[top], rtol=1e-6, atol=2**-149)
        if t < n_prompt:
            assert data["q"][t] == -1 and (data["top_q"][t] == -1).all()
            continue
        settings = dict(SETTINGS)
        row = sampling.penalize_repetition(row, ids[:t], settings.pop("repetition_penalty"))
        q = sampling.probabilities(row, **settings)
        assert data["q"][t] == pytest.approx(q[ids[t]], rel=1e-6) and data["q"][t] > 0
        np.testing.assert_allclose(data["top_q"][t], q[top], rtol=1e-6)


def test_experts_are_those_of_the_trace(run):
    recording, _, data = run
    assert data["moe"] == [1, 2, 3]
    for place, i in enumerate(data["moe"]):
        chosen = recording.trace[f"layers.{i}.moe.chosen"]
        assert (data["chosen"][place] == chosen).all()
        assert (data["mix"][place] == recording.trace[f"layers.{i}.moe.mix"]).all()
        for e in range(data["n_experts"]):
            assert data["counts"][place, e] == (chosen == e).sum()
    assert data["counts"].sum() == 3 * chosen.size


def test_each_layer_has_its_norm_and_its_guess(run, model):
    recording, _, data = run
    a = recording.trace
    assert data["lens"] == [-1, 0, 1, 2, 3] and data["guess"].shape == (5, len(a["embed"]), 5)
    for layer, name in zip(data["lens"], ["embed", *(f"layers.{i}.out" for i in range(4))],
                           strict=True):
        x = a[name].astype(np.float64)
        np.testing.assert_allclose(data["norm"][layer + 1], np.sqrt((x * x).sum(-1)), rtol=1e-5)
        h = k2ref.ops.rms_norm(a[name], model.norm, model.config.rms_norm_eps)
        p = k2ref.ops.softmax(k2ref.ops.linear(h, model.lm_head, 1))
        found = np.take_along_axis(p, data["guess"][layer + 1].astype(int), -1)
        np.testing.assert_allclose(found, -np.sort(-p, -1)[:, :5], rtol=0, atol=NEAR)
        np.testing.assert_allclose(data["guess_p"][layer + 1] / 65535, found, rtol=0,
                                   atol=0.5 / 65535 + NEAR)
    # The last guess is what the model says.
    p = np.take_along_axis(k2ref.ops.softmax(a["logits"]), data["guess"][-1].astype(int), -1)
    np.testing.assert_allclose(p, found, rtol=0, atol=NEAR)


def test_attention_on_the_page_is_that_of_the_run(run, model):
    recording, _, data = run
    a, kept, n = recording.trace, data["attention"], len(data["tokens"]) - 1
    assert kept["layers"] == [0, 1, 2, 3] and kept["heads"] == [0, 1, 2, 3]
    starts = np.concatenate([[0], np.cumsum(kept["n"].ravel())]).astype(int)
    for layer in kept["layers"]:
        parts = [a[f"layers.{layer}.attn.{name}"] for name in
                 ("q_nope", "q_rope", "c_kv", "k_rope")]
        maps = [readings.attention_weights(*parts, model.layers[layer].attention, h,
                                           model.config.softmax_scale) for h in range(4)]
        for place, weights in enumerate([np.mean(maps, axis=0), *maps]):
            for t in (0, 1, 40, n - 1):
                start = starts[(layer * 5 + place) * n + t]
                keys = slice(start, start + kept["n"][layer, place, t])
                found = np.zeros(n)
                found[kept["at"][keys]] = kept["weight"][keys] / 255
                assert (kept["at"][keys] <= t).all() and (np.diff(kept["weight"][keys].astype(int))
                                                          <= 0).all()
                if keys.stop - keys.start < show.N_KEYS:
                    np.testing.assert_allclose(found, weights[t], atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_weights_bring_back_what_the_heads_brought(tiny_model, layout):
    m, recorded = tiny_model(layout), Trace()
    k2ref.forward(m, np.arange(40) * 7 % 512, trace=recorded)
    for i, layer in enumerate(m.layers):
        at = f"layers.{i}.attn."
        q_nope, q_rope, c_kv, k_rope, heads = (recorded[at + name] for name in
                                               ("q_nope", "q_rope", "c_kv", "k_rope", "heads"))
        for h in range(heads.shape[1]):
            for T in (40, 3):  # all tokens, and the last three
                p = readings.attention_weights(q_nope[-T:], q_rope[-T:], c_kv, k_rope,
                                               layer.attention, h, m.config.softmax_scale)
                np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
                value = c_kv @ layer.attention.W_UV[h].dequantize().T
                np.testing.assert_allclose(p @ value, heads[-T:, h], atol=1e-5)


def test_the_strongest_weights_come_first_and_no_others():
    n, at, steps = readings.strongest(np.array([[0.5, 0.0, 0.3, 0.2], [0.001, 0.999, 0, 0]]), 3)
    assert n.tolist() == [3, 1] and at.tolist() == [0, 2, 3, 1]
    assert steps.tolist() == [128, 76, 51, 255] and steps.dtype == np.uint8


def test_rows_read_again_replace_those_before():
    position = np.array([0, 1, 2, 3, 4, 2, 3, 4, 5, 3])
    assert readings.final_rows(position).tolist() == [0, 1, 5, 9]
    assert readings.final_rows(np.arange(3)).tolist() == [0, 1, 2]


def test_words_are_text_control_tokens_or_bytes(model):
    tokenizer = model.tokenizer
    euro = tokenizer.encode("\u20ac")
    assert readings.word(tokenizer, tokenizer.special_id("<think>")) == ["<think>", 1]
    assert readings.word(tokenizer, tokenizer.encode("a")[0]) == ["a", 0]
    if len(euro) > 1:
        assert readings.word(tokenizer, euro[0]) == ["e2 82" if len(euro) == 2 else "e2", 2]
    assert readings.word(tokenizer, tokenizer.n_vocab + 5) == [f"id {tokenizer.n_vocab + 5}", 1]


def page_of(capsys, tmp_path, *args):
    """The data of a page that the command wrote."""
    assert main([*args, "--show", str(tmp_path / "a.html")]) in (0, 130)
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and err.splitlines()[1].startswith(f"k2ref: {tmp_path}/a.html: ")
    return data_of((tmp_path / "a.html").read_text(encoding="utf-8"))


def labels(data):
    return [label for label, _, _ in data["sections"]]


def test_thinking_and_answer_are_told_apart_and_the_end_is_shown(
        model, monkeypatch, capsys, tmp_path):
    script(monkeypatch, model, answer("One.", "hm"))
    data = page_of(capsys, tmp_path, "a")
    assert labels(data) == ["system", "user", "assistant", "thinking", "answer"]
    said = {}
    for (label, start, by_model), stop in zip(
            data["sections"], [s for _, s, _ in data["sections"][1:]] + [len(data["tokens"])],
            strict=True):
        ids = [id for id in data["tokens"][start:stop] if id is not None]
        said[label] = "".join(data["words"][str(id)][0] for id in ids)
        assert by_model == (label in ("thinking", "answer"))
    assert said["thinking"] == "<think>hm</think>" and said["answer"] == "One."
    assert said["user"] == "<|im_user|>user<|im_middle|>a<|im_end|>"
    # The model is scripted, so what it held likely is its own: the end has the stop ids' share.
    assert data["tokens"][-1] is None and data["reason"] == "stop" and 0 < data["p"][-1] < 1


def test_calls_and_results_have_sections_of_their_own(model, monkeypatch, capsys, tmp_path):
    script(monkeypatch, model,
           calling(("functions.calculator:0", '{"expression": "2*3"}'), thinking="hm"),
           answer("6."))
    data = page_of(capsys, tmp_path, "--tools", "calculator", "go")
    assert labels(data)[-6:] == ["tool call", "assistant", "calculator", "assistant", "thinking",
                                 "answer"]
    assert len(data["tokens"]) - 1 == len(data["p"]) - 1 == data["time_s"].shape[0]


def test_a_reply_without_end_shows_its_last_token(model, tmp_path):
    recording = record(model, tmp_path / "a", 4, temperature=0)
    data = data_of((tmp_path / "a").read_text(encoding="utf-8"))
    n_prompt, drawn, _ = recording.replies[0]
    assert data["tokens"][n_prompt:] == drawn and data["time_s"].shape[0] == n_prompt + 3
    assert data["p"][-1] > 0 and (data["q"] == -1).all()  # greedy: nothing was drawn


def test_raw_text_is_continued(capsys, tmp_path):
    data = page_of(capsys, tmp_path, "--raw", "--max-tokens", "2", "a b c")
    assert labels(data)[0] == "prompt" and set(labels(data)) <= {"prompt", "continuation"}


def test_a_model_with_nothing_to_route_has_a_page(model, tmp_path):
    arrays = Trace()
    ids = [5, 6, 7]
    k2ref.forward(model, ids, trace=arrays)
    about = {"asked": "", "checkpoint": "c", "k2ref": "1", "kernels": "k", "settings": {
        "temperature": 0}, "stop_ids": [], "stages": ["embed"], "replies": [[3, [], "stop"]]}
    dense = dataclasses.replace(model.config, first_k_dense_replace=4)
    found = {**arrays.arrays, **arrays.context(), "time_s": np.ones((3, 1))}
    text = show.page(dataclasses.replace(model, config=dense), found, about)
    assert data_of(text)["moe"] == []


# The budget.

@pytest.mark.thorough
def test_what_does_not_fit_is_left_out_and_said(model, tmp_path, monkeypatch):
    whole = len(record_text(model, tmp_path))
    for budget, part in ((130_000, "largest"), (80_000, "heads"), (40_000, "tokens")):
        monkeypatch.setattr(show, "BUDGET", budget)
        text = record_text(model, tmp_path)
        data = data_of(text)
        size = len(json.dumps(json.loads(re.search(r'id="data">(.*?)</script>', text)[1])))
        assert len(text) < whole and size < budget * 1.1
        assert part in " ".join(data["notes"]), data["notes"]
        n = len(data["tokens"]) - 1
        assert data["p"].shape == (n + 1,) and data["norm"].shape == (5, n)
        assert data["attention"]["n"].shape == (
            len(data["attention"]["layers"]), len(data["attention"]["heads"]) + 1, n)


def record_text(model, tmp_path):
    record(model, tmp_path / "a", 120, temperature=1.0)
    return (tmp_path / "a").read_text(encoding="utf-8")


def test_the_last_tokens_stay(model, tmp_path, monkeypatch):
    monkeypatch.setattr(show, "MOST_TOKENS", 10)
    recording = record(model, tmp_path / "a", 8, temperature=1.0)
    data, context = data_of((tmp_path / "a").read_text("utf-8")), recording.trace.context()
    n = len(context["ids"])
    assert data["first"] == n - 10 and data["tokens"][:-1] == context["ids"][-10:].tolist()
    assert data["notes"] == [f"The first {n - 10} of {n} tokens are left out."]
    assert (data["chosen"][0] == recording.trace["layers.1.moe.chosen"][-10:]).all()
    assert data["counts"].sum() == n * 3 * 2  # of the whole run
    assert data["sections"][0][1] == 0


def test_a_lens_that_takes_too_long_looks_at_fewer_layers(model, tmp_path, monkeypatch):
    n = len(k2ref.render(model.tokenizer, [{"role": "user", "content": "What is 37+58?"}])) + 1
    work = n * model.config.vocab_size * model.config.hidden_size
    monkeypatch.setattr(show, "LENS_WORK", 2.5 * work)
    record(model, tmp_path / "a", 2, temperature=0)
    data = data_of((tmp_path / "a").read_text("utf-8"))
    assert data["lens"] == [1, 3]
    assert data["notes"] == ["The guess for the next token is there for 2 of 5 places in the "
                             "residual."]


@pytest.mark.parametrize("n, most, expected", [
    (5, 9, [0, 1, 2, 3, 4]), (5, 5, [0, 1, 2, 3, 4]), (6, 3, [1, 3, 5]), (5, 1, [4]), (5, 0, []),
    (61, 4, [15, 30, 45, 60]), (3, -1, [])])
def test_spread(n, most, expected):
    assert show.spread(n, most) == expected


def contrast(a, b):
    """The contrast of two colours as WCAG 2 defines it."""
    def luminance(colour):
        values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_the_light_and_in_the_dark():
    css = (show.CODE / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in
                   re.findall(r":root \{(.*?)\}", css, re.S))
    assert light.keys() == dark.keys()
    for c in (light, dark):
        for text in ("ink", "dim"):
            for ground in ("card", "ground", "empty"):
                assert contrast(c[text], c[ground]) >= 4.5, (text, ground)
        assert contrast(c["ink"], c["bar"]) >= 4.5 and contrast(c["ink"], c["mine"]) >= 4.5
        assert contrast(c["on-choice"], c["choice"]) >= 4.5
        for line in ("p1", "p2", "p3", "choice"):
            assert contrast(c[line], c["card"]) >= 3
