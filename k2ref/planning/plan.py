"""What a machine will give, said before anything is read: the plan.

    python -m k2ref --plan --model DIR --memory 100

A token is multiplied by every dense weight and by 8 of each layer's 384 experts. What is in memory
takes its bytes over the rate of the kernels; what is not takes its bytes over the rate of the disk.
Under a budget, dense weights come first and experts have the rest:

    share    = room for experts / bytes of all experts              at most 1
    unseen   = (1 - 8/384)^n        the part of the experts that n tokens have not chosen
    missed   = unseen + the larger of  1 - unseen - share  and  0
    dense_s  = dense bytes / kernel rate + dense bytes that do not fit / disk rate
    expert_s = chosen bytes / kernel rate
    read_s   = chosen bytes * missed / disk rate
    token_s  = dense_s + the larger of  read_s + expert_s / 2
                                   and  read_s / 2 + expert_s       (0 where nothing is read)

A half, as 4 of a layer's 8 experts are read at once: the first four are multiplied while the others
come. A run begins slowly, as each expert that the page cache does not have is read when it is first
chosen, and gets as fast as the budget lets it; idle memory (disk.Idle) adds to both. It holds if
the router chooses evenly, as its training makes it over many texts. In one, neighbouring tokens
have 41 % of their experts in common (measured elsewhere): a run can beat a plan that waits on disk.

Chapter 15.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import fsum
from pathlib import Path

from k2ref.cache import bytes_per_token
from k2ref.checkpoint import layout
from k2ref.checkpoint.config import Config
from k2ref.loading import EMBEDDED
from k2ref.planning import disk, rates
from k2ref.streaming import memory
from k2ref.streaming.residency import READERS
from k2ref.streaming.stream import OWN, SHARE, chunk_tokens

CONTEXT = 4096
CONTEXTS = (4096, 32768, 262144)
SO_FAR = (0, 10, 100)  # tokens of a run: the next one's time is told
PROMPT = 32  # tokens of a short prompt
MACHINES = (1024, 768, 512, 256, 128)  # of `table`: GB of memory
SERVER_MEMORY, NVME = 200e9, 6e9  # their bytes a second: assumed, and it says so


@dataclass(frozen=True)
class Plan:
    """The place of each byte of one model under a budget, and the time that a token takes."""

    budget: int  # bytes, for everything
    cache: int  # bytes of the KV cache in it
    dense: int  # bytes that every token is multiplied by
    experts: int  # bytes of all experts
    chosen: int  # bytes of those that one token is multiplied by
    beside: int  # bytes of those in one layer
    dense_s: float  # what a token takes if all is in memory, without the experts
    expert_s: float  # and for them
    disk: float | None  # bytes a second; None: not known
    last: float  # the part of a layer's experts that is read together, and so comes last
    dense_here: int = 0  # bytes of the dense weights that the page cache has from before
    experts_here: int = 0  # and of the experts
    idle: disk.Idle = disk.Idle()  # what memory takes more that lay idle

    @property
    def room(self):
        """Bytes for weights: the budget without the process's own memory and the cache."""
        return max(0, self.budget - OWN - self.cache)

    @property
    def dense_kept(self):
        """Bytes of dense weights that stay in memory, with a layer's chosen experts beside them."""
        return max(0, min(self.dense, self.room - self.beside))

    @property
    def share(self):
        """The part of the experts that fits beside the dense weights."""
        free = self.room - self.dense_kept
        return min(1.0, free / self.experts) if self.experts else 1.0

    @property
    def memory_s(self):
        """Seconds a token takes if everything is in memory."""
        return self.dense_s + self.expert_s

    # What follows is for the token after `n_before` others; without a number, after very many.
    def unseen(self, n_before=None):
        """Return the part of the experts that no token has chosen yet."""
        if n_before is None or not self.experts:
            return 0.0
        return (1 - self.chosen / self.experts) ** n_before

    def missed(self, n_before=None):
        """Return the part of its experts' bytes that a token reads from disk."""
        unseen = self.unseen(n_before)
        not_here = 1 - self.experts_here / self.experts if self.experts else 0
        return unseen * not_here + max(0.0, 1 - unseen - self.share)

    def from_disk(self, n_before=None):
        """Count the bytes that a token is expected to read from disk."""
        return self.dense - self.dense_kept + self.chosen * self.missed(n_before)

    def token_s(self, n_before=None):
        """Count the seconds of a token; None where that needs a disk that could not be measured."""
        if not self.from_disk(n_before):
            return self.memory_s
        if not self.disk:
            return None
        grown = self.grown(n_before)
        dense_s = self.dense_s + (self.dense - self.dense_kept) / self.disk
        dense_s += self.wake_s * (n_before == 0)
        read_s = self.chosen * self.missed(n_before) / self.disk + self.idle.read_s * grown
        expert_s = self.expert_s + self.idle.touch_s * grown
        return dense_s + max(read_s + self.last * expert_s, self.last * read_s + expert_s)

    def grown(self, n_before=None):
        """Count the bytes of experts by which memory fills, not those that take others' place."""
        return self.chosen * self.missed(n_before) * (1 - self.unseen(n_before) < self.share)

    def limit(self, n_before=None):
        """Say what a faster one of would help most: "memory" or "disk"."""
        touch_s = self.idle.touch_s * self.grown(n_before) + self.wake_s * (n_before == 0)
        n_bytes = self.from_disk(n_before)
        return "disk" if n_bytes and n_bytes / self.disk > self.memory_s + touch_s else "memory"

    @property
    def ahead(self):
        """Bytes of dense weights to be read before the first token."""
        return max(0, self.dense_kept - self.dense_here)

    @property
    def ahead_s(self):
        """Seconds to read them."""
        return self.ahead * (1 / self.disk + self.idle.read_s)

    @property
    def wake_s(self):
        """Seconds that the first touch of them takes more."""
        return self.idle.touch_s * max(0, self.ahead - self.idle.ready)

    def of_prompt(self, n_tokens):
        """Count the bytes of experts that a prompt reads at the beginning of a run."""
        return (1 - self.unseen(n_tokens)) * (self.experts - self.experts_here)

    def prompt_s(self, n_tokens):
        """Count the seconds that this takes: of hundreds in a layer, no part comes last."""
        n_bytes = self.of_prompt(n_tokens)
        grown = min(n_bytes, self.share * self.experts)
        read_s = n_bytes / self.disk + self.idle.read_s * grown
        return max(read_s, self.idle.touch_s * grown) + self.wake_s


def make(config: Config, budget: int, speed: rates.Rates, context=CONTEXT,
         cache_dtype="float32", here=(0, 0)) -> Plan:
    """Lay out a model's bytes under a budget of bytes, on a machine of this speed.

    `here` are the bytes that are in memory before the run: `disk.in_page_cache`.
    """
    dense, experts = by_format(config)
    part = config.num_experts_per_tok / config.n_routed_experts
    n_moe = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    chosen = int(sum(experts.values()) * part)
    # Exact sums: `sum` of floats gives other last bits since Python 3.12.
    seconds = {format: n_bytes / speed.kernels[format] for format, n_bytes in dense.items()}
    return Plan(
        budget=int(budget), cache=kv_bytes(config, context, cache_dtype),
        dense=sum(dense.values()), experts=sum(experts.values()), chosen=chosen,
        beside=chosen // max(1, n_moe),
        dense_s=fsum(seconds.values()) + config.num_hidden_layers * speed.layer_s,
        expert_s=fsum(n * part / speed.kernels[format] for format, n in experts.items()),
        disk=speed.disk, last=min(1.0, READERS / config.num_experts_per_tok),
        dense_here=here[0], experts_here=here[1], idle=speed.idle)


@lru_cache(maxsize=1)
def by_format(config: Config) -> tuple[Counter, Counter]:
    """Add up `{format: bytes}` of what every token is multiplied by, and of the experts."""
    format_of = layout.format_finder(config.quantization_config, config.tensor_prefix)
    dense, experts = Counter(), Counter()
    for tensor in layout.tensors(config):
        format = format_of(tensor)
        n_bytes = layout.n_bytes(layout.stored_parts(tensor.shape, format))
        if tensor.kind != "embedding":  # of which a token takes one row
            to = experts if tensor.kind == "experts" else dense
            to[format if format in ("int4", "fp8") else "bf16"] += n_bytes
    return dense, experts


def kv_bytes(config: Config, n_tokens: int, dtype="float32") -> int:
    """Return the bytes of a `KVCache` with this many tokens."""
    return n_tokens * bytes_per_token(config, dtype)


def report(model_path=None, memory_bytes=None, threads=None, cache_dtype="float32",
           context=CONTEXT) -> str:
    """Measure this machine and say in readable text what a checkpoint will do on it.

    Only config.json and headers are read, and a few random pieces of the files to time the disk.
    Raises: ConfigError; OSError; ValueError where the system does not say how much memory there is
    """
    path = EMBEDDED if model_path is None else Path(model_path)
    config = Config.from_dir(path)
    given = memory_bytes is not None
    available = memory.available()
    if not given and available is None:
        raise ValueError("--memory: expected a number of GB, since this system does not say how "
                         "much memory is available, found none")
    budget = memory_bytes if given else SHARE * available
    here = disk.in_page_cache(path, config)
    speed = rates.measure(path, threads, sorted(set().union(*by_format(config))))
    plan = make(config, budget, speed, context, cache_dtype, here)
    origin = "" if given else f" ({SHARE:.0%} of what is available; --memory GB sets it)"
    if given and available is not None and budget > available:
        origin = f", though only {_gb(available)} are available now"
    return "\n\n".join([
        f"{path}\nthe plan for {_gb(budget)} of memory{origin}", _bytes(config, plan, context),
        rates.describe(speed), _expected(config, plan), f"KV cache in {cache_dtype}: " + ", ".join(
            f"{n >> 10}K tokens {_gb(kv_bytes(config, n, cache_dtype))}" for n in CONTEXTS)])


def _gb(n_bytes) -> str:
    if n_bytes < 1e8:
        return f"{n_bytes / 1e6:,.1f} MB" if n_bytes else "nothing"
    return f"{n_bytes / 1e9:,.{1 if n_bytes >= 1e10 else 2}f} GB"


def _bytes(config, plan, context) -> str:
    kept = plan.dense_kept / plan.dense
    lines = [f"{'part':18}{'on disk':>12}   in memory"]
    for kind, n_bytes in sorted(config.n_bytes_by_kind.items(), key=lambda item: -item[1]):
        if kind == "embedding":
            stays = "one row for each token, read when it is needed"
        elif kind == "experts":
            stays = f"{plan.share:.1%}: {_gb(plan.share * plan.experts)} of them, the last used"
        else:
            stays = "all" if kept == 1 else f"{kept:.0%} of the dense weights"
        lines.append(f"{kind:18}{_gb(n_bytes):>12}   {stays}")
    lines.append(f"{'beside them':18}{'':12}   {_gb(OWN)} for the program, {_gb(plan.cache)} for "
                 f"the cache of {context:,} tokens")
    lines += ["", f"a token is multiplied by {_gb(plan.dense)} of dense weights and "
              f"{_gb(plan.chosen)} of experts"]
    if plan.dense_here or plan.experts_here:
        lines.append(f"in memory from before: {_gb(plan.dense_here)} of the dense weights, "
                     f"{_gb(plan.experts_here)} of the experts")
    return "\n".join(lines)


def _expected(config, plan) -> str:
    if plan.token_s() is None:
        return (f"expected: {plan.memory_s:.3g} s a token in memory, and what the disk takes to "
                f"read {_gb(plan.from_disk())}")
    lines = ["expected, if experts are chosen evenly",
             "  tokens so far   from disk  s a token  tokens/s   the limit"]
    for n_before in (*SO_FAR * (plan.from_disk(0) != plan.from_disk()), None):
        token_s = plan.token_s(n_before)
        speed = (f"{'not known':>21}   disk" if token_s is None else
                 f"{token_s:11.3g}{1 / token_s:10.3g}   {plan.limit(n_before)}")
        so_far = "many" if n_before is None else n_before
        lines.append(f"  {so_far:<15}{_gb(plan.from_disk(n_before)):>10}{speed}")
    if plan.disk:
        lines.append(f"  reading ahead takes {plan.ahead_s:.3g} s, once; a first prompt "
                     f"of {PROMPT} tokens reads {_gb(plan.of_prompt(PROMPT))}: "
                     f"{plan.prompt_s(PROMPT):.3g} s")
    chunk = chunk_tokens(config, plan.room - plan.dense_kept)
    return "\n".join([*lines, f"  a prompt goes through the layers {chunk:,} tokens at a time, "
                      "each expert read once for them all"])


def table(config: Config, memory_rate=SERVER_MEMORY, disk_rate=NVME) -> str:
    """Make the README's table in Markdown: machines by their memory, and what they will give.

    The rates, in bytes a second, are assumptions about such machines; `report` measures.
    """
    kernels = dict.fromkeys(("bf16", "int4", "fp8"), memory_rate)
    speed = rates.Rates(memory_rate, kernels, disk_rate, layer_s=0.0, threads=0)
    lines = ["| memory | experts in memory | the first token | read from disk for a later one | "
             "tokens/s | the limit |", "|---|---|---|---|---|---|"]
    for size in MACHINES:
        plan = make(config, SHARE * size * 1e9, speed)
        lines.append(f"| {size} GB | {plan.share:.0%} | {plan.token_s(0):.2g} s | "
                     f"{_gb(plan.from_disk())} | {1 / plan.token_s():.2g} | {plan.limit()} |")
    return "\n".join([*lines, "", f"Assumed: weights at {memory_rate / 1e9:.0f} GB/s, a disk of "
                      f"{disk_rate / 1e9:.0f} GB/s, {SHARE:.0%} of the memory, evenly chosen "
                      "experts."])
