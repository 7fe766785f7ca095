"""Conversation: messages in, events out, and a cache that is read again only from where it differs.

    for event in k2ref.chat(model, [{"role": "user", "content": "What is 1+1?"}]):
        if isinstance(event, k2ref.events.Content):
            print(event.text, end="")

The command, the conversation on a terminal and the agent are all made of `chat`. Between two of its
prompts a `Context` keeps the cache. The next prompt mostly begins as the last one ended, and
where it does not, because the template drops old thinking or a token was written in two pieces, all
that follows is forgotten and computed again: the bits are always those of a fresh start.

Chapter 13.
"""

from k2ref.cache import KVCache, require_memory
from k2ref.checkpoint.styles import ChatError, style_for
from k2ref.conversation import history
from k2ref.conversation.events import CallEnd, Done, Prompt, Usage, collect
from k2ref.conversation.reply import ReplyParser
from k2ref.conversation.template import is_partial, render
from k2ref.generation import generate


class Context:
    """A cache and the ids that are in it, so that a prompt is read only where it is new."""

    def __init__(self, model, dtype="float32", capacity=None):
        self.model = model
        self.cache = KVCache(model.config, capacity, dtype, expected=0)
        self._ids = []  # what was read last, or is about to be: the cache holds the beginning
        self._peak = 0  # the most tokens that were ever in the cache, for which there is memory

    @property
    def limit(self):
        """Return how many tokens fit."""
        return min(self.cache.capacity, self.model.config.max_position_embeddings)

    @property
    def ids(self):
        """Return the ids that the cache holds."""
        return self._ids[: self.cache.length]

    def restore(self, ids):
        """Take note of the ids whose rows somebody has put into the cache."""
        self._ids, self.cache.length = list(ids), len(ids)

    def n_shared(self, ids):
        """Count the tokens of a prompt that need not be read; the last one always is.

        The logits that follow it are not in the cache.
        """
        held = self.ids
        limit = max(0, min(len(held), len(ids) - 1))
        return next((i for i in range(limit) if held[i] != ids[i]), limit)

    def generate(self, ids, max_new_tokens=None, **settings):
        """Write the reply to a whole prompt, as `generate` does, reading only what is new of it.

        Raises: what `generate` raises, and ValueError for a prompt that needs more memory than
        there is.
        """
        n, held = self.n_shared(ids), self.cache.length
        self._peak = max(self._peak, held)
        require_memory(self.model.config, len(ids) + (max_new_tokens or 0) - self._peak,
                       self.cache.dtype)
        self.cache.truncate(n)
        tokens = generate(self.model, ids[n:], max_new_tokens, cache=self.cache, before=ids[:n],
                          **settings)
        self._ids = list(ids)
        return self._noted(tokens)

    def _noted(self, tokens):
        while True:
            try:
                token = next(tokens)
            except StopIteration as end:
                return end.value
            self._ids.append(token)
            yield token


def prompt_ids(model, messages, tools=None, thinking=True, preserve_thinking=False):
    """Render messages as the official tokenizer does: tools in the style's own spelling.

    Raises: ChatError; TokenizerError for a model without a tokenizer.
    """
    style = style_for(model.tokenizer)
    if tools and style.plain:
        raise ChatError(f"tools: the template of {style.name} declares none, so the model would "
                        "never hear of them; leave them out")
    return render(model.tokenizer, messages, tools, thinking=thinking,
                  preserve_thinking=preserve_thinking, declare=style.declare)


def chat(model, messages, tools=None, *, context=None, thinking=True, preserve_thinking=False,
         **settings):
    """Answer a conversation: return an iterator of typed events (events.py), the last one `Done`.

    `messages` and `tools` are OpenAI dicts; `Done.message` is one, too, thinking in its
    `reasoning_content`, ready to be appended; after a message with `"partial": True` it is only
    what the model added to it. The ids of calls are renamed, as the official API does (history.py);
    a call that was cut off is not `complete`, and must not be run. A `context` keeps the cache from
    one call to the next. `settings` are those of `generate` and `reply`. Arguments are checked now,
    the first event is made when asked for.
    Raises: ChatError for messages or tools that are not well formed; what `generate` raises.
    """
    messages = history.rename_calls(messages) if isinstance(messages, list) else messages
    ids = prompt_ids(model, messages, tools, thinking, preserve_thinking)
    in_thinking = False if is_partial(messages) else None
    return reply(model, ids, tools, context, in_thinking, thinking=thinking, **settings)


def reply(model, ids, tools=None, context=None, in_thinking=None, on_token=None, thinking=True,
          **settings):
    """Answer a prompt of ids with the events of a reply; `on_token(token)` is told each token.

    `thinking` is what it was for the prompt.
    Raises: what `generate` raises.
    """
    if in_thinking is None and not thinking:
        in_thinking = False
    settings["thinking"] = thinking
    n_cached = context.n_shared(ids) if context else 0
    if context:
        tokens = context.generate(ids, **settings)
    else:
        tokens = generate(model, ids, **settings)
    parser = ReplyParser(model.tokenizer, in_thinking, tools)
    return _events(tokens, parser, Prompt(len(ids), n_cached), on_token)


def _events(tokens, parser, prompt, on_token):
    yield prompt
    seen, n, reason = [], 0, None
    while reason is None:
        try:
            token = next(tokens)
        except StopIteration as end:
            reason, events = end.value, parser.finish()
        else:
            n += 1
            if on_token:
                on_token(token)
            events = parser.feed(token)
        for event in events:
            seen.append(event)
            yield event
            if isinstance(event, CallEnd):
                yield collect(seen).tool_calls[event.index]
    whole = collect(seen)
    if reason == "stop" and any(call.complete for call in whole.tool_calls):
        reason = "tool_calls"
    yield Done(reason, history.message_of(whole), Usage(prompt.n_tokens, prompt.n_cached, n))
