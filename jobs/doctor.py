"""What is here, what is missing, what that means, and what to do.

python jobs/doctor.py
python jobs/doctor.py --model.path InternVL2_5-1B --data PREPARED
python jobs/doctor.py --cluster cluster.yaml                    # before `ray up`: nothing is paid for yet
python jobs/doctor.py --cluster cluster.slurm                   # before `sbatch`: nothing waits in line yet
python jobs/doctor.py --data PREPARED --bundle support.zip      # to send when asking for help; holds no patient data
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from raymed.data.labels import LabelTable
from raymed.doctor import allocation, checks
from raymed.doctor.finding import Finding
from raymed.doctor.support_bundle import write_bundle
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, command, run
from raymed.language import say
from raymed.models.settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class Doctor(JobOptions):
    """Options of the doctor.

    Attributes:
        model: A network to build, with all its weights, when its path is given.
        size: Side of the pictures that the network is to take, in pixels.
        labels: Label table: a YAML file, or the name of a packaged one.
        data: Folder or URI of prepared data to check.
        cluster: Cluster file to look at before `ray up`, in place of this machine, for which it writes the archive that
            machines install; or batch file to look at before `sbatch`.
        bundle: Zip file to write for support; without patient ids, pictures or messages that could hold them.
        command: The command that went wrong, for the bundle.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    size: int = 448
    labels: str = "lung"
    data: str | None = None
    cluster: str = ""
    bundle: str | None = None
    command: str = ""


def main(options: Doctor) -> Outcome:
    if options.cluster and allocation.is_batch_file(Path(options.cluster)):
        return _outcome(list(allocation.look(Path(options.cluster))), [])
    if options.cluster:
        from raymed.doctor.preflight import preflight  # with AWS's library, which takes long to import

        return _outcome(list(preflight(Path(options.cluster), options.dry_run)), [])
    findings = [*checks.machine(), *checks.ray_cluster(), *checks.storage(options.folder)]
    try:
        address = options.tracking
        findings.append(checks.tracking(address))
    except UserError as error:  # remote storage, and no address given
        address = None
        findings.append(Finding("MLflow", "wrong", str(error)))
    if options.model.path:
        findings += checks.model(options.model, LabelTable.open(options.labels), options.size)
    if options.data:
        findings += checks.data(options.data)
    notes = []
    if options.bundle and not options.dry_run:
        write_bundle(Path(options.bundle), findings, options.command or command(), options.data, address)
        notes.append(f"support bundle: {Path(options.bundle).resolve()} (look into it before you send it)")
    return _outcome(findings, notes)


def _outcome(findings: list[Finding], notes: list[str]) -> Outcome:
    wrong = [each.subject for each in findings if each.state == "wrong"]
    lines = [*map(str, findings), *notes]
    lines.append(say("to mend: {wrong}", wrong=", ".join(map(say, wrong))) if wrong else say("ready"))
    data = {"ready": not wrong, "findings": [asdict(each) for each in findings]}
    return Outcome("\n".join(lines), data, 2 if wrong else 0)


if __name__ == "__main__":
    run(Doctor, main)
