"""Stage 3, calibration: a user's profile, recent searches and clicks filter and augment the terms.

*Filter*: a proposed term that speaks of another audience than the user's profile goes; what the
query names stays. *Augment*: attributes that the user's recent searches and clicks share are added,
at most MAX_ADDED, if the query leaves their kind open. A user's past counts only where it is about
the same things: a recent query or click must share a thing or a category with this query. Nothing
refused is ever added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from index.attribute_types import AttributeType
from index.text import normalise
from server.keywords.analysis import categories_of
from server.keywords.extraction import Candidate, by_popularity, candidate_of, merged
from server.keywords.keywords import MAX_TERMS, Analysis, Attribute, KeywordRequest
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary

MAX_ADDED = 2
MIN_SEEN = 2
"""An attribute seen in fewer recent searches and clicks is no preference yet."""
MIN_SHARE = 0.5
# Where two are chosen equally often, the first type tells more of a taste.
AUGMENTED_TYPES = (
    AttributeType.BRAND,
    AttributeType.AUDIENCE,
    AttributeType.STYLE,
    AttributeType.MATERIAL,
    AttributeType.COLOR,
)
# Profile fields that speak of the user as a wearer, and what their values mean.
GENDER_FIELDS = frozenset(("gender", "sex", "性别"))
_AUDIENCE_OF = {
    "m": "men",
    "male": "men",
    "man": "men",
    "男": "men",
    "男性": "men",
    "f": "women",
    "female": "women",
    "woman": "women",
    "女": "women",
    "女性": "women",
}
_OPPOSITE = {"men": "women", "women": "men"}


def calibrate(
    candidates: Sequence[Candidate],
    analysis: Analysis,
    request: KeywordRequest,
    vocabulary: Vocabulary,
) -> list[Candidate]:
    """Candidates for this user, most popular first, at most MAX_TERMS.

    The same candidates where nothing is known of the user or the query asks for no item.
    """
    if not request.personalised or not analysis.merchandise:
        return list(candidates)
    kept = _filtered(candidates, request)
    refusal = Refusal(analysis.excluded, vocabulary)
    added = [
        candidate
        for attribute in preferences(request, analysis, vocabulary)
        if not refusal.has_term(attribute.value)
        for candidate in [candidate_of(attribute.value, attribute.type, vocabulary, named=False)]
    ]
    # What the query names comes first, then the user, then what the catalogue proposes.
    named = [candidate for candidate in kept if candidate.named]
    proposed = [candidate for candidate in kept if not candidate.named]
    return by_popularity(merged([*named, *added, *proposed], refusal, vocabulary)[:MAX_TERMS])


def preferences(
    request: KeywordRequest, analysis: Analysis, vocabulary: Vocabulary
) -> list[Attribute]:
    """Attributes a user keeps choosing where the query leaves their kind open, commonest first."""
    things = {a.value for a in analysis.attributes if a.type is AttributeType.ENTITY}
    asked = {a.type for a in analysis.attributes}
    open_types = [kind for kind in AUGMENTED_TYPES if kind not in asked]
    seen = Counter[Attribute]()
    related = 0
    for text in (*request.clicked_titles, *request.recent_queries):
        attributes = {
            Attribute(match.type, match.value) for match in vocabulary.matcher.match(text)
        }
        if _is_related(attributes, things, analysis.categories, vocabulary):
            related += 1
            seen.update(a for a in attributes if a.type in open_types)
    chosen: list[Attribute] = []
    ranked = sorted(
        seen.items(), key=lambda pair: (-pair[1], open_types.index(pair[0].type), pair[0].value)
    )
    for attribute, count in ranked:
        if len(chosen) == MAX_ADDED or count < MIN_SEEN or count < MIN_SHARE * related:
            break
        if all(other.type is not attribute.type for other in chosen):
            chosen.append(attribute)
    return chosen


def _is_related(
    attributes: set[Attribute],
    things: set[str],
    categories: Sequence[str],
    vocabulary: Vocabulary,
) -> bool:
    named = {a.value for a in attributes if a.type is AttributeType.ENTITY}
    if named & things:
        return True
    if not vocabulary.paths or not categories:
        return False
    others = categories_of(sorted(attributes, key=lambda a: a.value), vocabulary)
    # The second level: "hair care", not all of "beauty & health".
    return bool(others) and others[:2] == tuple(categories[:2])


def _filtered(candidates: Sequence[Candidate], request: KeywordRequest) -> list[Candidate]:
    audiences = {
        _AUDIENCE_OF[normalise(value)]
        for name, value in request.profile
        if normalise(name) in GENDER_FIELDS and normalise(value) in _AUDIENCE_OF
    }
    unwanted = {_OPPOSITE[audience] for audience in audiences}
    return [c for c in candidates if c.named or not unwanted & set(c.term.split())]
