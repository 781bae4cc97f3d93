"""What is done in a round, step by step.

    check     does the batch look like what people do?         no: refused, nothing is trained
    build     its dataset: base + accepted rounds + batch
    train     from the champion's checkpoint
    compare   champion and challenger on held-out searches     worse: refused, champion stays
    publish   register, name, announce

Each step reads what the one before left on disk and may be done twice: writing replaces, training
goes on from its state, publishing the same pair changes nothing, and a promotion that is in the
history is not made again.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from index import artifact
from index.dataset import SPLITS, Dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.registry.canary import start_canary
from models.registry.promotion import challenge, promote
from models.registry.publication import publish
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance, Registry
from models.training.challenge import Comparison, compare, held_out_searches
from models.training.gate import judge_batch, judge_challenger
from models.training.keyword_table import read_keywords
from models.training.loop import Progress
from server.sidecar import training
from server.sidecar.batch import Batch, joined, read_table, write_table
from server.sidecar.batch_facts import facts_of, usual_click_rate
from server.sidecar.extension import extend
from server.sidecar.rounds import Round, Rounds, Step
from server.sidecar.settings import SidecarSettings

WHO = "sidecar"
ROWS, SIDES = "rows.parquet", "splits.parquet"
KEYWORDS, COMPARISON = "keywords.parquet", "comparison.json"


@dataclass(frozen=True, slots=True)
class Work:
    """The steps. `alive` raises when the work must stop; `show` hears of training's progress."""

    rounds: Rounds
    registry: Registry
    base: Path
    settings: SidecarSettings
    alive: Callable[[], None]
    show: Callable[[str, Progress], None]

    def step(self, one: Round) -> Round:
        """The round after its next step; not written yet. Blocks, for minutes when it trains.

        Raises what the step raises: OnesearchError, and what `alive` raises.
        """
        self.alive()
        steps: dict[Step, Callable[[Round], Round]] = {
            "check": self._check,
            "build": self._build,
            "train": self._train,
            "compare": self._compare,
            "publish": self._publish,
        }
        return steps[one.step](one)

    def _check(self, one: Round) -> Round:
        folder = self.rounds.path(one.number)
        batch = joined(Batch.read(folder, one.until))
        usual = usual_click_rate([other.facts["batch"] for other in self.rounds.accepted()])
        facts = facts_of(batch, Dataset.open(self.base), usual)
        verdict = judge_batch(facts, self.settings.gate)
        told = {"batch": asdict(facts), "batch_verdict": verdict.to_json()}
        if not verdict.passed:
            return one.ended("refused", tuple(verdict.reasons), **told)
        write_table(folder / ROWS, batch.rows)
        return one.at("build", **told)

    def _build(self, one: Round) -> Round:
        folder = self.rounds.path(one.number)
        record = self.registry.record(one.champion)
        snapshot = Snapshot.open(self.registry.paths(record)[0])
        base = Dataset.open(self.base)
        accepted = self.rounds.accepted()
        known, moved = base.split_of(), frozenset[str]()
        for other in accepted:
            known |= sides_read(self.rounds.path(other.number) / SIDES)
            moved |= frozenset(other.facts["moved"])
        kept = [other.number for other in accepted[-self.settings.kept_rounds :]]
        behaviour = [read_table(self.rounds.path(n) / ROWS) for n in (*kept, one.number)]
        made_up = [other.facts["batch"]["simulated"] for other in (*accepted, one)]
        dataset = extend(
            folder / "dataset",
            base,
            snapshot,
            behaviour,
            known,
            moved,
            simulated=any(made_up),
        )
        write_table(folder / SIDES, dataset.splits)
        return one.at(
            "train",
            dataset=dataset.version,
            moved=dataset.manifest["moved"],
            held_out=held_out_count(read_table(folder / ROWS), dataset.split_of()),
            events=dataset.events.num_rows,
        )

    def _train(self, one: Round) -> Round:
        folder = self.rounds.path(one.number)
        snapshot, checkpoint = self.registry.paths(self.registry.record(one.champion))
        keywords = folder / KEYWORDS
        started = time.monotonic()

        def report(stage: str, progress: Progress) -> None:
            self.alive()
            self.show(stage, progress)

        trained = training.train(
            folder,
            Dataset.open(folder / "dataset"),
            Snapshot.open(snapshot),
            checkpoint,
            read_keywords(keywords) if keywords.is_file() else None,
            self.settings,
            report,
        )
        return one.at(
            "compare",
            checkpoint=trained.version,
            training=dict(trained.metrics),
            training_s=round(time.monotonic() - started, 1),
            trained_from=one.champion,
        )

    def _compare(self, one: Round) -> Round:
        """Against whoever is champion now."""
        one = replace(one, champion=self.registry.aliases().champion or one.champion)
        record = self.registry.record(one.champion)
        opened = Checkpoint.open(self.registry.paths(record)[1])
        challenger = Checkpoint.open(self._challenger(one))
        if opened.settings.codec_id != challenger.settings.codec_id:
            return one.ended("superseded", (f"champion {one.champion} is of another codec",))
        folder = self.rounds.path(one.number)
        dataset = Dataset.open(folder / "dataset")
        sessions = read_table(folder / ROWS).column("session_id").to_pylist()
        searches = held_out_searches(
            dataset,
            frozenset(sessions),
            frozenset(dataset.manifest["moved"]),
            seed=self.settings.seed,
        )
        # That of the training: the dataset's rows are its items, whatever was compacted since.
        trained_from = self.registry.record(one.facts["trained_from"])
        comparison = compare(
            Snapshot.open(self.registry.paths(trained_from)[0]),
            opened,
            challenger,
            searches,
            self.settings.beam_width,
            seed=self.settings.seed,
            alive=self.alive,
        )
        artifact.write_file(folder / COMPARISON, orjson.dumps(comparison.to_json()))
        verdict = judge_challenger(comparison, self.settings.gate)
        told = {"verdict": verdict.to_json(), "gain": gain_of(comparison, self.settings)}
        if not verdict.passed:
            return one.ended("refused", tuple(verdict.reasons), **told)
        return one.at("publish", **told)

    def _publish(self, one: Round) -> Round:
        gain = one.facts["gain"]
        why = f"round {one.number}: {gain['metric']} {gain['mean']:+.3f}"
        by = Provenance(WHO, why)
        champion = self.registry.record(one.champion)
        if self.registry.aliases().champion != one.champion and not self._was_named(one):
            # Somebody promoted another one meanwhile: it has to be better than that one.
            return one.at("compare")
        metrics = {"sidecar": {"round": one.number, **gain}}
        published = publish(
            self.registry,
            champion.pairing.snapshot,
            self._challenger(one),
            parents=(one.champion,),
            metrics=metrics,
            by=by,
        ).record
        self.alive()
        notes = self._name(one, published, by)
        return replace(
            one.ended("published"),
            generation=published.version,
            notes=(*one.notes, *notes),
        )

    def _name(self, one: Round, published: GenerationRecord, by: Provenance) -> tuple[str, ...]:
        """Give the generation its alias, once; what stands against it is a note."""
        settings, version, state = self.settings, published.version, self.registry.aliases()
        if settings.publish_as == "nothing" or self._was_named(one):
            return ()
        if state.canary is not None:
            return (f"canary {state.canary.experiment} is running; {version} has no alias",)
        beside = state.challenger
        if settings.publish_as != "champion" and beside not in (None, version):
            who = self.registry.record(beside).who
            if who != WHO:
                return (f"challenger {beside} is {who}'s; {version} has no alias",)
        if settings.publish_as == "champion":
            promote(self.registry, version, expected=one.champion, by=by)
        elif settings.publish_as == "canary":
            share = settings.canary_share
            start_canary(self.registry, version, share, expected=one.champion, by=by)
        else:
            challenge(self.registry, version, expected=beside, by=by)
        return ()

    def _was_named(self, one: Round) -> bool:
        """Whether the aliases ever named this round's checkpoint: who was cut off behind that does
        not do it again, and what was taken back since stays so."""
        named = {version for state in self.registry.history() for version in state.named().values()}
        records, _ = self.registry.records()
        return any(
            record.version in named and record.pairing.checkpoint == one.facts["checkpoint"]
            for record in records
        )

    def _challenger(self, one: Round) -> Path:
        return self.rounds.path(one.number) / self.settings.stages[-1]


def gain_of(comparison: Comparison, settings: SidecarSettings) -> dict[str, Any]:
    """The headline: the gate's metric over held-out searches, before and after."""
    metric, group = settings.gate.metric, comparison.groups["held out"]
    difference = group.differences[metric]
    return {
        "metric": metric,
        "champion": group.champion[metric],
        "challenger": group.challenger[metric],
        **asdict(difference),
        "searches": group.searches,
    }


def sides_read(path: Path) -> dict[str, str]:
    """query → side, as a round knew them. Raises ArtifactError."""
    table = read_table(path).cast(SPLITS)
    columns = (table.column(name).to_pylist() for name in ("query", "split"))
    return dict(zip(*columns, strict=True))


def held_out_count(rows: pa.Table, sides: Mapping[str, str]) -> int:
    """Searches of joined rows that ended in a choice and are not trained on."""
    chosen = rows.filter(pc.not_equal(rows.column("kind"), "impression"))
    pairs = zip(
        chosen.column("session_id").to_pylist(), chosen.column("query").to_pylist(), strict=True
    )
    return len({pair for pair in pairs if pair[1] and sides.get(pair[1], "train") != "train"})
