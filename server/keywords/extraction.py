"""Stage 2, extraction: at most eight terms from an analysis (METHOD §4).

What the query names comes first: its topics, the attributes it asks for, and, where there is no
topic, its categories. Proposals of the catalogue fill up. Synonyms are one term (the dictionary's
canonical value), so are spellings that `index.text.words` makes equal, and a term within another
("saw" in "scroll saw") says nothing more. Marketing words and price limits are no terms; a model
number always is one. Terms go by popularity: how many items they could mean, popular items counting
more.

Deviation from the published order (topics, *else* category and attributes): attributes join the
topics, since a term list without "red" would lose what the query says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from index.attribute_types import AttributeType
from index.text import normalise, words
from server.keywords.expansion import Proposal
from server.keywords.keywords import MAX_TERMS, Analysis, Intent
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary

_NO_TERM = frozenset((AttributeType.MARKETING, AttributeType.PRICE))


class Candidate(NamedTuple):
    """A term and what is known of it. `named`: the query says it. `type` None: a plain word."""

    term: str
    type: AttributeType | None
    popularity: float
    named: bool


def extract(
    analysis: Analysis, proposals: Sequence[Proposal], vocabulary: Vocabulary
) -> list[Candidate]:
    """Candidates of an analysis, most popular first, at most MAX_TERMS. Proposals: best first."""
    if not analysis.merchandise:
        return []
    refusal = Refusal(analysis.excluded, vocabulary)
    kept = merged(
        [*_named(analysis, vocabulary), *_proposed(proposals, vocabulary)], refusal, vocabulary
    )
    return by_popularity(kept)


def merged(
    candidates: Iterable[Candidate], refusal: Refusal, vocabulary: Vocabulary
) -> list[Candidate]:
    """The first MAX_TERMS candidates that are not refused and say something new; models stay."""
    kept: list[Candidate] = []
    said: list[frozenset[str]] = []
    for candidate in candidates:
        meaning = frozenset(words(candidate.term)) or frozenset((candidate.term,))
        if refusal.has_term(candidate.term) or is_marketing(candidate.term, vocabulary):
            continue
        if any(meaning <= other for other in said):
            continue
        narrower = [i for i, other in enumerate(said) if other < meaning]
        if narrower and candidate.named:
            for i in reversed(narrower):
                del kept[i], said[i]
        kept.append(candidate)
        said.append(meaning)
    if len(kept) <= MAX_TERMS:
        return kept
    models = [c for c in kept if c.type is AttributeType.MODEL][:MAX_TERMS]
    others = [c for c in kept if c.type is not AttributeType.MODEL]
    chosen = set(models) | set(others[: MAX_TERMS - len(models)])
    return [candidate for candidate in kept if candidate in chosen]


def by_popularity(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Most popular first, ties by term."""
    return sorted(candidates, key=lambda c: (-c.popularity, c.term))


def candidate_of(
    term: str, kind: AttributeType | None, vocabulary: Vocabulary, *, named: bool
) -> Candidate:
    """A candidate with its popularity: the concept's, else what its rarest word allows."""
    number = None if kind is None else vocabulary.number(kind, term)
    if number is None:
        popularity = vocabulary.phrase_popularity(term)
    else:
        popularity = float(vocabulary.popularity[number])
    return Candidate(term, kind, popularity, named)


def is_marketing(term: str, vocabulary: Vocabulary) -> bool:
    """Whether a term is nothing but praise and price."""
    matches = vocabulary.matcher.match(term)
    covered = sum(match.end - match.start for match in matches)
    only = all(match.type in _NO_TERM for match in matches)
    return bool(matches) and only and covered == len(normalise(term))


def clean_terms(
    terms: Iterable[str], excluded: Sequence[str], vocabulary: Vocabulary
) -> tuple[str, ...]:
    """Terms from elsewhere, e.g. of a language model, by the rules of this stage."""
    candidates: list[Candidate] = []
    for text in terms:
        term = normalise(text)
        if term:
            matches = vocabulary.matcher.match(term)
            whole = len(matches) == 1 and matches[0].surface == term
            kind = matches[0].type if whole else None
            value = matches[0].value if whole else term
            candidates.append(candidate_of(value, kind, vocabulary, named=True))
    kept = merged(candidates, Refusal(excluded, vocabulary), vocabulary)
    return tuple(candidate.term for candidate in by_popularity(kept))


def _named(analysis: Analysis, vocabulary: Vocabulary) -> list[Candidate]:
    type_of = {attribute.value: attribute.type for attribute in analysis.attributes}
    found = [
        candidate_of(topic, type_of.get(topic), vocabulary, named=True) for topic in analysis.topics
    ]
    found += [
        candidate_of(attribute.value, attribute.type, vocabulary, named=True)
        for attribute in analysis.attributes
        if attribute.type not in _NO_TERM and attribute.value not in analysis.topics
    ]
    if not analysis.topics and Intent.NON_MERCHANDISE not in analysis.intents:
        found += [
            candidate_of(name, AttributeType.ENTITY, vocabulary, named=False)
            for name in analysis.categories[-1:]
        ]
    return found


def _proposed(proposals: Sequence[Proposal], vocabulary: Vocabulary) -> list[Candidate]:
    return [
        candidate_of(
            vocabulary.concepts[proposal.number].value,
            vocabulary.concepts[proposal.number].type,
            vocabulary,
            named=False,
        )
        for proposal in proposals
    ]
