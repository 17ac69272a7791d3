"""``llmopt deploy``: from a recommendation to a written, checked and booted folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import llmopt
from llmopt import deploy as targets
from llmopt.core.errors import LlmoptError, UsageError
from llmopt.deploy import Target, limits
from llmopt.deploy.capacity import capacity
from llmopt.deploy.nginx import require_host_name
from llmopt.deploy.plan import (
    ALERTMANAGER_PORT,
    GRAFANA_PORT,
    MOST_REPLICAS,
    PROMETHEUS_PORT,
    Deployment,
    Engine,
    Evidence,
    File,
    Wishes,
)  # fmt: skip
from llmopt.deploy.templates import render
from llmopt.deploy.writing import (
    LABEL,
    ROLLBACK,
    SCHEMA,
    Former,
    fill,
    former_of,
    is_unchanged,
    require_unedited,
    rollback_script,
    write,
)
from llmopt.pipeline.deploy_engine import Subject, engine_of, subject_of
from llmopt.pipeline.deploy_proof import checked, proof_of, smoke_boot
from llmopt.pipeline.deploy_source import Asked, Chosen, evidence_of, read_source
from llmopt.pipeline.measuring import now, without_secret_arguments
from llmopt.pipeline.reporter import Reporter
from llmopt.report.deployment import readme

ONE_MACHINE = ("shell", "systemd", "compose")
WITHOUT_IMAGE = ("shell", "systemd", "rayserve")  # they run the engine that is installed
README, VERIFY = "README.md", "verify.sh"
PUBLISHED_BESIDE = (PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT)
REPLICAS = 2  # one may be lost, or updated, while the other answers


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for; ``wishes`` without a name has that of the folder's deployment, else of the label."""

    source: str
    asked: Asked
    wishes: Wishes
    out: Path
    artifact: Path | None = None
    force: bool = False
    boot: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before anything is started or written.

    ``replaces``: {name, target, stop} of another stack that the folder held, which goes on until it is stopped.
    """

    subject: Subject
    deployment: Deployment
    target: Target
    ties: tuple[str, ...]
    replaces: Mapping[str, str] | None = None


def plan(request: Request) -> Plan:
    """Raises LlmoptError for evidence that does not carry a deployment, UsageError for what the target cannot run."""
    target = targets.target(request.wishes.target)
    chosen = read_source(request.source, request.asked)
    evidence = evidence_of(chosen, request.asked)
    require_evidence(evidence, force=request.force)
    subject = subject_of(chosen, artifact=request.artifact)
    machine_gpus = len(chosen.machine.gpus)
    engine, doubts = engine_of(subject, folder=request.out.resolve(), gpus_of_machine=machine_gpus)
    former = former_of(request.out)
    wishes = completed(request.wishes, evidence, engine, machine_gpus, former)
    deployment = Deployment(
        engine=engine,
        evidence=evidence,
        wishes=wishes,
        capacity=capacity(evidence, wishes, shared_machine=wishes.target in ONE_MACHINE),
        llmopt_version=llmopt.__version__,
    )
    if deployment.replicas > MOST_REPLICAS:
        raise UsageError(
            f"{deployment.replicas} replicas are more than llmopt writes down", hint=f"--replicas up to {MOST_REPLICAS}"
        )
    doubts = (*subject.doubts, *(doubts if wishes.target not in WITHOUT_IMAGE else ()))
    found = (*target.doubts(deployment), *doubts_of(deployment, chosen, machine_gpus))
    deployment = replace(deployment, doubts=(*doubts, *found))
    if reason := target.refusal(deployment):
        raise UsageError(f"{wishes.target} cannot run {evidence.label}: {reason}", hint=others(deployment))
    return Plan(
        subject=subject,
        deployment=deployment,
        target=target,
        ties=chosen.ties,
        replaces=replaced(former, deployment.name, target.name),
    )


def replaced(former: Former | None, name: str, target: str) -> Mapping[str, str] | None:
    """What this one takes the place of without stopping it: another name makes other containers, units, another namespace.

    Remembered for as long as the name stays: whether it was stopped is not known here.
    """
    if former is None or former.name is None or former.target is None:
        return None
    if (former.name, former.target) == (name, target):
        there = former.document.get("replaces")
        whole = isinstance(there, dict) and all(isinstance(there.get(key), str) for key in ("name", "target", "stop"))
        return there if whole else None
    return {"name": former.name, "target": former.target, "stop": targets.stop_command(former.target, former.name)}


def require_evidence(evidence: Evidence, *, force: bool) -> None:
    if evidence.forced and not force:
        raise LlmoptError(
            f"{evidence.label} is not deployed: {'; '.join(evidence.forced)}",
            hint="measure it (llmopt bench, llmopt tune), or --force, which writes this into the README",
        )


def completed(
    wishes: Wishes, evidence: Evidence, engine: Engine, machine_gpus: int, former: Former | None = None
) -> Wishes:
    """With a name, and a number of replicas where neither that nor a load was given. Raises UsageError.

    The name is that of the deployment which lies in the folder: another would start a second stack beside it.
    """
    if wishes.name and not LABEL.fullmatch(wishes.name):
        raise UsageError(
            f"--name {wishes.name!r} is no name of a service",
            hint="lower-case letters, digits and -, at most 40, as in a domain",
        )
    if wishes.replicas is not None and wishes.load_rps is not None:
        raise UsageError("--replicas and --load are two ways to say one thing", hint="one of them")
    if wishes.domain is not None:
        require_host_name(wishes.domain)
    if wishes.rate_limit_rps is not None:
        limits.require_client_limit(wishes.rate_limit_rps)
    if wishes.autoscaler == "keda" and wishes.target != "kubernetes":
        raise UsageError(f"--autoscaler keda scales nothing by {wishes.target}", hint="--target kubernetes")
    if wishes.target == "compose" and wishes.monitoring and wishes.port in PUBLISHED_BESIDE:
        raise UsageError(
            f"--port {wishes.port} is that of a program of --monitoring", hint=f"another than {PUBLISHED_BESIDE}"
        )
    few = wishes.target in ONE_MACHINE and engine.gpus and machine_gpus < REPLICAS * engine.gpus
    usual = (1 if few else REPLICAS) if wishes.load_rps is None else None
    name = wishes.name or (former.name if former else None) or name_of(evidence.label)
    return replace(wishes, name=name, replicas=wishes.replicas or usual)


def name_of(label: str) -> str:
    """``gguf-q4_k_m on llamacpp`` → ``gguf-q4-k-m-on-llamacpp``."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower())[:40].strip("-") or "llm"


def doubts_of(deployment: Deployment, chosen: Chosen, machine_gpus: int) -> list[str]:
    evidence, engine = deployment.evidence, deployment.engine
    found = [f"its runs are {evidence.verdict}: {reason.message}" for reason in chosen.row.verdict.reasons]
    if evidence.evidence == "interpolated":
        found.append("its figures are interpolated between loads that were measured")
    if evidence.without_slo:
        found.append(
            f"it was judged by {', '.join(evidence.without_slo)} as well, which no SLO and no alert here keeps:"
            " an SLO bounds a percentile of what a request takes"
        )
    found += limits.doubts(deployment)
    wanted = engine.gpus * deployment.replicas
    if deployment.wishes.target in ONE_MACHINE and wanted > machine_gpus:
        found.append(
            f"{deployment.replicas} replicas want {wanted} GPUs, and the machine that measured has {machine_gpus}"
        )
    cores = chosen.machine.logical_cores
    if deployment.wishes.target in ONE_MACHINE and not engine.gpus and engine.threads and cores:
        busy = engine.threads * deployment.replicas
        if busy > cores:
            found.append(
                f"{deployment.replicas} replicas compute with {busy} threads, and the machine that measured has {cores} cores"
            )
    return found


def others(deployment: Deployment) -> str:
    """Targets that can run it."""
    able = [name for name in targets.TARGETS if targets.target(name).refusal(deployment) is None]
    return f"--target {' or '.join(able)}" if able else "another row: --rank N"


# --- files and document ---------------------------------------------------------------------------------------------


def document_of(made: Plan, *, boot: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``deployment.json`` without its files and its date: the whole evidence, and what was done with it."""
    deployment = made.deployment
    wishes, engine = deployment.wishes, deployment.engine
    return {
        "schema": SCHEMA,
        "name": deployment.name,
        **asdict(deployment.evidence),
        "ties": list(made.ties),
        "replaces": dict(made.replaces) if made.replaces else None,
        "engine": engine_document(engine),
        "capacity": asdict(deployment.capacity),
        "wishes": asdict(wishes),
        "url": made.target.url(deployment),
        "start": list(made.target.start(deployment)),
        "before": [{"command": list(words), "why": why} for words, why in made.target.before(deployment)],
        "after": [{"command": list(words), "why": why} for words, why in made.target.after(deployment)],
        "targets": [wishes.target],
        "secrets": made.target.secrets(deployment),
        "memory_limit_bytes": deployment.memory_limit_bytes if made.target.limits_memory else None,
        "doubts": list(deployment.doubts),
        "boot": dict(boot),
        "checks": [dict(check) for check in checks],
        "llmopt_version": deployment.llmopt_version,
    }


def engine_document(engine: Engine) -> dict[str, Any]:
    native = engine.native("127.0.0.1", 8000)
    return {
        "backend": engine.backend,
        "title": engine.title,
        "version": engine.version,
        "model": engine.model,
        "argv": without_secret_arguments(native.argv),
        "environment": dict(native.environment),
        "image": None if engine.image is None else engine.image.name,
        "artifact": engine.artifact,
        "artifact_bytes": engine.artifact_bytes,
        "gpus": engine.gpus,
        "threads": engine.threads,
        "max_num_seqs": engine.max_num_seqs,
        "max_model_len": engine.max_model_len,
        "health_path": engine.health_path,
        "metrics_path": engine.metrics_path,
    }


def files_of(made: Plan) -> dict[str, File]:
    """Of the target, and what every target has."""
    return {**made.target.files(made.deployment), VERIFY: File(text=render("verify.sh"), executable=True)}


def told(files: Mapping[str, File], document: Mapping[str, Any]) -> dict[str, File]:
    """The files that tell of the others: the page of the deployment, and the way back."""
    return {
        README: File(text=readme(document, sorted({*files, README, ROLLBACK}))),
        ROLLBACK: rollback_script(
            (*files, README), stop=targets.stop_command(document["targets"][0], document["name"])
        ),
    }


def dry(request: Request) -> dict[str, Any]:
    """What would be written, without starting or writing anything."""
    made = plan(request)
    files = files_of(made)
    document = document_of(made, boot={"status": "skipped", "why": "--dry-run starts nothing"}, checks=())
    every = {**files, **told(files, document)}
    sizes = {path: len(file.text.encode()) for path, file in sorted(every.items())}
    return {**document, "files": sizes, "folder": str(request.out), "status": "dry-run"}


def deploy(request: Request, report: Reporter) -> dict[str, Any]:
    """Write, check and boot it; the document, with ``status`` written or unchanged. Raises LlmoptError."""
    made = plan(request)
    files = files_of(made)
    former = former_of(request.out)
    boot, checks = proof_of(former)
    document = document_of(made, boot=boot, checks=checks)
    same = {**files, **told(files, document)}
    require_unedited(request.out.resolve(), former, same)
    unchanged = is_unchanged(request.out, former, same)
    if not (unchanged and (boot.get("status") == "booted" or not request.boot)):
        tried = smoke_boot(made.subject, report) if request.boot else {"status": "skipped", "why": "--no-boot"}
        unchanged = unchanged and tried == boot
        boot = tried
    if unchanged and any(one["status"] != "passed" for one in checks):  # programs come, are mended, and --force goes
        unchanged = checked_aside(files, request) == checks
    if unchanged and former is not None:
        return {**former.document, **document, "folder": str(request.out), "status": "unchanged"}

    def complete(staged: Path) -> tuple[dict[str, File], dict[str, Any]]:
        document = document_of(made, boot=boot, checks=checked(staged, request.wishes.target, force=request.force))
        return told(files, document), document | {"created_at": now()}

    written = write(request.out, files, complete)
    return {**written, "folder": str(request.out), "status": "written"}


def checked_aside(files: Mapping[str, File], request: Request) -> list[dict[str, Any]]:
    """What the programs say of these files alone: in the folder lie those of others too."""
    with tempfile.TemporaryDirectory(prefix="llmopt-checks-") as scratch:
        fill(Path(scratch), files)
        return checked(Path(scratch), request.wishes.target, force=request.force)
