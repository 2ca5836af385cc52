"""What a run or search would take, before it is started: the answer to ``--dry-run``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from raymed.cluster.prices import Prices
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.job import Outcome
from raymed.language import reworded, say
from raymed.tracking.address import check_reachable
from raymed.training.engine import division
from raymed.training.fit import Resources
from raymed.training.host_copy import page_locked_copies
from raymed.training.rehearsal import Rehearsal, activation_bytes, first_batch, rehearse
from raymed.training.spec import RunSpec
from raymed.training.zero import check_offload
from raymed.tuning import card_share, room
from raymed.tuning.refit import SPLITS, cost_of_epochs
from raymed.tuning.search import Search

MEASURED_PARAMETERS = 100e6  # a larger model is not tried out on CPUs, but its activations are counted
PATIENCE = 60.0  # seconds for that


def describe(search: Search) -> Outcome:
    """Check data, model, tracking address and resources, and say what the search would do and take.

    Raises:
        UserError: something of that does not fit.
    """
    spec, prepared = search.template, search.template.open_data()
    if found := spec.train.micro_batch == "auto":  # counted with the smallest that any network takes
        fewest = min(spec.train.norm_group, spec.train.global_batch)
        spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, micro_batch=fewest))
    check_reachable(search.tracking_uri)
    spec.folder.check_writable()
    each, fitting = room.trial_resources(search)
    if not each.gpus:
        check_offload(spec.train, torch.device("cpu"))
    concurrent = min(fitting, search.budget.trials)
    workers = str(each.workers)
    if each.min_workers < each.workers:
        workers = say("{fewest} to {most}", fewest=each.min_workers, most=each.workers)
    plan = spec.plan(prepared, 0)
    records, noun = plan.rows, say(spec.sampling.noun)
    module = spec.recipe.build()
    if spec.start is not None:
        spec.start.load_into(module)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    state = state_bytes(parameters, trained, spec.train.zero_stage, each.workers)
    state += 4.0 * trained / each.workers if spec.train.ema else 0.0  # the averaged weights, shared out like the moments
    frozen = sum(each.numel() * each.element_size() for each in module.parameters() if not each.requires_grad)
    kept = frozen + (20.0 if spec.train.ema else 16.0) * trained  # weights, the optimizer's own, its moments, averages
    validation = len(spec.rows(prepared, "val"))
    for count in (each.min_workers, each.workers):
        divided = division(spec.recipe, module, spec.train, count)
    _, busy = divided.balance(plan.batches)
    lines = [
        say(
            "data       {records} train {noun} of {patients} patients an epoch, {validation} val {noun} of {others}; digest "
            "{digest}",
            records=records,
            noun=noun,
            patients=_patients(prepared, spec, "train"),
            validation=validation,
            others=_patients(prepared, spec, "val"),
            digest=prepared.digest,
        ),
        *_classes(spec, prepared),
        *(
            say("           left out: {count} {reason}", count=count, reason=reworded(reason))
            for reason, count in plan.left_out.items()
            if count
        ),
        say("plan       {steps} steps an epoch of {batch}", steps=len(plan.batches), batch=spec.train.global_batch)
        + (
            say(", at most {steps} steps", steps=spec.train.steps)
            if spec.train.steps
            else say(", at most {epochs} epochs", epochs=spec.train.epochs)
        )
        + (say("; validated every {steps} steps", steps=spec.train.validate_steps) if spec.train.validate_steps else ""),
        *(f"           {line}" for line in (room.idle_workers(search, each), room.workers_apart(each)) if line),
        *([say("           workers are busy {busy:.0%} of the time", busy=busy)] if busy < 0.995 else []),
        say(
            "model      {parameters:.1f} M parameters, {trained:.1f} M trained; weights, gradients and optimizer "
            "{state:.2f} GiB a worker under ZeRO {stage}",
            parameters=parameters / 1e6,
            trained=trained / 1e6,
            state=state / 2**30,
            stage=spec.train.zero_stage,
        ),
        say("checkpoint about {size:.2f} GiB each, frozen weights among them", size=kept / 2**30),
        say("resources  {runs} at once, each {workers} x {cpus} CPU", runs=concurrent, workers=workers, cpus=each.cpus)
        + (f" + {each.gpus:g} GPU" if each.gpus else ""),
        *([f"           {shared}"] if (shared := card_share.line(search)) else []),
        say("runs       {runs}", runs=", ".join(search.runs))
        if search.runs
        else say(
            "search     {trials} trials over {settings}",
            trials=search.budget.trials,
            settings=", ".join(search.defaults) or say("no settings"),
        )
        + (f"; {search.budget.plan}" if search.budget.end else ""),
        *([f"           {later}"] if (later := search.later_rung(search.warm_up)) else []),
    ]
    rehearsal = None
    if torch.cuda.is_available() if each.gpus else parameters <= MEASURED_PARAMETERS:
        rehearsal = _rehearse(spec, prepared, module, each)
        activations: int | None = rehearsal.activations
    else:
        activations = _activations(spec, prepared, module, each.gpus > 0)
    lines.append(_memory(spec, activations, rehearsal))
    if found:
        lines.append(say("           how many at once fit is tried when a run begins"))
    if each.gpus:
        lines.append(
            say(
                "           a checkpoint's copies take {size:.2f} GiB of the machine's memory, page-locked in powers of two",
                size=_copies(spec, module, each.workers) / 2**30,
            )
        )
    seconds = rehearsal.seconds / rehearsal.records if rehearsal else None
    if seconds is None:
        lines.append(say("time       not estimated here: the first epoch of the first trial will tell"))
    else:
        epoch = (records + validation / 3) * seconds / each.workers
        validations = -(-spec.length(prepared) // (spec.train.validate_steps or 1))
        passes = spec.total_steps(prepared) / len(plan.batches)
        whole = (passes * records + validations * validation / 3) * seconds / each.workers
        lines.append(
            say(
                "time       about {each:.1f} ms a {noun}, {epoch:.0f} s an epoch, {trial:.1f} min a trial that is not "
                "stopped early, at most {whole:.0f} min for all",
                each=seconds * 1000,
                noun=say(spec.sampling.noun[:-1]),
                epoch=epoch,
                trial=whole / 60,
                whole=whole * math.ceil(search.budget.trials / concurrent) / 60,
            )
        )
        if splits := SPLITS.get(search.budget.refit):
            again = whole * cost_of_epochs(search, search.template, splits)
            lines.append(
                say("           and at most {minutes:.0f} min for the refit", minutes=again / 60)
                + (say(", without each of {folds} folds too", folds=prepared.folds) if prepared.folds else "")
            )
    if (prices := Prices.stated()) and each.gpus:
        cost = prices.of(math.ceil(each.workers * concurrent * each.gpus), search.budget.seconds_left / 3600)
        lines.append(say("cost       {cost}, and the storage", cost=cost))
    lines.append(
        say(
            "nothing was started; it would be recorded at {tracking} and lie in {folder}",
            tracking=search.tracking_uri,
            folder=spec.folder.uri,
        )
    )
    data: dict[str, Any] = {
        "steps_per_epoch": len(plan.batches),
        "steps": spec.total_steps(prepared),
        "records": records,
        "parameters": parameters,
        "concurrent": concurrent,
    }
    data |= {"seconds_per_record": seconds, "state_bytes": state, "activation_bytes": activations, "name": search.name}
    data["checkpoint_bytes"] = kept
    return Outcome("\n".join(lines), data)


def state_bytes(parameters: int, trained: int, stage: int, workers: int) -> float:
    """Bytes of weights, gradients and AdamW's state on each worker, in fp32: 4 each, and 8 for the two moments.

    ZeRO 1 shares out the optimizer's state, 2 the gradients too, 3 the weights too (Rajbhandari et al. 2020, section 5).
    """
    weights, gradients, moments = 4.0 * parameters, 4.0 * trained, 8.0 * trained
    return weights / (workers if stage == 3 else 1) + gradients / (workers if stage >= 2 else 1) + moments / workers


def _copies(spec: RunSpec, module: torch.nn.Module, workers: int) -> int:
    """Bytes of a checkpoint's copies on the machine of the first worker."""
    groups = [sum(each.numel() for each in group.parameters) for group in spec.recipe.groups(module)]
    width = 2 if spec.train.precision in ("auto", "bf16") else 4
    frozen = sum(each.numel() * width for each in module.parameters() if not each.requires_grad)
    return page_locked_copies(groups, frozen, width, workers)


def _classes(spec: RunSpec, prepared: Prepared) -> list[str]:
    """A line with the patients of each class that are trained and validated on; none where there are no classes."""
    if not prepared.labels.names:
        return []
    used = spec.usage(prepared).patients
    counts = ", ".join(
        f"{name} {splits.get('train', 0)} + {splits.get('val', 0)}" for name, splits in prepared.labels.told(used).items()
    )
    return [say("           by class, train + val: {counts}", counts=counts)]


def _patients(prepared: Prepared, spec: RunSpec, split: str) -> int:
    return len(set(prepared.columns(spec.rows(prepared, split), ["patient"])["patient"]))


def _memory(spec: RunSpec, activations: int | None, rehearsal: Rehearsal | None) -> str:
    if activations is None:
        return say(
            "memory     activations not counted: a forward pass takes longer than {seconds:.0f} s on this machine",
            seconds=PATIENCE,
        )
    whole = say(
        "memory     {activations:.2f} GiB of activations besides, at {count} {noun} at once",
        activations=activations / 2**30,
        count=spec.train.packs_at_once,
        noun=say(spec.sampling.noun),
    )
    if rehearsal is None or rehearsal.peak is None:
        return whole
    return whole + say("; this GPU held {peak:.2f} GiB at most, with weights and gradients", peak=rehearsal.peak / 2**30)


def _activations(spec: RunSpec, prepared: Prepared, module: torch.nn.Module, gpu: bool) -> int | None:
    """Of a micro-batch of a run for other machines; of bf16, in which GPUs compute, half as many. None where counting them
    takes too long here."""
    try:
        counted = activation_bytes(spec, module, first_batch(spec, prepared), PATIENCE)
    except TimeoutError:
        return None
    return counted // 2 if gpu and spec.train.precision != "fp32" else counted


def _rehearse(spec: RunSpec, prepared: Prepared, module: torch.nn.Module, each: Resources) -> Rehearsal:
    """In this process, on as many threads as a worker has.

    Raises:
        UserError: the GPU's memory does not suffice.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(each.cpus)
    try:
        return rehearse(spec, prepared, module, torch.device("cuda" if each.gpus else "cpu"))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a micro-batch of {spec.train.packs_at_once} {spec.sampling.noun} does not fit into this GPU beside what it "
            f"holds already ({error}): lower train.micro_batch first, which changes no result but memory and time"
        ) from error
    finally:
        torch.set_num_threads(threads)
