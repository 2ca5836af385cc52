"""From a trial to a model that others can use: assessed, registered under an alias, with its card.

Whoever picks the trial, the search or a person in the MLflow UI, it goes through the same steps. Doing it again for the
same trial finds the version that is there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from raymed.data.prepared import Prepared
from raymed.language import in_english
from raymed.recipes.exported import read_recipe
from raymed.registry.alias import against, alias_of, give_alias
from raymed.registry.assessment import Assessment, AssessmentSettings, CardFacts
from raymed.registry.candidate import CHECKPOINT, Candidate, Refit
from raymed.registry.logged_model import LoggedModel, log_model, name_version
from raymed.tracking.refusals import is_permanent
from raymed.tracking.tracker import USED, Tracker

KEY = "raymed.key"
TEST_PATIENTS = "raymed.test_patients"  # a tag: digest of the test patients that a run was judged on


@dataclass(frozen=True, eq=False)
class Registered:
    """A model version.

    Attributes:
        name: of the registered model.
        version: its number.
        uri: what to give to --model: its alias or, without one, its number.
        assessment: how good it is.
        facts: what its card says besides.
        card: its card, as Markdown.
    """

    name: str
    version: str
    uri: str
    assessment: Assessment
    facts: CardFacts
    card: str


def assess_and_register(
    tracker: Tracker,
    candidate: Candidate,
    alias: str | None = None,
    refit: Refit | None = None,
    licence: str = "",
    how: AssessmentSettings | None = None,
    seen: str | None = None,
    found_by: str = "",
) -> Registered:
    """Assess a candidate, log its figures, register its network (or its refit's) and give it the alias.

    Args:
        alias: None for `champion`, and for none where a limit left patients out of training.
        seen: the version that the alias named before, see `seen_version`: where it names another one by now, it stays so.
        found_by: how it was chosen, a sentence for its card.

    Raises:
        UserError: the checkpoint or the data are not there any more, or leak.
    """
    prepared = candidate.open_data()
    with tempfile.TemporaryDirectory() as temporary:
        network = candidate.fetch(candidate.checkpoint, Path(temporary) / "judged" / "model")
        recipe = read_recipe(network)
        assessment = recipe.assess(candidate, network, prepared, how or AssessmentSettings())
        name, key = f"raymed-{recipe.name}", _key(candidate, refit, prepared)
        facts = CardFacts(
            name=f"{name}-{key}",
            found_by=found_by,
            settings=recipe.settings(),
            used=tracker.describe(candidate.run_id).tags.get(USED, ""),
            refit=refit,
            licence=licence,
            looks=count_look(tracker, candidate.run_id, assessment.test_ids),
        )
        with in_english():
            card = assessment.card(facts)
        number = _version(tracker, name, key)
        if number is None:
            if refit is not None:
                network = candidate.fetch(refit.checkpoint, Path(temporary) / "refitted" / "model")
            tracker.text(candidate.run_id, card, "card.md")
            assessment.log(tracker)
            artefact = assessment.artefact(facts, network, Path(temporary) / "registered")
            figures = {} if refit else assessment.figures()
            logged = log_model(tracker, candidate.run_id, artefact, key, name, figures)
            tags = assessment.tags() | {CHECKPOINT: candidate.checkpoint}
            tags |= {"figures_of": "before_refit"} if refit else {}
            number = _create_version(tracker, name, key, candidate.run_id, logged, tags, card)
        elif licence:
            tracker.client.update_model_version(name, number, card)
            tracker.text(candidate.run_id, card, "card.md")
        name_version(tracker, candidate.run_id, key, name, number)
    why_not = against(tracker, candidate, assessment, name, number, alias_of(candidate, alias))
    uri = give_alias(tracker, candidate, name, number, alias, seen, why_not)
    return Registered(name, number, uri, assessment, facts, card)


def _key(candidate: Candidate, refit: Refit | None, prepared: Prepared) -> str:
    usual = {"folds": 0, "trained_here": True}  # which earlier versions did not name
    deciding = {name: value for name, value in asdict(candidate).items() if name not in usual or value != usual[name]}
    described = json.dumps([deciding, refit and asdict(refit), prepared.digest])
    return hashlib.blake2b(described.encode(), digest_size=4).hexdigest()


def _version(tracker: Tracker, name: str, key: str) -> str | None:
    """The one of a key. MLflow's client repeats a creation whose answer was lost, and makes two: one is kept, that which
    an alias names or else the first, and others go unless an alias names them."""
    found = tracker.client.search_model_versions(f"name = '{name}'")
    same = sorted((each for each in found if each.tags.get(KEY) == key), key=lambda each: int(each.version))
    numbers = [str(each.version) for each in same]
    if not numbers[1:]:
        return numbers[0] if numbers else None
    named = {str(each) for each in tracker.client.get_registered_model(name).aliases.values()}
    kept = next((number for number in numbers if number in named), numbers[0])
    for twin in {*numbers} - named - {kept}:
        tracker.client.delete_model_version(name, twin)
    return kept


def _create_version(
    tracker: Tracker, name: str, key: str, run_id: str, logged: LoggedModel, says: Mapping[str, str], text: str
) -> str:
    client, run = tracker.client, tracker.describe(run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {KEY: key, "raymed.run": run.id, "raymed.run_name": run.name, **says}
    try:
        client.create_model_version(name, logged.uri, run.id, tags=tags, description=text, model_id=logged.id)
    except MlflowException as error:
        if is_permanent(error) or _version(tracker, name, key) is None:
            raise  # else the answer was lost, and not the version
    return str(_version(tracker, name, key))


def count_look(tracker: Tracker, run_id: str, test_ids: Sequence[str], registers: bool = True) -> int:
    """Note that a run's model was judged on these test patients; returns how many were so far.

    Args:
        registers: on those of its own data, which it is registered with; else on any.
    """
    if not test_ids:
        return 0
    digest = hashlib.blake2b("\0".join(test_ids).encode(), digest_size=8).hexdigest()
    others = f"{TEST_PATIENTS}.{digest}"  # a run may be judged on several
    tracker.tags(run_id, {TEST_PATIENTS: digest} if registers else {others: "judged"})
    return len({run.id for run in (*tracker.tagged(TEST_PATIENTS, digest), *tracker.tagged(others))})
