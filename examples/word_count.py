"""Counts words over a few hundred files: each file is one input of a map.

    farcall run examples/word_count.py
    farcall run examples/word_count.py --folder ~/notes --pattern '*.md' --top 20

A container does not see your home directory, so the program reads the files here and passes their text.
"""

import os
import re
from collections import Counter
from pathlib import Path

import farcall

app = farcall.App("word-count")


@app.function(max_containers=4)
def count_words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]{4,}", text.lower()))


def texts_of_this_machine() -> list[Path]:
    """What every Debian machine has: the licences of its packages, and the modules of Python's standard library."""
    licences = sorted(Path("/usr/share/doc").glob("*/copyright"))
    modules = sorted(Path(os.__file__).parent.glob("*.py"))
    return (licences + modules)[:400]


@app.local_entrypoint()
def main(folder: Path | None = None, pattern: str = "*.txt", top: int = 8) -> None:
    files = sorted(folder.expanduser().rglob(pattern)) if folder else texts_of_this_machine()
    texts = (file.read_text(errors="replace") for file in files)
    total: Counter[str] = Counter()
    for counted in count_words.map(texts, order_outputs=False):
        total.update(counted)
    print(f"{total.total():,} words in {len(files):,} files")
    for word, count in total.most_common(top):
        print(f"{count:8,} {word}")
