"""Counts words of many documents: a map, its reduction, arguments from the command line."""

# runs: farcall run word_count.py --shards 4 --verbose

from collections import Counter

import modal

app = modal.App("word-count")

DOCUMENTS = ["the cat sat", "the dog ran", "a cat ran", "the end"]


@app.function(cpu=0.25, memory=256, timeout=60)
def count(document: str, minimum: int = 1) -> Counter:
    return Counter(word for word in document.split() if len(word) >= minimum)


@app.function()
def merge(left: Counter, right: Counter) -> int:
    return sum((left + right).values())


@app.local_entrypoint()
def main(shards: int = 2, verbose: bool = False, minimum: int = 2):
    total = Counter()
    for result in count.map(DOCUMENTS[:shards], kwargs={"minimum": minimum}):
        total += result
    if verbose:
        print(shards, "shards")
    print(total.most_common(2))
    print(list(merge.starmap([(Counter("ab"), Counter("c")), (Counter(), Counter("x"))])))
    count.for_each(DOCUMENTS)


# prints:
# 4 shards
# [('the', 3), ('cat', 2)]
# [3, 1]
