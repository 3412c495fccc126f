"""Which captioned pictures a prompt means: words in common, nothing learned."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from scene_distill.core.errors import UserError

FILLERS = frozenset(["a", "an", "the", "of", "on", "in", "with", "and", "view", "photo", "picture", "render", "image"])
"""Words that say nothing about what is in a picture."""


def words_of(text: str) -> list[str]:
    """The telling words of a caption or prompt, lower case, in order."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in FILLERS]


class CaptionIndex:
    """The captions of K pictures, searchable by words."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.vocabulary = sorted({word for caption in captions for word in words_of(caption)})
        column = {word: i for i, word in enumerate(self.vocabulary)}
        self.holds = torch.zeros(len(captions), len(self.vocabulary), dtype=torch.bool)
        for row, caption in enumerate(captions):
            for word in words_of(caption):
                self.holds[row, column[word]] = True

    def matching(self, prompt: str, partly: bool = False) -> Tensor:
        """Pictures [N] int64 whose captions hold every telling word of the prompt; all of them for a prompt without.

        ``partly``: where no caption holds all of them, those that hold the most. Raises UserError for a word that no
        caption has, and, unless ``partly``, for words that no caption has together.
        """
        words = sorted(set(words_of(prompt)))
        unknown = [word for word in words if word not in self.vocabulary]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.vocabulary, 5, 0.5) or self.vocabulary[:12]
            raise UserError(f"no caption of this prior has the word {unknown[0]!r}; it knows, for example: {near}")
        hits = self.holds[:, [self.vocabulary.index(word) for word in words]].sum(1)
        if not partly and int(hits.max()) < len(words):
            raise UserError(f"no caption of this prior has all of {words}; allow partial matches to take the nearest")
        return torch.nonzero(hits == hits.max()).flatten()
