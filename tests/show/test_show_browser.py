"""The page that shows a run, used as a person uses it: in a headless Chromium, which calls nobody.

    apt-get install chromium chromium-driver && pip install -e '.[browser]' && pytest -m browser
"""

import dataclasses
import shutil

import numpy as np
import pytest
from test_show import NASTY, data_of, record

import k2ref
from k2ref.show import page as show
from k2ref.show import readings
from k2ref.tokenizer import Tokenizer
from scripts.figures.screenshot import browser, view

pytestmark = pytest.mark.browser
pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("there is no chromium with its chromedriver", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model, its recording of a reply of 80 tokens, the page and its data."""
    model, file = k2ref.load(threads=1), tmp_path_factory.mktemp("show") / "out.html"
    recording = record(model, file, 80, temperature=0.9)
    return model, recording, file, data_of(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


@pytest.fixture
def page(driver, run):
    """The page, fresh; afterwards nothing was complained about and nothing was loaded."""
    view(driver, 1280, 960)
    driver.get(run[2].as_uri())
    yield driver
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def text(driver, selector):
    """The text of an element, as it can be seen."""
    return driver.find_element("css selector", selector).text


def texts(driver, selector):
    return [element.text for element in driver.find_elements("css selector", selector)]


def press(driver, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    chain = ActionChains(driver)
    for key in keys:
        chain.send_keys(getattr(Keys, key, key))
    chain.perform()


def at(driver):
    """Where the page is: token, layer, head."""
    return tuple(text(driver, f"#at-{what}") for what in ("token", "layer", "head"))


def click(driver, selector, place=0):
    """Click on an element, brought to where the bar at the bottom does not cover it."""
    element = driver.find_elements("css selector", selector)[place]
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    element.click()


def token(t):
    return f'.token[data-t="{t}"]'


def row(layer):
    return f'#layers tr[data-layer="{layer}"]'


def experts(run, layer, t):
    """What the page is to say of the experts of a token."""
    trace = run[1].trace
    mix = trace[f"layers.{layer}.moe.mix"][t]
    return [f"expert {e}\n{weight:.3f}" for e, weight in
            zip(trace[f"layers.{layer}.moe.chosen"][t], mix, strict=True)]


def test_it_opens_at_the_first_token_of_the_reply(page, run):
    _, recording, _, data = run
    assert at(page) == (str(recording.replies[0][0]), "1", "mean")
    assert text(page, "h1") == data["asked"] and page.title == f"{data['asked']} · k2ref"
    assert len(page.find_elements("css selector", ".token")) == len(data["tokens"])
    assert set(texts(page, ".part h3")) >= {"system", "user", "assistant"}


@pytest.mark.parametrize("t", [1, 20, 60])
def test_a_click_on_a_token_shows_its_experts_and_its_alternatives(page, run, t):
    data = run[3]
    click(page, token(t))
    assert at(page)[0] == str(t)
    for layer in (1, 2, 3):
        click(page, row(layer))
        assert texts(page, "#chosen .bars > *") == experts(run, layer, t)
        assert at(page)[1] == str(layer)
    assert text(page, "#layer-title").startswith("Layer 3, reading ")
    shown = [line.split("\n")[-1] for line in texts(page, "#alternatives .bars > *")]
    expected = ["100 %" if p >= 0.9995 else "< 0.1 %" if p < 0.001 else f"{100 * p:.1f} %"
                for p in data["top_p"][t]]
    assert [line.split(" → ")[0] for line in shown][:len(expected)] == expected
    assert f"rank {data['rank'][t]}" in text(page, "#token-facts")


def test_keys_move_through_tokens_layers_and_heads(page, run):
    data, last = run[3], len(run[3]["tokens"]) - 1
    press(page, "HOME")
    assert at(page)[0] == "0"
    press(page, "ARROW_LEFT", "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")
    assert at(page)[0] == "3"
    press(page, "ARROW_DOWN", "l", "l", "h")
    assert at(page) == ("3", "2", "0")
    press(page, *["ARROW_UP"] * 5, "h", "h")
    assert at(page) == ("3", "in", "mean")
    press(page, *["ARROW_DOWN"] * 9, *["l"] * 9)
    assert at(page) == ("3", "3", "3")
    assert texts(page, "#chosen .bars > *") == experts(run, 3, 3)
    press(page, "END")
    assert at(page)[0] == str(last) and data["reason"] == "length"
    assert "did not read it" in text(page, "#layers")
    selected = page.find_elements("css selector", '.token[aria-selected="true"]')
    assert [element.get_attribute("data-t") for element in selected] == [str(last)]


def test_buttons_do_what_the_keys_do(page):
    start = at(page)
    for name, place in (("token", 0), ("layer", 1), ("head", 2)):
        page.find_element("id", f"{name}-on").click()
        assert at(page)[place] != start[place]
    for name in ("token", "layer", "head"):
        page.find_element("id", f"{name}-back").click()
    assert at(page) == start


def test_the_keyboard_alone_reaches_the_tokens_and_takes_the_focus_along(page):
    press(page, "TAB")
    focused = page.switch_to.active_element
    assert focused.get_attribute("aria-selected") == "true"
    press(page, "ARROW_RIGHT")
    assert page.switch_to.active_element.get_attribute("data-t") == at(page)[0]
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_tokens_are_shaded_by_the_attention_of_the_chosen_head(page, run):
    model, recording, _, data = run
    t, layer, head = 45, 2, 1
    click(page, token(t))
    click(page, row(layer))
    click(page, "#heads button", 1 + head)
    parts = [recording.trace[f"layers.{layer}.attn.{name}"] for name in
             ("q_nope", "q_rope", "c_kv", "k_rope")]
    weights = readings.attention_weights(*parts, model.layers[layer].attention, head,
                                         model.config.softmax_scale)[t]
    shades = page.execute_script("return [...document.querySelectorAll('.token')].map((token) => "
                                 "Number(token.style.getPropertyValue('--weight')))")
    expected = np.sqrt(np.rint(weights * 255) / 255) * 0.75
    np.testing.assert_allclose(shades[: t + 1], expected[: t + 1], atol=6e-4)
    assert not any(shades[t + 1:])
    shown = [int(line.split()[0]) for line in texts(page, "#keys .bars > *")]
    assert shown[0] == np.argmax(np.rint(weights * 255)) and len(shown) <= 6
    click(page, "#keys .bars > *")
    assert at(page)[0] == str(shown[0])


def test_a_map_tells_layer_and_expert_under_the_pointer(page, run):
    data = run[3]
    canvas = page.find_element("id", "map-run")
    page.execute_script("""
        const canvas = arguments[0], box = canvas.getBoundingClientRect();
        canvas.scrollIntoView({ block: "center" });
        const { wide, high } = maps["map-run"], at = canvas.getBoundingClientRect();
        for (const type of ["pointermove", "click"]) {
          canvas.dispatchEvent(new PointerEvent(type, { bubbles: true,
            clientX: at.left + 28 + 5.5 * wide, clientY: at.top + 2.5 * high }));
        }""", canvas)
    n = data["counts"][2, 5]
    assert text(page, "#map-run-read").startswith(f"Layer 3, expert 5: {n} of {data['n_run']} ")
    assert at(page)[1] == "3"
    assert "layer 1: " in page.find_element("id", "map-token").get_attribute("aria-label")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(driver, page, run, width, dark):
    view(driver, width, 740, dark)
    press(page, "END", "ARROW_LEFT", "ARROW_DOWN", "l")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for name in ("nav button", "nav b", "#cost td", "#layers td", ".pick", "canvas"):
        for element in page.find_elements("css selector", name):
            assert 0 <= element.rect["x"], name
            assert element.rect["x"] + element.rect["width"] <= width, name
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark


def test_a_finger_moves_tokens_and_the_details_stay_in_view(driver, page):
    view(driver, 360, 740)
    tokens = page.find_element("id", "tokens")
    for t in (3, 10):
        click(page, token(t))
        assert at(page)[0] == str(t)
    assert tokens.rect["height"] < 0.5 * 740  # there is room for what it says about them
    assert page.execute_script("return scrollY") < 400


def test_what_the_model_says_is_text_and_nothing_else(driver, run, tmp_path):
    model = run[0]
    vocabulary = [model.tokenizer.id_to_bytes(id) for id in range(len(model.tokenizer.ranks))]
    vocabulary[-1] = NASTY.replace("alert(1)", "document.title='owned'").encode()
    names = dict(model.tokenizer.special_tokens)
    tokenizer = Tokenizer(vocabulary, names)
    tokenizer.style = model.tokenizer.style
    model = dataclasses.replace(model, tokenizer=tokenizer)
    about = {"asked": NASTY, "checkpoint": NASTY, "k2ref": "1", "kernels": NASTY, "stop_ids": [5],
             "settings": {"temperature": 0}, "replies": [[2, [len(vocabulary) - 1, 5], "length"]]}
    trace = k2ref.trace.Trace()
    k2ref.forward(model, [7, len(vocabulary) - 1, len(vocabulary) - 1], trace=trace)
    context = trace.context()
    about["stages"] = ["embed"] * context["time_s"].shape[1]
    file = tmp_path / "a.html"
    file.write_text(show.page(model, {**trace.arrays, **context}, about), encoding="utf-8")
    driver.get(file.as_uri())
    press(driver, "HOME", "ARROW_RIGHT", "ARROW_RIGHT")
    assert driver.title == f"{NASTY[:80]} · k2ref" and text(driver, "h1").startswith("</script>")
    assert driver.find_elements("css selector", "img") == []
    assert text(driver, token(1)).startswith("</script><img src=x")
    assert driver.get_log("browser") == []
