"""The 18 attribute types of keyword enhancement (KHQE), and what is known of them in advance.

Types: OneSearch (METHOD §2). Here are the priority by which a type keeps a surface that several
types claim, the type that a column or attribute key of an item table stands for, a small lexicon
of generic words, and the patterns for values no list can hold (sizes, prices, model numbers).
The lexicon is our own and small on purpose: brands, entities and everything a shop names itself
come from its catalogue.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple


class AttributeType(StrEnum):
    """Declared in order of priority: the first type keeps a surface that several claim."""

    MATERIAL = "Material"
    COLOR = "Color"
    BRAND = "Brand"
    SERIES = "Series"
    ENTITY = "Entity"
    AUDIENCE = "Audience"
    SEASON = "Season"
    PATTERN = "Pattern"
    FUNCTION = "Function"
    STYLE = "Style"
    SCENE = "Scene"
    MODEL = "Model"
    SPECIFICATIONS = "Specifications"
    PRICE = "Price"
    LOCATION = "Location"
    ANCHOR = "Anchor"
    MODIFIER = "Modifier"
    MARKETING = "Marketing"


class Entry(NamedTuple):
    """What a surface means."""

    type: AttributeType
    value: str


PRIORITY: Mapping[AttributeType, int] = {kind: rank for rank, kind in enumerate(AttributeType)}

LIST_COLUMNS: Mapping[str, AttributeType] = {
    "color": AttributeType.COLOR,
    "material": AttributeType.MATERIAL,
    "audience": AttributeType.AUDIENCE,
    "function": AttributeType.FUNCTION,
}

_KEYS: Mapping[AttributeType, str] = {
    AttributeType.MATERIAL: "fabric, upholstery, shell material, outer material",
    AttributeType.COLOR: "finish, colour, color family, colour family, shade",
    AttributeType.BRAND: "manufacturer, maker, label",
    AttributeType.SERIES: "series, collection, line, product line, range",
    AttributeType.ENTITY: "type, product type, item type, product",
    AttributeType.AUDIENCE: "gender, age group, age, target group, recipient",
    AttributeType.SEASON: "season, seasons",
    AttributeType.PATTERN: "pattern, print, motif",
    AttributeType.FUNCTION: "benefit, purpose, use, usage, activity, sport",
    AttributeType.STYLE: "style, theme, design, fit, look",
    AttributeType.SCENE: "scene, room, occasion, setting, place, environment",
    AttributeType.MODEL: "model, model number, model name, mpn",
    AttributeType.SPECIFICATIONS: (
        "size, dimensions, capacity, volume, weight, length, width, height, depth, diameter, "
        "power, voltage, wattage, thread count, pack size, storage, memory"
    ),
    AttributeType.LOCATION: "location, origin, country, country of origin, region, city",
    AttributeType.ANCHOR: "anchor, host, streamer, seller, shop, author",
    AttributeType.MODIFIER: "feature, features, shape, texture, closure, power source, scent",
    AttributeType.MARKETING: "promotion, deal, campaign",
}
ATTRIBUTE_KEYS: Mapping[str, AttributeType] = {
    key: kind for kind, keys in _KEYS.items() for key in keys.split(", ")
}

# Values that say nothing: placeholders found in brand, colour and material columns.
_EMPTY_VALUES = """
    other, others, unknown, none, n/a, na, null, no, yes, true, false, misc, miscellaneous, generic,
    unbranded, no brand, not applicable, not specified, see description, various, varies, default,
    standard, assorted, light, dark, color, colour, colors, finish,
    其他, 其它, 无, 无品牌, 其他/other
"""
EMPTY_VALUES = frozenset(value.strip() for value in _EMPTY_VALUES.split(","))

# Words that never end or start a mined entity and are never a brand by themselves.
_STOP_WORDS = """
    a an and any are as at be by can do for from has have how i in into is it its me my no not of
    on or our per so some than that the their them these this to up use was we what when
    which who will with without you your each includes including plus compatible only
    home new in. ft. series size type
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

# Words that name nothing alone, but do at the end of a phrase: "tool kit".
NOT_ALONE = frozenset(
    ["kit", "kits", "set", "sets", "pack", "packs", "piece", "pieces", "pcs", "count", "ct"]
)

# "canonical: surface, surface" per line; the canonical value is a surface too.
_LEXICON: Mapping[AttributeType, str] = {
    AttributeType.COLOR: """
        white: whites, off white, off-white, bright white
        black: blacks, jet black
        gray: grey, grays, greys, charcoal grey
        red: reds
        blue: blues
        navy: navy blue
        light blue: sky blue, baby blue
        green: greens
        olive: olive green
        yellow: yellows
        orange
        pink: pinks
        purple: purples, violet
        brown: browns
        beige: beiges
        cream: creme
        ivory
        tan
        gold: golden
        silver
        bronze
        burgundy: maroon, wine red
        teal: turquoise
        multicolor: multi-color, multicolored, multi-colored, multicolour, multicoloured
        transparent: see-through
    """,
    AttributeType.MATERIAL: """
        wood: wooden, solid wood
        metal: metallic
        steel
        stainless steel: stainless
        aluminum: aluminium
        plastic
        glass
        leather: genuine leather, real leather
        faux leather: pu leather, vegan leather, synthetic leather
        cotton: organic cotton
        wool: woollen, woolen
        linen
        silk: silken
        polyester
        nylon
        rubber
        ceramic: ceramics
        bamboo
        oak
        walnut
        velvet
        canvas
        denim
        paper
        silicone
    """,
    AttributeType.AUDIENCE: """
        women: woman, womens, women's, ladies, lady, female
        men: man, mens, men's, male
        kids: kid, children, child, childrens, children's, kid's
        baby: babies, infant, infants, newborn
        toddler: toddlers
        girls: girl, girl's
        boys: boy, boy's
        teens: teen, teenager, teenagers
        adults: adult
        seniors: senior, elderly
        unisex
        beginners: beginner
        dogs: dog
        cats: cat
    """,
    AttributeType.SEASON: """
        spring: springtime
        summer: summertime
        autumn: fall
        winter: wintertime
        all season: all-season, four season, year round, year-round
        christmas: xmas
        halloween
        easter
    """,
    AttributeType.PATTERN: """
        striped: stripe, stripes, stripy
        floral: flower print, flowered
        plaid: tartan
        checked: checkered, gingham
        polka dot: polka dots, dotted
        camouflage: camo
        leopard: leopard print
        geometric
        paisley
    """,
    AttributeType.STYLE: """
        modern: contemporary
        vintage: retro
        rustic: farmhouse
        minimalist: minimal
        classic: traditional
        industrial
        bohemian: boho
        scandinavian: nordic
        mid century: mid-century
        casual
        elegant
    """,
    AttributeType.SCENE: """
        kitchen
        bathroom
        bedroom
        living room
        dining room
        office
        garden: backyard
        patio
        garage
        outdoor: outdoors
        indoor: indoors
        travel: travelling, traveling
        wedding
        party: parties
        camping
        beach
        school
    """,
    AttributeType.LOCATION: """
        italy: italian, made in italy
        germany: german, made in germany
        japan: japanese, made in japan
        france: french, made in france
        usa: american, made in usa, made in the usa
        china: chinese, made in china
    """,
    AttributeType.MODIFIER: """
        small: little
        large: big
        extra large: xl, x-large
        mini
        portable
        foldable: folding, collapsible
        adjustable
        lightweight: light weight
        heavy duty: heavy-duty
        wireless: cordless
        electric
        rechargeable
        waterproof: water proof
        soft
        thick
        slim
    """,
    AttributeType.MARKETING: """
        best: the best, best rated, top rated, top-rated, best selling, bestseller, best seller
        cheap: cheapest, affordable, budget, low cost, inexpensive
        sale: on sale, clearance, discount, discounted, deal, deals, special offer, promotion
        free shipping: free delivery
        new arrival: new arrivals, new in, hot sale, hot
        premium: high quality, high-quality, quality
        gift: gift idea, gift ideas, perfect gift
        limited edition
        official: authentic, genuine, 正品
        popular: trending
        sale price: 特价, 促销, 包邮
    """,
}


def lexicon() -> dict[AttributeType, dict[str, tuple[str, ...]]]:
    """The built-in words: type → canonical value → surfaces (without the canonical itself)."""
    return {
        kind: {
            canonical.strip(): tuple(s.strip() for s in surfaces.split(",") if s.strip())
            for canonical, _, surfaces in (
                line.partition(":") for line in block.splitlines() if line.strip()
            )
        }
        for kind, block in _LEXICON.items()
    }


_UNITS: Mapping[str, str] = {
    "in": "inches inch in. in \" ''",
    "ft": "feet foot ft. ft '",
    "yd": "yards yard yd. yd",
    "sq ft": "sq.ft. sqft",
    "mm": "millimeters millimetres mm",
    "cm": "centimeters centimetres cm",
    "m": "meters metres meter metre m",
    "oz": "ounces ounce oz. oz",
    "lb": "pounds pound lbs. lbs lb. lb",
    "g": "grams gram gr g",
    "kg": "kilograms kilogram kilos kgs kg",
    "ml": "milliliters millilitres ml",
    "l": "liters litres liter litre l",
    "gal": "gallons gallon gal. gal",
    "qt": "quarts quart qt. qt",
    "w": "watts watt w",
    "v": "volts volt v",
    "amp": "amperes amps amp a",
    "hp": "horsepower hp",
    "mah": "mah",
    "gb": "gigabytes gb",
    "tb": "terabytes tb",
    "mp": "megapixels mp",
    "hz": "hertz hz",
    "pack": "packs pack pk",
    "piece": "pieces piece pcs pc",
    "count": "count ct",
    "seater": "seaters seater seats",
    "tier": "tiers tier",
    "drawer": "drawers drawer",
    "gauge": "gauge ga",
    "years": "years year yrs yr",
}
_SPACED_UNITS: Mapping[str, str] = {
    "sq. ft.": "sq ft",
    "sq ft": "sq ft",
    "cu. ft.": "cu ft",
    "cu ft": "cu ft",
    "fl. oz.": "oz",
    "fl oz": "oz",
}
_UNIT_OF: Mapping[str, str] = {
    **_SPACED_UNITS,
    **{surface: unit for unit, surfaces in _UNITS.items() for surface in surfaces.split()},
}

# Bounded repetitions and a look-behind at each start keep the time linear in the text. Word
# boundaries are Latin ones only: Chinese text puts sizes between its characters.
_NUMBER = r"\d{1,9}(?:[.,]\d{1,9}){0,2}(?:[ -]\d{1,3}/\d{1,3}|/\d{1,3})?"
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNIT_OF, key=len, reverse=True))
_MEASURE = rf"{_NUMBER}(?:[ -]?(?:{_UNIT})(?![a-z]))"
_SPECIFICATION = re.compile(
    rf"(?<![a-z\d.])(?:(?:{_MEASURE}|{_NUMBER})(?: ?[x×*] ?(?:{_MEASURE}|{_NUMBER})){{1,3}}"
    rf"|{_MEASURE})(?![a-z\d])"
)
_MEASURE_PARTS = re.compile(rf"({_NUMBER})[ -]?({_UNIT})?(?![a-wyz])")
_MODEL = re.compile(
    r"(?<![a-z\d.-])(?!\d{1,4}(?:st|nd|rd|th|s)(?![a-z\d]))"
    r"(?:[a-z]{1,12}\d[a-z0-9]{1,20}|\d{1,12}[a-z]{1,3}\d[a-z0-9]{0,20}|\d{3,12}[a-z]{1,3}"
    r"|[a-z]{1,5}-\d[a-z0-9]{0,20})(?:-[a-z0-9]{1,12}){0,3}(?![a-z\d])"
)
_BOUND = r"under|below|less than|up to|cheaper than|over|above|more than|at least|around|about"
_MONEY = "dollars|dollar|usd|euros|euro|eur|bucks|gbp|yuan|元"
_PRICE = re.compile(
    rf"(?<![a-z\d.])(?:(?:(?:{_BOUND}) )?(?:[$€£¥] ?{_NUMBER}|{_NUMBER} ?(?:{_MONEY}))"
    rf"|(?:{_BOUND}) {_NUMBER}(?![ -]?(?:{_UNIT})(?![a-z\d])))(?![a-z\d])"
)


def _measure_value(surface: str) -> str:
    parts = [
        f"{number} {_UNIT_OF[unit]}" if unit else number
        for number, unit in _MEASURE_PARTS.findall(surface)
    ]
    return " x ".join(parts)


def _verbatim(surface: str) -> str:
    return surface


class Pattern(NamedTuple):
    """A type recognised by form: `value` turns a matched surface into its canonical value."""

    type: AttributeType
    expression: re.Pattern[str]
    value: Callable[[str], str]


# All of them need a digit, so texts without one skip them.
PATTERNS: tuple[Pattern, ...] = (
    Pattern(AttributeType.SPECIFICATIONS, _SPECIFICATION, _measure_value),
    Pattern(AttributeType.PRICE, _PRICE, _verbatim),
    Pattern(AttributeType.MODEL, _MODEL, _verbatim),
)


def joins(character: str) -> bool:
    """Letters, digits and marks hold a word together, unless their script has no spaces."""
    if character.isascii():
        return character.isalnum()
    if (
        "\u2e80" <= character <= "\ua4cf"  # CJK, kana, bopomofo, Yi
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003ffff"
        or "\u0e00" <= character <= "\u0eff"  # Thai, Lao
        or "\u1000" <= character <= "\u109f"  # Myanmar
        or "\u1780" <= character <= "\u17ff"  # Khmer
    ):
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")
