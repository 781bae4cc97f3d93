"""A shop of two languages for the keyword stages: made-up brands, real things, 400 items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.encoder import StaticEncoder
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of
from server.keywords.generator import GenerationError
from server.keywords.keywords import KeywordRequest, Keywords
from server.keywords.vocabulary import Vocabulary
from tests.server.keywords.model_server import ModelServer, Play, Run, Serve, with_generator

COPIES = 10
DIMENSION = 32
BUCKETS = 2048
LAYOUT = SidLayout((8, 4, 4))


def _kinds() -> list[list[list[str]]]:
    """One list of fields for each line of the table, each field a list of values."""
    lines = Path(__file__).with_name("golden_shop.txt").read_text("utf-8").splitlines()
    fields = [line.split("|") for line in lines if not line.startswith("#")]
    return [[_values(field) for field in line] for line in fields]


def _values(field: str) -> list[str]:
    return [value.strip() for value in field.split(",") if value.strip()]


def shop_items() -> pa.Table:
    """COPIES items of each kind; every value of a kind occurs."""
    rows = [row for kind in _kinds() for row in _items_of(kind)]
    for number, row in enumerate(rows, 1):
        row |= {
            "item_id": f"g{number}",
            "price": float(5 + number % 90),
            "stock": 3,
            "popularity": float((number * 37) % 50),
        }
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _items_of(kind: list[list[str]]) -> Iterator[dict[str, Any]]:
    (path,), nouns, *others = kind
    for i in range(COPIES):

        def pick(values: list[str], step: int = 1, i: int = i) -> str:
            return values[(i * step + i // 3) % len(values)] if values else ""

        brand, material, color, use, audience, feature = (pick(values) for values in others)
        color = pick(others[2], 2)
        audience = audience if i % 2 else ""
        noun = pick(nouns) if i % 4 else nouns[0]
        parts = [brand, feature, color, material, audience]
        if noun.isascii():
            title = " ".join(part for part in (*parts, noun) if part)
            title = f"{title} for {use}" if use else title
        else:
            # Sellers put the use before the thing or after it.
            title = "".join((*parts, use, noun) if i % 2 else (*parts, noun, use))
        yield {
            "title": title,
            "brand": brand,
            "category": path.split("/"),
            "color": [color] if color else [],
            "material": [material] if material else [],
            "audience": [audience] if audience else [],
            "function": [use] if use else [],
            "attributes": [("feature", [feature])] if feature else [],
        }


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The shop as a snapshot; its encoder has random features of words, nothing was trained."""
    random = np.random.default_rng(3)
    items = shop_items()
    table = random.standard_normal((BUCKETS, DIMENSION)).astype(np.float32)
    encoder = StaticEncoder.from_table(table, np.arange(BUCKETS, dtype=np.int32))
    embeddings = encoder.encode(texts_of(items))
    centroids = tuple(
        embeddings[random.choice(len(items), size, replace=False)] / (level + 1) ** 2
        for level, size in enumerate(LAYOUT.level_sizes)
    )
    codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
    path: Path = tmp_path_factory.mktemp("shop") / "snapshot"
    Snapshot.write(
        path,
        items=items,
        encoder=encoder,
        attributes=AttributeDictionary.build(items),
        codec=codec,
        codes=codec.encode(embeddings),
        embeddings=embeddings,
        report={},
        keyword_fusion=0.0,
        simulated=True,
        dataset_version="golden shop",
    )
    return Snapshot.open(path)


@pytest.fixture(scope="session")
def vocabulary(shop: Snapshot) -> Vocabulary:
    return Vocabulary.build(shop)


@pytest.fixture
def urls() -> list[str]:
    """Base URLs of the servers that a test started, the latest last."""
    return []


@pytest.fixture
def serve(start_server: Callable[[Any], httpx.Client], urls: list[str]) -> Serve:
    """`serve(*plays)` → a running server; generators of `ask` talk to the latest one."""

    def start(*plays: Play) -> ModelServer:
        server = ModelServer(*plays)
        urls.append(f"{str(start_server(server).base_url).rstrip('/')}/v1")
        return server

    return start


@pytest.fixture
def ask(urls: list[str]) -> Run:
    """`ask(*requests, **settings)` → the answers of a generator, asked for all at once."""

    def run(*requests: KeywordRequest, **options: Any) -> list[Keywords | GenerationError]:
        return with_generator(urls[-1], lambda generator: generator.generate(requests), **options)

    return run
