"""Wire data of catalogue changes: what PUT, PATCH and DELETE /v1/items take and answer.

A request holds up to MAX_CHANGES changes, which are judged one by one: a bad one is a `Refused` in
its place and the others go on. Texts are cleaned as `onesearch data import` cleans them (entities
decoded, markup and control characters removed), so an item is the same whichever way it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from index.importers.cleaning import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_POSITION,
    MAX_TITLE_CHARACTERS,
    MAX_VALUE_CHARACTERS,
    MAX_VALUES,
    FieldError,
    clean_text,
    read_id,
)
from index.live.changes import Change, Delete, Update, Upsert
from server.errors import Place, Problem
from server.schemas import Price

MAX_CHANGES = 1000
"""Of one request."""
MAX_ATTRIBUTES = 64
MAX_STOCK = MAX_POSITION
MAX_TOLD_PROBLEMS = 3
"""Of one refused change."""
_NAMES_OF_CLIENTS = "attributes"


def _id(text: str) -> str:
    if text != text.strip():
        raise ValueError("is no id: it begins or ends with a space")
    try:
        return read_id("item_id", text)
    except FieldError as error:
        raise ValueError(f"is no id: {error.reason}") from None


def _title(text: str) -> str:
    cleaned = clean_text(text)
    if not cleaned:
        raise ValueError("must hold at least one character that can be read")
    return cleaned


def _text(text: str) -> str | None:
    return clean_text(text) or None


def _values(values: list[str]) -> list[str]:
    """Distinct cleaned texts, in the order given; what holds no text is left out."""
    cleaned = (clean_text(value) for value in values)
    return list(dict.fromkeys(value for value in cleaned if value))


def _named_values(attributes: dict[str, list[str]]) -> dict[str, list[str]]:
    cleaned = {clean_text(name): _values(values) for name, values in attributes.items()}
    return {name: values for name, values in cleaned.items() if name and values}


ItemId = Annotated[
    str, Field(min_length=1, max_length=MAX_ID_CHARACTERS, examples=["i1"]), AfterValidator(_id)
]
Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARACTERS), AfterValidator(_title)]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARACTERS), AfterValidator(_text)]
Brand = Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS), AfterValidator(_text)]
Value = Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS)]
Values = Annotated[list[Value], Field(max_length=MAX_VALUES), AfterValidator(_values)]
Attributes = Annotated[
    dict[Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS)], Values],
    Field(max_length=MAX_ATTRIBUTES, description="further names, each with its values"),
    AfterValidator(_named_values),
]
Stock = Annotated[int, Field(ge=0, le=MAX_STOCK)]
Popularity = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_STRICT = ConfigDict(extra="forbid", strict=True)


class CatalogueItem(BaseModel):
    """A whole item. A field that is not given is unknown, also where it was known before."""

    model_config = _STRICT

    item_id: ItemId
    title: Title = Field(examples=["Waterproof hiking boots"])
    description: Description | None = None
    brand: Brand | None = None
    category: Values = Field(
        default_factory=list[str], description="path, the widest first", examples=[["shoes"]]
    )
    color: Values = Field(default_factory=list[str])
    material: Values = Field(default_factory=list[str])
    audience: Values = Field(default_factory=list[str])
    function: Values = Field(default_factory=list[str])
    attributes: Attributes = Field(default_factory=dict[str, list[str]])
    price: Price | None = Field(None, examples=[89.9])
    stock: Stock | None = Field(None, examples=[12])
    popularity: Popularity | None = None


class ItemUpdate(BaseModel):
    """New price, stock or popularity of an item; what is not given stays, null makes it unknown."""

    model_config = _STRICT

    item_id: ItemId
    price: Price | None = None
    stock: Stock | None = None
    popularity: Popularity | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that cannot be read: the id it names, if it names one, and why."""

    item_id: str | None
    reason: str


def _or_refused(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError as error:
        return Refused(_named_id(value), _reason(error))


OneByOne = WrapValidator(_or_refused)
_SIZE = Field(min_length=1, max_length=MAX_CHANGES)


class ItemUpserts(BaseModel):
    """The body of PUT /v1/items."""

    model_config = _STRICT

    items: Annotated[list[Annotated[CatalogueItem, OneByOne]], _SIZE]


class ItemUpdates(BaseModel):
    """The body of PATCH /v1/items."""

    model_config = _STRICT

    items: Annotated[list[Annotated[ItemUpdate, OneByOne]], _SIZE]


class ItemRemovals(BaseModel):
    """The body of DELETE /v1/items."""

    model_config = _STRICT

    item_ids: Annotated[list[Annotated[ItemId, OneByOne]], _SIZE]


BODIES: tuple[type[BaseModel], ...] = (ItemUpserts, ItemUpdates, ItemRemovals)


class RejectedChange(BaseModel):
    """One change that was not applied. `index` counts from 0 in the order of the request."""

    index: int
    item_id: str | None = Field(description="null where the change names none")
    reason: str


class Changed(BaseModel):
    """What became of a request's changes; those applied are on disk and in the next search."""

    sequence: int = Field(description="number of the catalogue's last change, counted for ever")
    applied: int
    rejected: list[RejectedChange]
    index_version: str
    took_ms: float


class Batch(NamedTuple):
    """A request's changes with their places in it, and those that were refused already."""

    changes: tuple[tuple[int, Change], ...]
    rejected: tuple[RejectedChange, ...]


def upserts_of(body: bytes) -> Batch:
    """PUT. Raises Problem or RequestValidationError where nothing can be made of the body."""
    items = cast(list[CatalogueItem | Refused], _read(ItemUpserts, body).items)
    return _parted([_upsert(item) for item in items])


def updates_of(body: bytes) -> Batch:
    """PATCH. Raises like `upserts_of`."""
    items = cast(list[ItemUpdate | Refused], _read(ItemUpdates, body).items)
    return _parted([_update(item) for item in items])


def removals_of(body: bytes) -> Batch:
    """DELETE. Raises like `upserts_of`."""
    item_ids = cast(list[str | Refused], _read(ItemRemovals, body).item_ids)
    return _parted([one if isinstance(one, Refused) else Delete(one) for one in item_ids])


def id_of(change: Change) -> str:
    """The item that a change is about; "" where nobody knows."""
    return str(change.item["item_id"]) if isinstance(change, Upsert) else change.item_id or ""


def nothing_applied(rejected: Sequence[RejectedChange], field: str) -> Problem:
    """The 422 for a request without one change that could be applied."""
    places = [Place(f"body.{field}.{bad.index}", bad.reason) for bad in rejected]
    detail = f"no change could be applied; {places[0].place}: {places[0].problem}"
    if len(places) > 1:
        detail += f" (and {len(places) - 1} more)"
    return Problem("no-valid-change", detail, places=places)


def _parted(given: Sequence[Change | Refused]) -> Batch:
    """The good ones and the bad ones."""
    good = [(i, one) for i, one in enumerate(given) if not isinstance(one, Refused)]
    bad = [
        RejectedChange(index=i, item_id=one.item_id, reason=one.reason)
        for i, one in enumerate(given)
        if isinstance(one, Refused)
    ]
    return Batch(tuple(good), tuple(bad))


def _upsert(item: CatalogueItem | Refused) -> Change | Refused:
    return item if isinstance(item, Refused) else Upsert(item.model_dump())


def _update(update: ItemUpdate | Refused) -> Change | Refused:
    """A field that is null becomes unknown; one that is not there stays."""
    if isinstance(update, Refused):
        return update
    values = update.model_dump(exclude_unset=True, exclude={"item_id"})
    if not values:
        reason = "names nothing to change: give price, stock or popularity"
        return Refused(update.item_id, reason)
    return Update(update.item_id, values)


Body = TypeVar("Body", bound=BaseModel)


def _read(model: type[Body], body: bytes) -> Body:
    try:
        raw = cast(object, orjson.loads(body))
    except orjson.JSONDecodeError:
        raise Problem("malformed-request", "the body is not valid JSON") from None
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
        ) from None


def _named_id(value: object) -> str | None:
    """The id of a change that cannot be read, where it is one."""
    given = cast(dict[object, object], value).get("item_id") if isinstance(value, dict) else value
    try:
        return read_id("item_id", given) if isinstance(given, str) else None
    except FieldError:
        return None


def _reason(error: ValidationError) -> str:
    told = error.errors(include_url=False, include_context=False, include_input=False)
    reasons = list(_reasons(told[:MAX_TOLD_PROBLEMS]))
    more = len(told) - len(reasons)
    return "; ".join(reasons) + (f" (and {more} more)" if more else "")


def _reasons(problems: Sequence[Any]) -> Iterator[str]:
    """Names that we did not define are the client's text and are not repeated."""
    for problem in problems:
        path = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            yield "has a field that does not exist; see /docs"
            continue
        if path[:1] == [_NAMES_OF_CLIENTS]:
            path = path[:1]
        message = str(problem["msg"]).removeprefix("Value error, ")
        yield f"{'.'.join(path)}: {message}" if path else message
