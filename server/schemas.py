"""Wire data of the HTTP surface. JSON bodies are strict: no text for numbers, no unknown fields.

Seconds inside, `_ms` only here. Strings are text that UTF-8 can write, without NUL.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_LIMIT = 100
DEFAULT_LIMIT = 10
MAX_BEAM_WIDTH = 1024
MAX_HISTORY = 200
MAX_VALUES = 50
MAX_IDENTIFIER_CHARACTERS = 256
MIN_TIMEOUT_MS = 10
MAX_TIMEOUT_MS = 60_000
MAX_PRICE = 1e12

Degradation = Literal[
    "engine_deadline",
    "engine_overload",
    "engine_error",
    "engine_replaced",
    "keywords_unavailable",
]
DEGRADATIONS: tuple[Degradation, ...] = get_args(Degradation)


def _readable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold NUL characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("must not hold lone surrogates") from None
    return text


QueryText = Annotated[
    str,
    AfterValidator(_readable),
    Field(
        description="what is searched for, in any script", examples=["stainless steel wall hook"]
    ),
]
Identifier = Annotated[
    str,
    AfterValidator(_readable),
    Field(min_length=1, max_length=MAX_IDENTIFIER_CHARACTERS),
]
Price = Annotated[float, Field(ge=0, le=MAX_PRICE, allow_inf_nan=False)]
Values = Annotated[list[Identifier], Field(max_length=MAX_VALUES)]
History = Annotated[
    list[Identifier],
    Field(max_length=MAX_HISTORY, description="item ids, oldest first; unknown ones are ignored"),
]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
BeamWidth = Annotated[
    int, Field(ge=1, le=MAX_BEAM_WIDTH, description="how many semantic IDs are kept")
]
TimeoutMs = Annotated[int, Field(ge=MIN_TIMEOUT_MS, le=MAX_TIMEOUT_MS)]


class Filters(BaseModel):
    """Any of the values within a field, all of the fields; case does not matter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    category: Values = Field(default_factory=list[str], examples=[["hardware"]])
    brand: Values = Field(default_factory=list[str], examples=[["acme"]])
    color: Values = Field(default_factory=list[str], examples=[["black", "white"]])
    material: Values = Field(default_factory=list[str], examples=[["steel"]])
    price_min: Price | None = Field(None, examples=[5])
    price_max: Price | None = Field(None, examples=[50])
    in_stock: bool = Field(False, description="leave out items that are known to be out of stock")

    @model_validator(mode="after")
    def _prices_in_order(self) -> Self:
        _check_prices(self.price_min, self.price_max)
        return self


class SearchRequest(BaseModel):
    """The body of POST /v1/search."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "query": "stainless steel wall hook",
                    "limit": 10,
                    "filters": {"price_max": 50, "in_stock": True},
                    "explain": True,
                }
            ]
        },
    )

    query: QueryText
    user_id: Identifier | None = None
    history: History | None = None
    limit: Limit = DEFAULT_LIMIT
    filters: Filters | None = None
    beam_width: BeamWidth | None = None
    timeout_ms: TimeoutMs | None = None
    explain: bool = False


class SearchParameters(BaseModel):
    """GET /v1/search: the same fields, flat; a list is a repeated parameter."""

    model_config = ConfigDict(extra="forbid")

    query: QueryText
    user_id: Identifier | None = None
    history: History | None = None
    limit: Limit = DEFAULT_LIMIT
    category: Values = Field(default_factory=list[str])
    brand: Values = Field(default_factory=list[str])
    color: Values = Field(default_factory=list[str])
    material: Values = Field(default_factory=list[str])
    price_min: Price | None = None
    price_max: Price | None = None
    in_stock: bool = False
    beam_width: BeamWidth | None = None
    timeout_ms: TimeoutMs | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _prices_in_order(self) -> Self:
        _check_prices(self.price_min, self.price_max)
        return self

    def as_request(self) -> SearchRequest:
        """The same search as a body would ask for it."""
        filters = Filters.model_validate(self.model_dump(include=set(Filters.model_fields)))
        return SearchRequest(
            query=self.query,
            user_id=self.user_id,
            history=self.history,
            limit=self.limit,
            filters=filters,
            beam_width=self.beam_width,
            timeout_ms=self.timeout_ms,
            explain=self.explain,
        )


class Features(BaseModel):
    """What an item's score is made of; `sid` is null when there was no beam."""

    sid: float | None
    dense: float
    lexical: float
    popularity: float
    price: float
    words: float


class Explanation(BaseModel):
    """Where a hit comes from: the semantic ID's codes and the parts of the score."""

    source: Literal["beam", "retrieval"]
    codes: list[int]
    level_log_probabilities: list[float] | None = Field(
        description="one per level; null when the hit comes from retrieval"
    )
    branching: list[int] | None = Field(
        description="legal codes that each step chose from; null when the hit comes from retrieval"
    )
    features: Features
    weights: Features


class Hit(BaseModel):
    """One item of the answer."""

    item_id: str
    title: str
    brand: str | None
    category: list[str]
    color: list[str]
    price: float | None
    stock: int | None
    sid: str = Field(examples=["<a_12><b_3>"])
    score: float
    explain: Explanation | None = None


class KeywordFacts(BaseModel):
    """What was known of the query beforehand."""

    state: Literal["hit", "nothing", "miss", "late", "unavailable"] = Field(
        description="nothing: known to have none; miss: being made now; late: not read in time"
    )
    terms: list[str] = Field(description="most important first")
    excluded: list[str] = Field(description="what the query asks not to see; not a filter")
    personalised: bool
    in_prompt: bool = Field(description="whether the model read the terms")


class SearchResponse(BaseModel):
    """The answer of /v1/search, best hit first."""

    request_id: str
    query: str
    hits: list[Hit]
    total_candidates: int = Field(description="items that were ranked")
    model_version: str
    index_version: str
    degraded: list[Degradation] = Field(
        description="parts of the search that did not take part in this answer"
    )
    complete: bool = Field(description="whether there are as many hits as were asked for")
    notes: list[str] = Field(description="for a person: why a list is short, what was ignored")
    simulated: bool = Field(description="whether the catalogue is made up")
    history_items: int = Field(
        default=0, description="items of the user's past that this search knew of"
    )
    keywords: KeywordFacts | None = Field(default=None, description="where keywords are on")
    experiment: str | None = Field(
        default=None, description="which one this search took part in; null where there is none"
    )
    arm: str | None = Field(
        default=None, description="champion or challenger: whose generation answered; as experiment"
    )
    timings_ms: dict[str, float]


class Item(BaseModel):
    """One item of the catalogue, all of its fields."""

    item_id: str
    title: str
    description: str | None
    brand: str | None
    category: list[str]
    color: list[str]
    material: list[str]
    audience: list[str]
    function: list[str]
    attributes: dict[str, list[str]]
    price: float | None
    stock: int | None
    popularity: float | None
    sid: str
    index_version: str


class CatalogueFacts(BaseModel):
    """How far the catalogue has changed."""

    sequence: int = Field(description="number of the last change")
    added: int = Field(description="rows added since the last merge")
    deleted: int = Field(description="rows deleted since the last merge")
    log_bytes: int
    merging: bool
    merges: int = Field(description="since the start")
    last_merge_s: float
    merge_failed: bool = Field(description="the last one; the log says why")


class CanaryFacts(BaseModel):
    """The share of the users that the challenger answers."""

    experiment: str
    generation: str
    share: float
    served: bool = Field(description="whether this server does so")
    problem: str = Field(description='why not, else ""')


class GenerationFacts(BaseModel):
    """Which of a registry's generations is served."""

    version: str
    alias: str = Field(description='champion, previous, challenger, or ""')
    revision: int = Field(description="of the registry's aliases, as last seen")
    champion: str | None = Field(description="what should be served")
    problem: str = Field(description='why the champion is not served, else ""')
    canary: CanaryFacts | None = Field(default=None, description="where the registry has one")
    condemned: str = Field(
        default="", description="the last generation that was found clearly worse here, and how"
    )


class DiscoveryFacts(BaseModel):
    """How a server learns which generation to serve."""

    learnt: Literal["start", "announcement", "directory", "admin", "verdict"] = Field(
        description="what brought the generation that is served: the start, an announcement in "
        "Redis, the registry's directory, this server's admin API, or that the one before it was "
        "clearly worse"
    )
    announcements: Literal["off", "on", "away"] = Field(
        description="whether they are heard; off: no redis_url is set, away: Redis does not answer"
    )


class Status(BaseModel):
    """The answer of /livez and /readyz."""

    status: Literal["ok"]
    model_version: str | None = None
    index_version: str | None = None
    simulated: bool | None = None
    items: int | None = None
    generation: GenerationFacts | None = Field(
        default=None, description="where a registry is followed"
    )
    discovery: DiscoveryFacts | None = Field(
        default=None, description="where a registry is followed"
    )
    catalogue: CatalogueFacts | None = Field(default=None, description="where it takes changes")


class WrongField(BaseModel):
    """One wrong field of a request."""

    place: str
    problem: str


class ProblemDetails(BaseModel):
    """RFC 9457; `type` is a stable path under /problems/."""

    type: str = Field(examples=["/problems/invalid-request"])
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[WrongField] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the error answers of a route."""
    content = {"application/problem+json": {"schema": {"$ref": _PROBLEM_REFERENCE}}}
    return {status: {"description": "Problem", "content": content} for status in statuses}


def takes_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI entry for a route that reads its body itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_PROBLEM_REFERENCE = "#/components/schemas/ProblemDetails"


def _check_prices(price_min: float | None, price_max: float | None) -> None:
    if price_min is not None and price_max is not None and price_min > price_max:
        raise ValueError("price_min must not be greater than price_max")
