"""Check the links and pictures of a page: files, anchors, and that every page can be reached.

An anchor must be there both on a code host and in the built site, which make the ids of headings
differently; where they differ, a page can set one with `<a id="name"></a>`.
"""

import re
from pathlib import Path
from urllib.parse import unquote

from scripts.docs import blocks

LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)")
ATTRIBUTE = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
IMAGE = re.compile(r"<img\b[^>]*>")


def prose(lines):
    """Yield the lines of a page outside fences with their numbers from 1, inline code blanked."""
    fences = blocks.fences(lines)
    inside = {i for fence in fences for i in range(fence.start - 1, fence.stop + 1)}
    for i, line in enumerate(lines):
        if i not in inside:
            yield i + 1, re.sub(r"(`+).*?\1", lambda code: "`" * len(code[0]), line)


def targets(lines):
    """Yield every target that a page links to or shows, with the line's number."""
    for number, line in prose(lines):
        for pattern in (LINK, REFERENCE, ATTRIBUTE):
            for link in pattern.finditer(line):
                yield number, link[link.lastindex]


def slugs(lines):
    """Return the anchors of a page that a code host and the site agree on."""
    host, site, seen = {}, {}, set()
    inside = {i for fence in blocks.fences(lines) for i in range(fence.start, fence.stop)}
    for i, line in enumerate(lines):
        seen.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        if i not in inside and (heading := re.match(r"#{1,6} +(.*?) *#*$", line)):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            kept = re.sub(r"[^\w\- ]", "", text.lower())
            _add(host, kept.replace(" ", "-"), "-")
            # Python-Markdown drops what is not ASCII and lets no two hyphens meet.
            plain = re.sub(r"[^\w\s-]", "", text.lower().encode("ascii", "ignore").decode()).strip()
            _add(site, re.sub(r"[-\s]+", "-", plain), "_")
    return (host.keys() & site.keys()) | seen


def _add(ids, slug, joint):
    n = ids[slug] = ids.get(slug, -1) + 1
    if n:
        ids[f"{slug}{joint}{n}"] = 0


def faults_of(path):
    """List `(line, message)` for each link that leads nowhere and each picture without words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    faults = []
    for number, target in targets(lines):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue  # another place's: nothing here depends on the network
        file, _, anchor = target.partition("#")
        there = path.parent / unquote(file) if file else path
        if not there.exists():
            faults.append((number, f"links to {target}, but there is no {file}"))
        elif anchor and there.suffix == ".md":
            if anchor not in slugs(there.read_text(encoding="utf-8").splitlines()):
                faults.append((number, f"links to {target}, but {there.name} has no heading or "
                                       f"<a id> that is #{anchor} on a code host and in the site"))
    for number, line in prose(lines):
        spoken = [re.search(r"\balt=\"([^\"]+)\"", image) for image in IMAGE.findall(line)]
        spoken += [link[2].strip() for link in LINK.finditer(line) if link[1]]
        if not all(spoken):
            faults.append((number, "a picture needs an alt text: what one sees"))
    return faults


def unreachable(docs: Path):
    """Name the pages to which no chain of links leads from index.md."""
    pages = {path.resolve() for path in docs.glob("*.md")}
    index = (docs / "index.md").resolve()
    reached, to_do = {index}, [index]
    while to_do:
        page = to_do.pop()
        if not page.exists():
            continue
        for _, target in targets(page.read_text(encoding="utf-8").splitlines()):
            there = (page.parent / unquote(target.partition("#")[0])).resolve()
            if there in pages - reached:
                reached.add(there)
                to_do.append(there)
    return sorted(path.name for path in pages - reached)
