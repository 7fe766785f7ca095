"""What is inside a checkpoint's directory: formats, bytes, layers, and everything that is amiss.

    python -m k2ref --inspect DIR

Opening a checkpoint stops at the first thing that is wrong. Here all of it is listed, with names
that differ only in their numbers put together, so that a download that lacks two shards reads as
two lines and not as 7,000. Of the tensors' data nothing is read but a few `weight_shape`.

Chapter 03.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from k2ref.checkpoint import layout
from k2ref.checkpoint.companions import read_small_files
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.shards import (
    CheckpointError,
    Stored,
    collector_paused,
    list_files,
    open_shard,
)
from k2ref.checkpoint.weights import Fault, compare, unused_finder, wrong_shapes
from k2ref.doors.screen import line

COLUMNS = {
    "attention": "attention", "dense_mlp": "dense MLP", "shared_experts": "shared", "router":
    "router", "experts": "experts", "norms": "norms",
}  # fmt: skip
OUTSIDE = ("embedding", "lm_head")
MAX_LINES = 30  # of faults; more than that nobody reads


@dataclass
class Inspection:
    """The findings in one directory."""

    path: Path
    config: Config
    n_files: int
    found: dict[str, Stored]  # by the names in the files
    bound: dict[str, Stored | None]  # by the model's names; None: missing
    bad_files: list[str]  # a sentence for each file that could not be used
    faults: list[Fault]

    @property
    def is_sound(self) -> bool:
        """Say whether the model can be run from these files."""
        return not self.bad_files and not self.faults


def report(path) -> str:
    """Say in readable text, 100 columns wide, what a checkpoint's directory contains.

    Raises: ConfigError, or CheckpointError where there are no safetensors files to speak of
    """
    return describe(inspect(path))


def describe(found: Inspection) -> str:
    """Word what was found, as `report` does."""
    kinds, layers = _tally(found)
    parts = [_title(found), _kinds(kinds), _layers(found, layers), _unused(found), _amiss(found)]
    return "\n\n".join(part for part in parts if part)


def inspect(path) -> Inspection:
    """Read config, index and headers, and list whatever does not agree.

    Raises: ConfigError, CheckpointError
    """
    path = Path(path)
    config = Config.from_dir(path)
    with collector_paused():
        files, weight_map = list_files(path)
        names, found, faults, bad, shards = list(files), {}, {}, {}, []
        for name in names:
            try:
                shard, header = open_shard(path, name, len(shards))
            except CheckpointError as error:
                bad[name] = str(error).removeprefix(f"{path}/")
                continue
            for twice in header.keys() & found.keys():
                once = f"it in {shards[found[twice].shard].path.name} only"
                faults[twice] = Fault("extra", twice, len(shards), once, f"it in {name}, too")
            found.update(header)
            shards.append(shard)
        names = [shard.path.name for shard in shards]
        faults |= _against_index(found, weight_map or {}, names, bad)
        bound, others = compare(config, found)
        others += wrong_shapes(shards, bound)
        lost = {name for name, file in (weight_map or {}).items() if file in bad}
        for fault in others:
            if fault.name not in lost:
                faults.setdefault(fault.name, fault)
    sentences = list(bad.values())
    try:
        read_small_files(path, config)
    except ValueError as error:
        sentences.append(str(error).removeprefix(f"{path}/"))
    return Inspection(path, config, len(files), found, bound, sentences, list(faults.values()))


def _against_index(found, weight_map, names, bad):
    """List the tensors of which the index does not say where they are, `{name: Fault}`."""
    faults = {}
    for name, stored in found.items():
        said = weight_map.get(name, names[stored.shard] if not weight_map else None)
        if said != names[stored.shard]:
            where = f"in {said}, as the index says" if said else "in the index, too"
            faults[name] = Fault("wrong", name, stored.shard, where, f"in {names[stored.shard]}")
    for name in weight_map.keys() - found.keys():
        if weight_map[name] not in bad:
            where = f"in {weight_map[name]}, as the index says"
            faults[name] = Fault("missing", name, None, where, "not there")
    return faults


def _title(i: Inspection) -> str:
    c, n_bytes = i.config, sum(s.stop - s.start for s in i.found.values())
    experts = f"{c.n_routed_experts} experts, {c.num_experts_per_tok} for each token"
    quantized = (c.quantization_config or {}).get("format") or (
        c.quantization_config or {}).get("quant_method")
    return "\n".join([
        line(i.path),
        f"{line(c.model_type)}, {c.num_hidden_layers} layers, {experts}, "
        f"{_count(c.n_parameters)} weights, {line(quantized or 'not quantized')}",
        f"{i.n_files} files, {len(i.found):,} tensors, {n_bytes:,} bytes of data "
        f"({n_bytes / (1 << 30):.1f} GiB)"])


def _count(n: int) -> str:
    return f"{n / 1e9:,.1f} billion" if n >= 1e9 else f"{n / 1e6:,.1f} million"


def _tally(i: Inspection):
    """Add up what is there: {kind: {format: [matrices, bytes]}} and {layer: {kind: bytes}}."""
    format_of = layout.format_finder(i.config.quantization_config, i.config.tensor_prefix)
    kinds, layers = defaultdict(dict), defaultdict(Counter)
    for tensor in layout.tensors(i.config):
        words, format = tensor.name.split("."), format_of(tensor)
        layer = int(words[2]) if "layers" in words else None
        parts = layout.stored_parts(tensor.shape, format)
        stored = [s for s in (i.bound[tensor.name + part.suffix] for part in parts) if s]
        if not stored:
            continue
        n_bytes = sum(s.stop - s.start for s in stored)
        name = format if format in ("int4", "fp8") else stored[0].dtype.lower()
        entry = kinds[tensor.kind].setdefault(name, [0, 0])
        entry[0] += 1
        entry[1] += n_bytes
        layers[layer][tensor.kind] += n_bytes
    return kinds, layers


def _kinds(kinds) -> str:
    all_bytes = sum(n for formats in kinds.values() for _, n in formats.values()) or 1
    lines = ["part             format    tensors             bytes   share"]
    for kind, formats in sorted(kinds.items(), key=lambda k: -sum(n for _, n in k[1].values())):
        for format, (n_tensors, n_bytes) in formats.items():
            lines.append(f"{kind:16} {format:6} {n_tensors:10,} {n_bytes:17,} "
                         f"{100 * n_bytes / all_bytes:6.2f}%")
    return "\n".join(lines)


def _layers(i: Inspection, layers) -> str:
    """Make a table of the layers in MB, a row for each run of equal ones."""
    used = [kind for kind in COLUMNS if any(kind in row for row in layers.values())]
    rows = [["layer (MB)", *(COLUMNS[kind] for kind in used), "all"]]
    runs = []
    for layer in range(i.config.num_hidden_layers):
        if runs and layers[runs[-1][0]] == layers[layer]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    for run in runs:
        sizes = layers[run[0]]
        rows.append([ranges(run), *(_mb(sizes[kind]) for kind in used), _mb(sum(sizes.values()))])
    text = ["".join(f"{cell:>12}" for cell in row) for row in rows]
    outside = {kind: n for kind, n in layers[None].items() if n}
    what = ", ".join(f"{kind} {_mb(n)}" for kind, n in outside.items())
    return "\n".join([*text, f"outside the layers: {what}"])


def _mb(n_bytes) -> str:
    return f"{n_bytes / 1e6:,.1f}" if n_bytes >= 1e5 else f"{n_bytes / 1e6:.3f}" if n_bytes else "-"


def _unused(i: Inspection) -> str:
    used = {i.config.tensor_prefix + name for name, stored in i.bound.items() if stored}
    is_unused = unused_finder(i.config, i.found.keys() - used)
    names = [name for name in i.found if name not in used and is_unused(name)]
    if not names:
        return ""
    n_bytes = sum(i.found[name].stop - i.found[name].start for name in names)
    head = f"left alone by k2ref: {len(names):,} tensors, {n_bytes:,} bytes"
    return "\n".join([head, *_shorten(_grouped(names))])


def _amiss(i: Inspection) -> str:
    """List what is missing, extra or wrong, in as few lines as will do."""
    lines = [f"file: {sentence}" for sentence in i.bad_files]
    for kind in ("missing", "wrong", "extra"):
        alike = defaultdict(list)
        for fault in i.faults:
            if fault.kind == kind:
                alike[_without_numbers(fault.name), fault.expected].append(fault)
        for (_, expected), faults in alike.items():
            [name, *_] = _grouped([fault.name for fault in faults])
            lines.append(f"{kind}: {name}")
            lines.append(f"    expected {expected}, found {faults[0].found}")
    if not lines:
        return "nothing is missing, nothing is extra: this is the model that config.json describes"
    counts = Counter(fault.kind for fault in i.faults)
    counts = [f"{n:,} tensors {kind}" for kind, n in counts.items()]
    if i.bad_files:
        counts.insert(0, f"{len(i.bad_files)} files that cannot be used")
    return "\n".join([f"amiss: {', '.join(counts)}", *_shorten(lines)])


def _shorten(lines: list[str]) -> list[str]:
    """Cut lines to the width of the page, and the list to a length that is read."""
    more = [f"and {len(lines) - MAX_LINES} lines more"] if len(lines) > MAX_LINES else []
    lines = [line(text) for text in [*lines[:MAX_LINES], *more]]
    return ["  " + (text if len(text) <= 98 else text[:95] + "...") for text in lines]


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _grouped(names: list[str]) -> list[str]:
    """Put names together that differ only in their numbers: `model.layers.{0-60}.norm (61)`."""
    groups = defaultdict(list)
    for name in names:
        pieces = re.split(r"(?<=\.)(\d{1,18})(?=\.)", name)  # text and numbers by turns
        groups["{}".join(pieces[::2])].append([int(n) for n in pieces[1::2]])
    lines = []
    for pattern, found in groups.items():
        columns = [ranges(sorted(set(column))) for column in zip(*found, strict=True)]
        columns = [text if text.isdecimal() else "{" + text + "}" for text in columns]
        for text in columns:
            pattern = pattern.replace("{}", text, 1)
        lines.append(pattern + (f" ({len(found):,} tensors)" if len(found) > 1 else ""))
    return lines


def ranges(numbers: list[int]) -> str:
    """Write rising numbers with their runs put together: 0-3,5,7-9."""
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(text) <= 30 else text[:27].rpartition(",")[0] + ",..."
