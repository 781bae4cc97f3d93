"""Home Depot product search relevance: a catalogue and graded judgments; no users, no events.

SOURCE is the folder with homedepot_catalogue.jsonl.gz and homedepot_dev_judgments.csv.gz. Titles
carry HTML entities; colours and materials are lists; grades are the mean of raters, 1 to 3.
"""

from __future__ import annotations

from pathlib import Path

from index.importers.generic import import_table
from index.importers.intake import Intake
from index.importers.mapping import Mapping, TableMapping

CATALOGUE = "homedepot_catalogue.jsonl.gz"
JUDGMENTS = "homedepot_dev_judgments.csv.gz"

_ITEMS = TableMapping({"item_id": "product_uid", "color": "colors", "material": "materials"})
_JUDGMENTS = TableMapping({"item_id": "product_uid", "query": "search_term", "grade": "relevance"})


def import_homedepot(source: Path, intake: Intake, _: Mapping) -> None:
    """Hand catalogue and judgments to the intake. Raises DataError for a missing file."""
    import_table("items", source / CATALOGUE, "jsonl", intake, _ITEMS)
    import_table("judgments", source / JUDGMENTS, "csv", intake, _JUDGMENTS)
