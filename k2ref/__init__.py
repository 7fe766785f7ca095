"""k2ref: a readable, exact reference for Kimi K2 Thinking that runs on a CPU.

    model = k2ref.load()                                # or load("path/to/Kimi-K2-Thinking")
    for event in k2ref.chat(model, [{"role": "user", "content": "37+58="}]):
        print(event)
    for event in k2ref.Agent(model, [function, ...]).run("What is 4821 * 377?"):
        print(event)
"""

from k2ref.doors import endings  # noqa: F401  first, as what follows takes a while: Ctrl-C may come

# isort: split
from k2ref import ops, quant, trace
from k2ref.cache import KVCache
from k2ref.checkpoint.config import Config, ConfigError
from k2ref.checkpoint.weights import CheckpointError
from k2ref.conversation import events
from k2ref.conversation.chat import Context, chat
from k2ref.conversation.reply import Reply, ReplyParser, ToolCall, parse
from k2ref.conversation.session import SessionError
from k2ref.conversation.template import ChatError, render
from k2ref.generation import generate
from k2ref.loading import load
from k2ref.model import Model, forward
from k2ref.tokenizer import Decoder, Tokenizer, TokenizerError
from k2ref.tools.agent import Agent
from k2ref.tools.schema import ToolError

__version__ = "0.1.0"
__all__ = [
    "Agent", "ChatError", "CheckpointError", "Config", "ConfigError", "Context", "Decoder",
    "KVCache", "Model", "Reply", "ReplyParser", "SessionError", "Tokenizer", "TokenizerError",
    "ToolCall", "ToolError", "chat", "events", "forward", "generate", "load", "ops", "parse",
    "quant", "render", "trace",
]
