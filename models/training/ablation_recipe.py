"""What an ablation trains and what it compares: a tree of trainings, and rows over it.

A *node* is one training: it starts from nothing or from its parent's weights, and differs from the
stage's settings by `changes`. A *row* serves the weights of a node, without keywords in the prompt
or with them, and is compared with the rows of `against`. Rows share nodes, so every distinct
training happens once for each seed.

Two rows that are compared have seen equally many examples (searches, where they align), or one of
them is a control: what the same number of further examples is worth without any component.

    v1 ─ v1-more                       V1, then plain training to the end of V2-Full's budget
    cot                                + keyword tasks
    keyword-prompts                    + keywords in half of the training prompts
    ├─ keyword-prompts-more            the same, longer: V2-RAG, served with keywords
    ├─ continued                       plain cross-entropy on students: control of distillation
    └─ self-distillation, r-drop, fgm, focal       each with all before it; focal is V2-Reason
       └─ focal ─ chosen               cross-entropy on what was chosen: control of alignment
                ─ grpo, tpma           alignment
    user-sid ─ user-sid-focal ─ full   V2-Full: the whole recipe with user SIDs in its prompts

METHOD §3, §5–§7; the published last row, "V2 full", does not say what it adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from index.errors import ConfigError
from models.prompt import PromptSettings
from models.training.align import AlignSettings
from models.training.curriculum import Mixture
from models.training.distill import DistillSettings
from models.training.run_sft import SERVING_PROMPT
from models.training.sft import SftSettings

Stage = Literal["sft", "continue", "distill", "align"]
Settings = SftSettings | DistillSettings | AlignSettings

SAVE_EVERY_S = 15.0
# So much that the policy's term is a thousandth of the loss: cross-entropy and nothing else.
ANCHOR_ALONE = 1000.0


@dataclass(frozen=True, slots=True)
class Node:
    """One training. `keywords`: whether fine-tuning reads the keyword file; `mixture`: what differs
    of the curriculum's shares; `user_sid`: prompts begin with the user's SIDs."""

    name: str
    stage: Stage
    parent: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mixture: Mapping[str, Any] = field(default_factory=dict[str, Any])
    keywords: bool = True
    user_sid: bool = False

    @property
    def prompt(self) -> PromptSettings:
        return replace(SERVING_PROMPT, user_sid=self.user_sid)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a node's weights, served without keywords or with them. `published`:
    HR@10 and MRR@10 for orders, then for clicks, of the published table, on other data."""

    name: str
    title: str
    node: str
    against: tuple[str, ...] = ()
    with_keywords: bool = False
    published: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Settings of each stage before a node's changes, and how much is measured.

    `continued`: fine-tuning that goes on, stage 3 only; as many examples as `distill`.
    `pseudo_queries`: of the keyword file. Visits: seeded samples of at most so many.
    """

    sft: SftSettings
    continued: SftSettings
    distill: DistillSettings
    align: AlignSettings
    pseudo_queries: int
    validation_visits: int
    test_visits: int
    beam_width: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Nodes, parents first, and rows, in the order of the table."""

    name: str
    nodes: tuple[Node, ...]
    rows: tuple[Row, ...]
    sizes: Sizes

    def __post_init__(self) -> None:
        known: set[str] = set()
        for node in self.nodes:
            if node.name in known or (node.parent is not None and node.parent not in known):
                raise ConfigError(f"recipe {self.name}: node {node.name!r} is out of order")
            known.add(node.name)
        rows = [row.name for row in self.rows]
        for row in self.rows:
            missing = [name for name in row.against if name not in rows]
            if row.node not in known or missing or rows.count(row.name) > 1:
                raise ConfigError(f"recipe {self.name}: row {row.name!r} does not fit")

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def rows_named(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of these names, all for none. Raises ConfigError for an unknown one."""
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise ConfigError(f"no row {name!r}; recipe {self.name} has {', '.join(known)}")
        return tuple(row for row in self.rows if not names or row.name in names)

    def ancestry(self, name: str) -> tuple[Node, ...]:
        """A node and what it starts from, the first one first."""
        node = self.node(name)
        return (*(self.ancestry(node.parent) if node.parent else ()), node)

    def settings_of(self, node: Node, seed: int) -> Settings:
        """The settings a node is trained with."""
        base: Settings = {
            "sft": self.sizes.sft,
            "continue": self.sizes.continued,
            "distill": self.sizes.distill,
            "align": self.sizes.align,
        }[node.stage]
        changes: dict[str, Any] = {**node.changes, "seed": seed, "save_every_s": SAVE_EVERY_S}
        if not isinstance(base, AlignSettings):
            changes["mixture"] = replace(base.mixture, **node.mixture)
        return replace(base, **changes)


NO_THOUGHTS: Mapping[str, Any] = {"thought_tasks": (), "keyword_share": 0.0}
# Self-distillation and what is added to it, each with all before it.
PLAIN: Mapping[str, Any] = {
    "kl_weight": 0.0,
    "r_drop_weight": 0.0,
    "dropout": 0.0,
    "adversarial_epsilon": 0.0,
    "focal": False,
}
DISTILLED: Mapping[str, Any] = {key: value for key, value in PLAIN.items() if key != "kl_weight"}
DROPPED: Mapping[str, Any] = {"adversarial_epsilon": 0.0, "focal": False}
PERTURBED: Mapping[str, Any] = {"focal": False}


# Order HR@10 and MRR@10, click HR@10 and MRR@10 (METHOD §7).
PUBLISHED: Mapping[str, tuple[float, float, float, float]] = {
    "v1": (0.2046, 0.0985, 0.2231, 0.0728),
    "cot": (0.2094, 0.1008, 0.2266, 0.0731),
    "self-distillation": (0.2163, 0.1017, 0.2398, 0.0757),
    "r-drop": (0.2168, 0.1045, 0.2398, 0.0760),
    "fgm": (0.2180, 0.1047, 0.2422, 0.0766),
    "focal": (0.2214, 0.1048, 0.2471, 0.0788),
    "grpo": (0.2248, 0.1106, 0.2481, 0.0798),
    "tpma": (0.2265, 0.1136, 0.2498, 0.0815),
    "full": (0.2314, 0.1151, 0.2568, 0.0833),
}


def v2(sizes: Sizes) -> Recipe:
    """The published order of additions, with controls of equal budget."""
    further = sizes.distill.examples + sizes.align.examples
    nodes = (
        Node("v1", "sft", keywords=False),
        Node("cot", "sft", mixture={"keyword_share": 0.0}),
        Node("keyword-prompts", "sft"),
        Node("continued", "distill", "keyword-prompts", PLAIN),
        Node("self-distillation", "distill", "keyword-prompts", DISTILLED),
        Node("r-drop", "distill", "keyword-prompts", DROPPED),
        Node("fgm", "distill", "keyword-prompts", PERTURBED),
        Node("focal", "distill", "keyword-prompts"),
        Node("chosen", "align", "focal", {"method": "grpo", "anchor_weight": ANCHOR_ALONE}),
        Node("grpo", "align", "focal", {"method": "grpo"}),
        Node("tpma", "align", "focal"),
        Node("keyword-prompts-more", "continue", "keyword-prompts"),
        Node("user-sid", "sft", user_sid=True),
        Node("user-sid-focal", "distill", "user-sid"),
        Node("full", "align", "user-sid-focal"),
        Node("v1-more", "continue", "v1", {"examples": further}, NO_THOUGHTS, keywords=False),
    )
    rows = (
        Row("v1", "V1", "v1"),
        Row("cot", "+ CoT tasks", "cot", ("v1",)),
        Row("keyword-prompts", "+ keywords in training prompts", "keyword-prompts", ("cot",)),
        Row("continued", "control: trained on, plain", "continued", ("keyword-prompts",)),
        Row("self-distillation", "+ self-distillation", "self-distillation", ("continued",)),
        Row("r-drop", "+ R-Drop", "r-drop", ("self-distillation",)),
        Row("fgm", "+ FGM", "fgm", ("r-drop",)),
        Row("focal", "+ focal", "focal", ("fgm",)),
        Row("chosen", "control: trained on what was chosen", "chosen", ("focal",)),
        Row("grpo", "+ GRPO", "grpo", ("chosen",)),
        Row("tpma", "+ TPMA", "tpma", ("grpo",)),
        Row("full", "V2-Full (+ user SIDs)", "full", ("tpma", "v1-more")),
        Row("v1-more", "control: V1, all of the budget", "v1-more", ("v1",)),
        Row("rag", "V2-RAG: keywords in the prompt", "keyword-prompts-more", ("continued",), True),
        Row("reason", "V2-Reason: distilled, no keywords", "focal", ("rag", "continued")),
        Row("reason-keywords", "V2-Reason, given keywords", "focal", ("reason",), True),
    )
    rows = tuple(replace(row, published=PUBLISHED.get(row.name)) for row in rows)
    return Recipe("v2", nodes, rows, sizes)


SFT_EXAMPLES = 192_000
DISTILL_EXAMPLES = 48_000
ALIGN_SEARCHES = 8_192
BATCH = 512


def full_sizes() -> Sizes:
    """Three seeds of two shops in three hours on two cores (docs/ablation.md)."""
    later = Mixture(pseudo_share=0.5, thought_tasks=(), stage_shares=(0.0, 0.0, 1.0))
    return Sizes(
        sft=SftSettings(examples=SFT_EXAMPLES, batch_examples=BATCH),
        # Its warm-up takes the whole of 100 steps, so this peak is reached in part, like distill's.
        continued=SftSettings(
            examples=DISTILL_EXAMPLES, batch_examples=BATCH, learning_rate=1e-3, mixture=later
        ),
        distill=DistillSettings(examples=DISTILL_EXAMPLES, batch_examples=BATCH),
        align=AlignSettings(examples=ALIGN_SEARCHES, evaluate_every=0),
        pseudo_queries=20_000,
        validation_visits=600,
        test_visits=1_500,
        beam_width=128,
    )


def quick_sizes() -> Sizes:
    """A smoke test of minutes: every node and row, no figure worth reading."""
    full = full_sizes()
    small: dict[str, Any] = {"batch_examples": 128, "chunk_examples": 1024}
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "layers": 1,
        "heads": 2,
        "key_heads": 1,
        "head_dim": 32,
        "inner_size": 128,
        "vocabulary_size": 1024,
    }
    return Sizes(
        sft=replace(full.sft, examples=1024, **small, **shape),
        continued=replace(full.continued, examples=512, **small),
        distill=replace(full.distill, examples=512, **small),
        align=replace(full.align, examples=64, batch_examples=32, group=4),
        pseudo_queries=200,
        validation_visits=60,
        test_visits=100,
        beam_width=32,
    )


def recipe_of(name: str, *, quick: bool = False) -> Recipe:
    """Raises ConfigError for an unknown name."""
    if name != "v2":
        raise ConfigError(f"no recipe {name!r}; there is v2")
    return replace(v2(quick_sizes()), name="v2, quick") if quick else v2(full_sizes())
