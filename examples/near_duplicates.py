"""Finds documentation that was copied and edited: a pipeline of two stages over source files, with retries.

    farcall run examples/near_duplicates.py
    farcall run examples/near_duplicates.py --folder ~/project --out duplicates.jsonl --danger 0.2

Stage 1 parses each file and takes out the docstrings; stage 2 gets them in batches and gives each a signature (MinHash)
that is alike where the text is. Results of the first go to the second as they come. `--danger` is the chance that an
attempt of stage 1 fails, half of the time with its whole container: such an attempt is repeated. A file that cannot be
parsed fails every time, is named in the end, and stops nobody else.
"""

import ast
import json
import os
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import farcall

SHINGLE = 3  # words in a row, which count as one
HASHES = 32
PRIME = 2**61 - 1
BANDS = 8  # two texts are near-duplicates where all hashes of one band of the signature are the same
PERSISTENT = farcall.Retries(max_retries=5, initial_delay=0.1, backoff_coefficient=1.0)

app = farcall.App("near-duplicates")


class Docstring(NamedTuple):
    """A piece of documentation, and what it is about."""

    name: str
    text: str


@app.function(retries=PERSISTENT, max_containers=4)
def docstrings(name: str, source: str, danger: float) -> list[Docstring]:
    """Stage 1: those of a file that say enough to be compared."""
    if random.random() < danger:
        if random.random() < 0.5:
            os._exit(1)
        raise ConnectionError("what this attempt needed was not there")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[Docstring] = []
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and len(text.split()) > 2 * SHINGLE:
            found.append(Docstring(f"{name}:{getattr(node, 'name', '')}", text))
    return found


@app.function(max_containers=2)
@farcall.batched(max_batch_size=64, wait_ms=50)
def signature(text: list[str]) -> list[list[int]]:
    """Stage 2: of each text the least hash of its shingles, for each of `HASHES` hash functions (Broder, 1997)."""
    numbers = random.Random(0)
    functions = [(numbers.randrange(1, PRIME), numbers.randrange(PRIME)) for _ in range(HASHES)]
    signatures: list[list[int]] = []
    for one in text:
        words = re.findall(r"\w+", one.lower())
        pieces = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        hashes = [zlib.crc32(piece.encode()) for piece in pieces]
        signatures.append([min((factor * one + term) % PRIME for one in hashes) for factor, term in functions])
    return signatures


def near_duplicates(found: list[Docstring], signatures: list[list[int]]) -> list[list[Docstring]]:
    """The docstrings that share a band with another one, in groups."""
    rows = HASHES // BANDS
    groups: dict[tuple[int, ...], list[Docstring]] = defaultdict(list)
    for docstring, hashes in zip(found, signatures, strict=True):
        for band in range(BANDS):
            groups[band, *hashes[band * rows : (band + 1) * rows]].append(docstring)
    unique = {tuple(group): group for group in groups.values() if len(group) > 1}
    return sorted(unique.values(), key=len, reverse=True)


@app.local_entrypoint()
def main(folder: Path | None = None, out: Path = Path("near_duplicates.jsonl"), danger: float = 0.05) -> None:
    files = sorted(folder.expanduser().rglob("*.py")) if folder else sorted(Path(os.__file__).parent.glob("*.py"))
    names = [file.name for file in files]
    found: list[Docstring] = []
    failed: dict[str, Exception] = {}

    def texts() -> Iterator[str]:
        """What stage 1 finds, for stage 2 to take as it comes."""
        sources = (file.read_text(errors="replace") for file in files)
        results = docstrings.map(names, sources, kwargs={"danger": danger}, return_exceptions=True)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Exception):
                failed[name] = result
                continue
            found.extend(result)
            yield from (docstring.text for docstring in result)

    signatures = list(signature.map(texts()))
    groups = near_duplicates(found, signatures)
    with out.open("w") as file:
        for group in groups:
            file.write(json.dumps({"names": [one.name for one in group], "text": group[0].text}) + "\n")
    print(f"{len(found):,} docstrings in {len(files):,} files; {len(groups):,} groups of near-duplicates are in {out}")
    for name, error in failed.items():
        print(f"{name} was left out: {type(error).__name__}: {error}")
