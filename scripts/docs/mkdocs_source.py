"""A hook of mkdocs: what a page links to outside docs/, such as a source file, is in the site too.

On a code host `[moe.py](../k2ref/moe.py)` leads to the file. In the site the file is copied to
source/, and the link is changed to lead there.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Add the files outside docs/ that pages link to."""
    linked = set()
    for page in files.documentation_pages():
        linked |= {target for target, _ in OUTSIDE.findall(page.content_string)}
    for target in sorted(linked):
        if (ROOT / target).is_file():  # a directory has no page; mkdocs reports the link
            files.append(File.generated(config, f"source/{target}.txt",
                                        abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to the copies."""
    return OUTSIDE.sub(r"](source/\1.txt)", markdown)
