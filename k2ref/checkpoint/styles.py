"""The chat styles of the family: in what their prompts and replies differ, and which one it is.

    moonlight     a default system message; roles and text alone, no names and no tools
    k2-instruct   another one; names and tools
    k2-thinking   the same; a reply is <think>thinking</think>content
    k2.5          no default system message; the prompt opens <think>, or opens and closes it
    k2.6          the same; thinking of earlier turns can be kept
    k2.7-code     the prompt opens <think>, and thinking of earlier turns is always kept

All that depends on the style is a field of `Style` and stands in the table STYLES. No file of a
checkpoint names its style, so `style_of` goes by what the official files differ in.

Chapter 02.
"""

import hashlib
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from k2ref.doors import intake
from k2ref.tokenizer import TokenizerError

DEFAULT = "k2-thinking"  # of a tokenizer that belongs to no checkpoint
KIMI = "You are Kimi, an AI assistant created by Moonshot AI."
NEWER = {"thinks": True, "opens": True, "declare": "typescript"}
OR = " or "  # between the styles of a checkpoint whose files leave open which it is
SMALL = 1 << 20  # bytes: no file that is looked at here is larger
# K2.7 Code has the config.json of K2.6: the template tells, of which the digest alone is known.
K27_TEMPLATE = "8d21200dff7e85beaf51c8b110952e039ffd0779f615d64d63293d74773360f9"


class ChatError(ValueError):
    """A fault of a message, a tool or a way to render them."""


@dataclass(frozen=True)
class Style:
    """One chat style: what template, tokenizer and model card say of the conversations."""

    name: str
    system: str = ""  # the message that comes first where a conversation has no system message
    plain: bool = False  # roles and text alone: no names, no tools, nothing for no messages
    thinks: bool = False  # a reply has <think>
    opens: bool = False  # the prompt opens it, else the model does
    instant: bool = False  # it can be asked to answer without thinking
    keeps: str = "never"  # thinking of turns that have an answer: "never", "asked", "always"
    reasoning: tuple = ("reasoning_content",)  # where a message has its thinking, the first wins
    declare: str = "json"  # how tools are written
    settings: dict = field(default_factory=dict)  # that the model card recommends
    settings_instant: dict = field(default_factory=dict)  # and those for answers without thinking


STYLES = {style.name: style for style in (
    Style("k2-instruct", KIMI, settings={"temperature": 0.6}),
    Style("k2-thinking", KIMI, thinks=True, settings={"temperature": 1.0}),
    # Trap: instant mode is sampled at 0.6, not at the 1.0 of thinking.
    # Source: the model cards of Kimi-K2.5 and Kimi-K2.6, the model card of Kimi-K2.7-Code.
    Style("k2.5", **NEWER, instant=True, settings={"temperature": 1.0, "top_p": 0.95},
          settings_instant={"temperature": 0.6, "top_p": 0.95}),
    Style("k2.6", **NEWER, instant=True, keeps="asked", reasoning=("reasoning",
          "reasoning_content"), settings={"temperature": 1.0, "top_p": 0.95},
          settings_instant={"temperature": 0.6, "top_p": 0.95}),
    Style("k2.7-code", **NEWER, keeps="always", reasoning=("reasoning", "reasoning_content"),
          settings={"temperature": 1.0, "top_p": 0.95}),
    Style("moonlight", "You are a helpful assistant", plain=True),
)}


def style_for(tokenizer, name=None):
    """Return the `Style` of a name, by default the tokenizer's own, else K2 Thinking's.

    Raises: TokenizerError for a model without a tokenizer; ChatError for a name that is none, or a
    checkpoint whose files leave its style open.
    """
    if tokenizer is None:
        raise TokenizerError("the model has no tokenizer: its directory lacks tiktoken.model, "
                             "which turns text into tokens; download it from the checkpoint's page")
    if name is None:
        name = getattr(tokenizer, "style", None) or DEFAULT
    if isinstance(name, str) and name in STYLES:
        return STYLES[name]
    if isinstance(name, str) and set(name.split(OR)) <= set(STYLES):
        raise ChatError(f"style: the files of the checkpoint leave open whether it is {name}; say "
                        "which (--style, or load(path, style=...))")
    raise ChatError(f"style: expected one of {', '.join(STYLES)}, found {intake.quoted(name)}")


def style_of(config, tokenizer, path=None):
    """Name the chat style of a checkpoint; where its files leave it open, "one or another".

    Its template says most; then comes config.json, and last a name that somebody gave it. A nested
    checkpoint with nothing but config.json is taken for K2.6, with a warning: K2.7 Code has the
    same file, and differs in what later turns show of the thinking.
    """
    left = _by_config(config, tokenizer)
    if path is not None:
        template = _by_template(Path(path))
        # A template that contradicts config.json is what somebody wants to be used.
        left = [name for name in left if name in template] or template or left
        for found in (_by_code(Path(path)), _by_name(Path(path))):
            left = [name for name in left if name in found] or left
    if left == ["k2.6", "k2.7-code"] and config.tensor_prefix:
        warnings.warn("the files of the checkpoint leave open whether it is k2.6 or k2.7-code; it "
                      "is taken for k2.6 (--style, or load(path, style=...), says which)",
                      stacklevel=3)
        return "k2.6"
    return OR.join(left)


def _by_config(config, tokenizer):
    """List the styles that config.json allows.

    - K2.5 and later are nested (their tensors have a prefix), and so their language model has a
      `beta_fast` of 32 where it stands alone. K2.5 ends with [EOS], later ones with <|im_end|>.
    - Moonlight alone has a single query projection.
    - Of the rest Base, Instruct and Instruct 0905 end with [EOS]. K2 Thinking ends with <|im_end|>
      and has INT4 experts or, should someone have converted them, still <think> in its vocabulary.
    """
    ends = config.eos_token_id
    ends = ends if isinstance(ends, list | tuple) else [ends]
    ends_turn = tokenizer.special_id("<|im_end|>") in ends
    if config.tensor_prefix or (config.rope_scaling and config.rope_scaling.beta_fast > 1):
        later = ["k2.6", "k2.7-code"] if ends_turn else []
        return later if later and len(ends) == 1 else ["k2.5", *later]
    if config.q_lora_rank is None:
        return ["moonlight"]
    is_int4 = (config.quantization_config or {}).get("quant_method") == "compressed-tensors"
    thinks = is_int4 or tokenizer.special_id("<think>") is not None
    return ["k2-thinking"] if ends_turn and thinks else ["k2-instruct"]


def _by_template(path):
    """List the styles whose template it may be; none if there is no template."""
    text = _text(path / "chat_template.jinja")
    if not text:
        try:
            text = intake.read_json(path / "tokenizer_config.json", SMALL, ChatError)
        except ChatError:
            return []
        text = text.get("chat_template") if isinstance(text, dict) else None
    if not isinstance(text, str):
        return []
    if hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == K27_TEMPLATE:
        return ["k2.7-code"]
    if "<think>" not in text:
        return ["k2-instruct"] if "tool" in text else ["moonlight"]
    # The variables of the templates: `thinking` asks for an answer at once, `preserve_thinking`
    # keeps that of earlier turns, and `tools_ts_str` comes from the tokenizers of K2.5 and later.
    is_instant, keeps = re.search(r"\bthinking\b", text), "preserve_thinking" in text
    if KIMI in text or not (is_instant or keeps or "tools_ts_str" in text):
        return ["k2-thinking"]
    if not is_instant:
        return ["k2.7-code", "k2.5"]  # the latter should have it, and is known by its config.json
    return ["k2.6"] if keeps else ["k2.5"]


def _by_code(path):
    """List the styles whose tokenizer's code it may be."""
    text = _text(path / "tokenization_kimi.py")
    always = r"always[^.]{0,80}(think|reason|preserv)|(think|reason|preserv)[^.]{0,80}always"
    return ["k2.7-code"] if re.search(always, text, re.I) else []


def _by_name(path):
    """List the styles that the names of the checkpoint speak of: the hub's, the directory's."""
    named = re.findall(r'"_name_or_path"\s*:\s*"([^"]*)"', _text(path / "config.json"))
    path = path.resolve()
    named += [path.name, *(part for part in path.parts if part.startswith("models--"))]
    patterns = {"k2.5": "k2[._p]5", "k2.6": "k2[._p]6", "k2.7-code": "k2[._p]7"}
    return [style for style, pattern in patterns.items()
            if any(re.search(pattern, name, re.I) for name in named)]


def _text(file):
    """Read a small text file; what is none counts as empty."""
    try:
        return intake.read_bytes(file, SMALL, ChatError).decode("utf-8", "replace")
    except ChatError:
        return ""
