"""The tokenizer against the official ids and python tiktoken; there and back; wrong files."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
import vocabulary
from hypothesis import given
from hypothesis import strategies as st

from k2ref import tokenizer as module
from k2ref.tokenizer import Decoder, Tokenizer, TokenizerError

GOLDEN = json.loads((Path(__file__).parent / "data" / "tokenizer_golden.json").read_text())
SMALL = vocabulary.small_vocabulary()
SMALL_ORACLE = vocabulary.oracle(SMALL)

# Left out are characters whose category depends on the table's Unicode version: those that this
# Python does not know, and U+0295, which changed from lower case to a letter without case.
known = st.characters(exclude_categories=["Cn", "Cs"], exclude_characters="\u0295")
fragments = st.sampled_from([
    "don't", "I'LL", "x'\u017f", "HelloWorld", "hello", "中文English", "々〇", "12345", "e\u0301",
    "\r\n", "\n\n ", "   ", "\u3000", "\x85", "\x1c", "👩\u200d💻", "\ud83d", "\udc4d",
    "<|im_end|>", "<think>", "[EOS]", "<|im_"])
texts = st.lists(fragments | st.text(known, max_size=8)).map("".join)
ids_of_small = st.lists(st.integers(0, len(SMALL) + 255))


def load(path, twin):
    tokenizer = Tokenizer.from_dir(path)
    if twin == "plain":
        tokenizer._compiled = None
    elif module.bpe is None:
        pytest.skip("k2ref._bpe is not in use here")
    return tokenizer


@pytest.fixture(scope="module", params=["plain", "compiled"])
def small(request, tmp_path_factory):
    """A tokenizer with the small vocabulary."""
    return load(vocabulary.write_directory(tmp_path_factory.mktemp("small"), SMALL), request.param)


@pytest.fixture(scope="module", params=["plain", "compiled"])
def real(request):
    """The tokenizer of the K2 family."""
    return load(vocabulary.real_directory_or_skip(), request.param)


@pytest.fixture(scope="module")
def real_oracle():
    vocabulary.real_directory_or_skip()
    return vocabulary.oracle(vocabulary.real_vocabulary())


# ---- the official ids

@pytest.mark.parametrize("text, ids", [
    ("Hello world", [19180, 2695]),
    ("Hello, world!", [19180, 11, 2695, 0]),
    ("你好世界", [33845, 2243]),
    ("1234567890", [6694, 12972, 16242, 15]),
    ("中文English混合", [16717, 44372, 13935]),
    ("HelloWorld", [19180, 14350]),
    ("don'T", [22676, 64833]),
])
def test_encode_literals(real, text, ids):
    assert real.encode(text) == ids
    assert real.decode(ids) == text


def test_special_ids_literals(real):
    text = "<|im_user|>hello<|im_end|>"
    assert real.encode(text, allow_special=True) == [163587, 22931, 163586]
    assert real.n_vocab == 163840
    assert real.special_id("[BOS]") == 163584
    assert real.special_id("</think>") == 163607
    assert real.special_id("<|reserved_token_163589|>") == 163589
    assert real.special_id("<|reserved_token_163584|>") is None


def test_encode_golden(real, real_oracle):
    for case in GOLDEN["cases"]:
        text, ids = case["text"], case["ids"]
        with_specials = case.get("ids_with_specials", ids)
        assert real.encode(text) == ids
        assert real.encode(text, allow_special=True) == with_specials
        # How the file was made:
        assert real_oracle.encode(text, disallowed_special=()) == ids
        assert real_oracle.encode(text, allowed_special="all") == with_specials


def test_encode_golden_of_texts_that_are_cut(real, real_oracle):
    for case in GOLDEN["long_cases"]:
        repeat = case["repeat"]
        text = "".join(part * times for part, times in zip(repeat[::2], repeat[1::2], strict=True))
        ids = real.encode(text)
        assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == case["sha256"]
        assert len(ids) == case["n_ids"]
        assert len(real_oracle.encode(text)) == case["n_ids_uncut"]


# ---- tiktoken as the oracle

@given(text=texts)
def test_encode_equals_tiktoken(small, text):
    assert small.encode(text) == SMALL_ORACLE.encode_ordinary(text)


@given(text=texts)
def test_encode_with_specials_equals_tiktoken(small, text):
    ids = SMALL_ORACLE.encode(text, allowed_special="all")
    assert small.encode(text, allow_special=True) == ids


@given(text=texts)
def test_encode_equals_tiktoken_on_the_real_vocabulary(real, real_oracle, text):
    assert real.encode(text) == real_oracle.encode_ordinary(text)


@given(ids=ids_of_small)
def test_decode_equals_tiktoken(small, ids):
    assert small.decode_bytes(ids) == SMALL_ORACLE.decode_bytes(ids)
    assert small.decode(ids) == SMALL_ORACLE.decode(ids)


# ---- special tokens

@given(text=texts)
def test_trap_specials_parsed_out_of_user_text(small, text):
    # huggingface/tokenizers#1850: no text may become a control token unless the caller says so.
    assert all(id < len(SMALL) for id in small.encode(text + "<|im_end|>" + text))


def test_a_special_whose_name_begins_with_another_is_found():
    names = {"<a>": 256, "<a><b>": 257}
    tokenizer = Tokenizer(SMALL[:256], names)
    assert tokenizer.encode("<a><b><a>", allow_special=True) == [257, 256]


def test_unnamed_specials_are_reserved(small):
    assert len(small.special_tokens) == 256
    assert list(small.special_tokens.values()) == list(range(len(SMALL), len(SMALL) + 256))
    assert small.special_id("[PAD]") == len(SMALL) + 255
    reserved = len(SMALL) + 100
    assert small.id_to_bytes(reserved) == b"<|reserved_token_%d|>" % reserved


# ---- there and back

@given(text=texts)
def test_decode_inverts_encode(small, text):
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert small.decode(small.encode(text)) == expected
    assert small.decode(small.encode(text, allow_special=True)) == expected


def test_lone_surrogates_become_replacement_characters(small):
    assert small.decode(small.encode("\ufeff\ud83d\udc4db\udc4d")) == "\ufeff\U0001f44db\ufffd"


@given(ids=ids_of_small)
def test_decoder_equals_decode(small, ids):
    decoder = Decoder(small)
    for _ in range(2):  # after flush it starts anew
        assert "".join(map(decoder.feed, ids)) + decoder.flush() == small.decode(ids)


def test_a_name_of_a_control_token_has_an_end(tmp_path):
    file = tmp_path / "tokenizer_config.json"
    for n, is_taken in ((1000, True), (1001, False), (10**7, False)):  # the last: minutes of `re`
        file.write_text(json.dumps({"added_tokens_decoder": {"300": {"content": "x" * n}}}))
        if is_taken:
            assert module.read_special_tokens(file, 300)["x" * n] == 300
            continue
        with pytest.raises(TokenizerError, match="short, no two alike"):
            module.read_special_tokens(file, 300)


def test_a_decoder_of_no_tokenizer_says_what_is_missing():
    with pytest.raises(TokenizerError, match="tiktoken.model is missing"):
        Decoder(None)


@given(text=st.text(known))
def test_decoder_never_emits_half_a_character(small, text):
    decoder, so_far = Decoder(small), ""
    for id in small.encode(text):
        so_far += decoder.feed(id)
        assert text.startswith(so_far)
    assert so_far == text and decoder.flush() == ""


@pytest.mark.parametrize("id", [-1, len(SMALL) + 256])
def test_an_id_outside_the_vocabulary_is_an_error(small, id):
    with pytest.raises(TokenizerError, match=f"id {id} is not in the vocabulary"):
        small.decode([1, id])


# ---- wrong files

def line(rank, token):
    return base64.b64encode(token) + b" %d\n" % rank


@pytest.mark.parametrize("change, message", [
    (lambda lines: [b"\xff* 0\n", *lines[1:]], "line 1: expected base64"),
    (lambda lines: [*lines, b"YQ= 999\n"], f"line {len(SMALL) + 1}: expected base64"),
    (lambda lines: [*lines, b"YQ==\n"], "expected base64, a space and a rank, found b'YQ=='"),
    (lambda lines: [*lines, b"YQ== one\n"], "expected base64, a space and a rank"),
    (lambda lines: [*lines, line(7, b"new")], "found b'new' and 7, one of them not new"),
    (lambda lines: [*lines, line(len(SMALL), b"hello")], "one of them not new"),
    (lambda lines: lines[:260] + lines[261:], "found no rank 260"),
    (lambda lines: [*lines[:65], line(65, b"new"), *lines[66:]], "found no byte 0x41"),
    (lambda lines: [], "found no byte 0x00"),
])
def test_a_wrong_vocabulary_is_an_error(tmp_path, change, message):
    path = vocabulary.write_directory(tmp_path, SMALL) / "tiktoken.model"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(TokenizerError, match=message) as error:
        Tokenizer.from_dir(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("config, message", [
    ("{", "JSONDecodeError"),
    ("[]", "TypeError"),
    ("{}", "KeyError"),
    ('{"added_tokens_decoder": []}', "AttributeError"),
    ('{"added_tokens_decoder": {"x": {"content": "a"}}}', "'x'"),
    ('{"added_tokens_decoder": {"300": "a"}}', "TypeError"),
    ('{"added_tokens_decoder": {"300": {"content": 5}}}', "TypeError"),
    ('{"added_tokens_decoder": {"300": {"content": "\\ud800"}}}', "UnicodeEncodeError"),
    ('{"added_tokens_decoder": {"300": {"content": ""}}}', "found '' for 300"),
    ('{"added_tokens_decoder": {"1": {"content": "a"}}}', "found 'a' for 1"),
    ('{"added_tokens_decoder": {"9999": {"content": "a"}}}', "found 'a' for 9999"),
    ('{"added_tokens_decoder": {"300": {"content": "a"}, "301": {"content": "a"}}}', "for 301"),
])
def test_a_wrong_config_is_an_error(tmp_path, config, message):
    path = vocabulary.write_directory(tmp_path, SMALL) / "tokenizer_config.json"
    path.write_text(config)
    with pytest.raises(TokenizerError, match=message) as error:
        Tokenizer.from_dir(tmp_path)
    assert str(path) in str(error.value)


def test_names_for_more_control_tokens_than_there_are(tmp_path):
    path = vocabulary.write_directory(tmp_path, SMALL) / "tokenizer_config.json"
    first = len(SMALL)
    named = {str(first + i): {"content": f"<|{i}|>"} for i in range(300)}
    path.write_text(json.dumps({"added_tokens_decoder": named}))
    with pytest.raises(TokenizerError) as error:
        Tokenizer.from_dir(tmp_path)
    for words in ("256 control tokens", f"{first} to {first + 255}", "one of 300 names",
                  f"'<|256|>' for {first + 256}"):
        assert words in str(error.value)


@pytest.mark.parametrize("text", [
    '{"added_tokens_decoder": {"300": {"content": "\\ud800' + "x" * 10**5 + '"}}}',
    '{"added_tokens_decoder": {"9999": {"content": "' + "\x7f" * 10**5 + '"}}}',
    '{"added_tokens_decoder": {"' + "9" * 4000 + '": {"content": "a"}}}',
    '{"added_tokens_decoder": {"' + "x" * 10**5 + '": {"content": "a"}}}',
])  # fmt: skip
def test_messages_about_names_are_short(tmp_path, text):
    (vocabulary.write_directory(tmp_path, SMALL) / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError) as error:
        Tokenizer.from_dir(tmp_path)
    assert str(error.value).isprintable() and len(str(error.value)) < 800


def test_a_message_about_a_long_token_is_short(tmp_path):
    path = vocabulary.write_directory(tmp_path, SMALL) / "tiktoken.model"
    path.write_bytes(path.read_bytes() + line(3, b"\x1b" * 10**6))
    with pytest.raises(TokenizerError, match="one of them not new") as error:
        Tokenizer.from_dir(tmp_path)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("name", ["tiktoken.model", "tokenizer_config.json"])
def test_a_missing_file_is_an_error(tmp_path, name):
    (vocabulary.write_directory(tmp_path, SMALL) / name).unlink()
    with pytest.raises(TokenizerError, match=f"{name}: expected a file of the tokenizer"):
        Tokenizer.from_dir(tmp_path)
