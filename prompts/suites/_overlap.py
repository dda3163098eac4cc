"""Which prompts of one set are in another: the same up to case and blanks, or nearly.

Near is Jaccard's similarity of the two texts' sets of pairs of neighbouring words, punctuation dropped and both ends
marked, so that the order of words counts. Candidates come from prefix filtering (Chaudhuri, Ganti and Kaushik 2006),
which misses none: two sets of similarity t share an element among the first `n - ceil(t n) + 1` of each, both sorted by
one order, here rarest first.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Pair = tuple[str, str]


@dataclass(frozen=True)
class Match:
    """A given prompt, and the id and text of the suite's that it resembles.

    exact: only case and blanks may differ. similarity: in (0, 1]; 1 also where only punctuation differs.
    """

    prompt: str
    id: str
    text: str
    exact: bool
    similarity: float


def find(prompts: Iterable[str], suite: Sequence[tuple[str, str]], *, near: float) -> list[Match]:
    """Matches of `prompts` in `suite`, (id, text) pairs; near in (0, 1]."""
    plain = [_plain(text) for _, text in suite]
    pairs = [_pairs(text) for text in plain]
    counts = Counter(pair for own in pairs for pair in own)

    def prefix(own: frozenset[Pair]) -> list[Pair]:
        ranked = sorted(own, key=lambda pair: (counts[pair], pair))
        # 0.7 * 10 is a little more than 7: a prefix may be too long without harm, too short it would miss.
        return ranked[: len(own) - math.ceil(near * len(own) - 1e-9) + 1]

    index: dict[Pair, list[int]] = defaultdict(list)
    for i, own in enumerate(pairs):
        for pair in prefix(own):
            index[pair].append(i)
    matches = []
    for prompt in dict.fromkeys(prompts):
        text = _plain(prompt)
        own = _pairs(text)
        for i in sorted({i for pair in prefix(own) for i in index.get(pair, ())}):
            shared = len(own & pairs[i])
            similarity = shared / (len(own) + len(pairs[i]) - shared)
            if similarity >= near:
                matches.append(Match(prompt, *suite[i], exact=text == plain[i], similarity=similarity))
    return sorted(matches, key=lambda match: (not match.exact, -match.similarity))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pairs(plain: str) -> frozenset[Pair]:
    # A text without a word is told apart by all of it.
    return frozenset(pairwise(["", *(re.findall(r"\w+", plain) or [plain]), ""]))
