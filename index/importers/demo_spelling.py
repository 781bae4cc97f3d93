"""How people misspell: neighbouring keys, swapped, lost and doubled letters, spelling by ear."""

from __future__ import annotations

import numpy as np

MIN_WORD_LENGTH = 4

_KEYBOARD = """
    a:qsz b:vgn c:xvf d:sfce e:wrd f:dgrv g:fhtb h:gjyn i:uok j:hkun k:jlim l:kop m:njk n:bmhj o:ipl
    p:ol q:wa r:etd s:adwx t:rygf u:yij v:cgb w:qes x:zsc y:tuh z:xsa
"""
_NEIGHBOURS = {entry[0]: entry[2:] for entry in _KEYBOARD.split()}
_BY_EAR = (
    ("ph", "f"),
    ("tion", "shun"),
    ("ough", "uff"),
    ("ie", "ei"),
    ("ei", "ie"),
    ("ck", "k"),
    ("ai", "ay"),
    ("ea", "ee"),
    ("ee", "ea"),
    ("ou", "u"),
    ("er", "ar"),
    ("qu", "kw"),
    ("x", "cks"),
    ("c", "k"),
    ("s", "z"),
    ("y", "i"),
)


def misspell(text: str, rng: np.random.Generator) -> str:
    """`text` with one word of at least MIN_WORD_LENGTH letters misspelt (or as it is if none)."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) >= MIN_WORD_LENGTH and word.isalpha()]
    if not long:
        return text
    at = long[int(rng.integers(len(long)))]
    for _ in range(8):
        changed = _edit(words[at], rng)
        if changed != words[at]:
            words[at] = changed
            break
    return " ".join(words)


def _edit(word: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(1, len(word)))  # the first letter is nearly always right
    kind = int(rng.integers(6))
    if kind == 0:
        near = _NEIGHBOURS.get(word[place], word[place])
        return word[:place] + near[int(rng.integers(len(near)))] + word[place + 1 :]
    if kind == 1 and place + 1 < len(word):
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 2:
        return word[:place] + word[place + 1 :]
    if kind == 3:
        doubled = [i for i in range(1, len(word)) if word[i] == word[i - 1]]
        if doubled:
            return word[: doubled[0]] + word[doubled[0] + 1 :]
        return word[:place] + word[place] + word[place:]
    sounds = [(a, b) for a, b in _BY_EAR if a in word[1:]]
    if not sounds:
        return word
    heard, written = sounds[int(rng.integers(len(sounds)))]
    return word[0] + word[1:].replace(heard, written, 1)
