"""Users of the simulated demo shop and their latent tastes, which no file carries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.importers.demo_items import Bools, DemoItems, Floats, Ints
from index.importers.demo_table import ShopTable

DAY_S = 86_400.0
DAYS = 60
EPOCH_S = 1_767_225_600.0  # 1 January 2026, when the simulation starts
INTEREST = 0.15  # Dirichlet concentration over departments: a few each
FOUNDER_SHARE = 0.6  # of the users exist when the simulation starts
BRAND_WEIGHT = 2.4
COLOR_WEIGHT = 1.5
MATERIAL_WEIGHT = 1.0
PRICE_WEIGHT = 3.0
AUDIENCE_WEIGHT = 1.5

_REGIONS = ("north", "south", "east", "west", "coast")
_AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
_DEVICES = ("mobile", "desktop", "tablet")


@dataclass(frozen=True, slots=True)
class DemoUsers:
    """Latent tastes, aligned arrays; what is published of a user is in `attributes`.

    brand, color, material: float (n_users, values of the facet), positive = liked;
    price_level (n_users,) 0 … 1; department (n_users, n_departments) shares; joined (n_users,)
    seconds; female (n_users,): whether they wear women's or men's clothes.
    """

    brand: Floats
    color: Floats
    material: Floats
    price_level: Floats
    department: Floats
    joined: Floats
    female: Bools
    attributes: list[dict[str, str]]


def make_users(
    table: ShopTable, items: DemoItems, n_users: int, rng: np.random.Generator
) -> DemoUsers:
    departments = departments_of(table)
    interest = rng.dirichlet(np.full(len(departments), INTEREST), n_users)
    level = rng.beta(1.6, 1.6, n_users)
    brand = np.zeros((n_users, len(items.facets["brand"].values)))
    column = {name: number for number, name in enumerate(items.facets["brand"].values)}
    for department in departments:
        house = [b for b in table.brands if b.department == department and b.name in column]
        if not house:
            continue
        gap = np.abs(level[:, None] - np.array([b.level for b in house])[None, :])
        score = -3.0 * gap + rng.gumbel(size=gap.shape)
        order = np.argsort(-score, axis=1)
        numbers = np.array([column[b.name] for b in house])
        everybody = np.arange(n_users)
        brand[everybody, numbers[order[:, 0]]] = 1.0
        if len(house) > 1:
            brand[everybody, numbers[order[:, 1]]] = 0.6
            brand[everybody, numbers[order[:, -1]]] = -0.5
    earliest = np.where(rng.random(n_users) < FOUNDER_SHARE, 0.0, rng.uniform(0, DAYS - 5, n_users))
    female = rng.random(n_users) >= 0.45
    joined = EPOCH_S + np.floor(earliest * DAY_S)
    attributes = [
        {
            "joined": str(int(joined[i])),
            "region": _REGIONS[int(rng.integers(len(_REGIONS)))],
            "age_group": _AGES[int(rng.choice(len(_AGES), p=[0.18, 0.3, 0.24, 0.16, 0.12]))],
            "device": _DEVICES[int(rng.choice(len(_DEVICES), p=[0.62, 0.31, 0.07]))],
        }
        for i in range(n_users)
    ]
    return DemoUsers(
        brand=brand,
        color=_likes(n_users, len(items.facets["color"].values), 3, 1, rng),
        material=_likes(n_users, len(items.facets["material"].values), 20, 10, rng),
        price_level=level,
        department=interest,
        joined=joined,
        female=female,
        attributes=attributes,
    )


def departments_of(table: ShopTable) -> list[str]:
    return list(dict.fromkeys(category.department for category in table.categories))


def _likes(
    n_users: int, n_values: int, liked: int, disliked: int, rng: np.random.Generator
) -> Floats:
    order = np.argsort(rng.random((n_users, n_values)), axis=1)
    taste = np.zeros((n_users, n_values))
    np.put_along_axis(taste, order[:, :liked], 1.0, axis=1)
    np.put_along_axis(taste, order[:, max(n_values - disliked, 0) :], -0.7, axis=1)
    return taste


def taste(users: DemoUsers, items: DemoItems, user: Ints, item: Ints) -> Floats:
    """How much more (positive) or less each user likes each item; shapes broadcast."""
    facets = items.facets
    brand = facets["brand"].has.argmax(axis=1)[item]
    total = BRAND_WEIGHT * users.brand[user, brand]
    for name, liking, weight in (
        ("color", users.color, COLOR_WEIGHT),
        ("material", users.material, MATERIAL_WEIGHT),
    ):
        first = facets[name].has.argmax(axis=1)
        any_value: Bools = np.any(facets[name].has, axis=1)
        total = total + weight * liking[user, first[item]] * any_value[item]
    gap = np.abs(users.price_level[user] - items.price_level[item])
    total = total + PRICE_WEIGHT * (0.3 - gap)
    audience = facets["audience"]
    for name, unlike in (("women", ~users.female), ("men", users.female)):
        if name in audience.values:
            total = total - AUDIENCE_WEIGHT * (unlike[user] & audience.of(name)[item])
    return total
