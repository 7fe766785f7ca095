"""k2ref: a readable, exact reference for Kimi K2 Thinking that runs on a CPU.

    model = k2ref.load()                                # or load("path/to/Kimi-K2-Thinking")
    for event in k2ref.chat(model, [{"role": "user", "content": "37+58="}]):
        print(event)
    for event in k2ref.Agent(model, [function, ...]).run("What is 4821 * 377?"):
        print(event)
"""

from k2ref import endings  # noqa: F401  first, as what follows takes a while: Ctrl-C may come

# isort: split
from k2ref import events, ops, quant, trace
from k2ref.agent import Agent
from k2ref.attention import KVCache
from k2ref.checkpoint import CheckpointError
from k2ref.config import Config, ConfigError
from k2ref.conversation import Context, chat
from k2ref.generate import generate
from k2ref.model import Model, forward, load
from k2ref.reply import Reply, ReplyParser, ToolCall, parse
from k2ref.schema import ToolError
from k2ref.session import SessionError
from k2ref.template import ChatError, render
from k2ref.tokenizer import Decoder, Tokenizer, TokenizerError

__version__ = "0.1.0"
__all__ = [
    "Agent", "ChatError", "CheckpointError", "Config", "ConfigError", "Context", "Decoder",
    "KVCache", "Model", "Reply", "ReplyParser", "SessionError", "Tokenizer", "TokenizerError",
    "ToolCall", "ToolError", "chat", "events", "forward", "generate", "load", "ops", "parse",
    "quant", "render", "trace",
]
