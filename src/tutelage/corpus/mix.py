"""The order in which training text is read: sources interleaved, weighted, from easy to hard with the easy kept.

Each document gets a place between 0 and 1 and documents are read by place. Without levels the places of a source are
even, so that every part of the corpus holds the same mixture. With levels 1..L a document of level l is placed evenly
over the part from `(l - 1) / (L + 1)` to the end: hard ones begin later, easy ones never stop.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.corpus.clean import Text


def mix(texts: Sequence[Text], weights: Mapping[str, float], seed: int = 0) -> list[Text]:
    """Texts in reading order. Weight 0.5 keeps half of a source (drawn by `seed`), 2 reads all of it twice.

    A text's level stands in `meta["level"]` (1 = easiest) where its source has levels.
    """
    groups: dict[tuple[str, int], list[Text]] = defaultdict(list)
    levels: dict[str, int] = {}
    for text in texts:
        level = int(text.meta.get("level", 1))
        groups[text.source, level].append(text)
        levels[text.source] = max(levels.get(text.source, 1), level)
    placed: list[tuple[float, str, int, Text]] = []
    for (source, level), members in sorted(groups.items(), key=lambda pair: pair[0]):
        weight = weights.get(source, 1.0)
        random = np.random.default_rng([seed, level, *hashlib.blake2b(source.encode(), digest_size=8).digest()])
        start = (level - 1) / (levels[source] + 1) if levels[source] > 1 else 0.0
        for turn in range(int(np.ceil(weight))):
            share = min(1.0, weight - turn)
            order = random.permutation(len(members))[: round(share * len(members))]
            for rank, at in enumerate(order):
                within = (rank + random.random()) / max(1, len(order))
                place = start + (1 - start) * (turn + within) / np.ceil(weight)
                placed.append((float(place), source, turn, members[int(at)]))
    placed.sort(key=lambda entry: (entry[0], entry[1], entry[2], entry[3].id))
    return [text for _, _, _, text in placed]
