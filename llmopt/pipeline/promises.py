"""What an endpoint is held to: the folder of its deployment, or anything that ``llmopt deploy`` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from llmopt.core.errors import UsageError
from llmopt.deploy.plan import MOST_REPLICAS, Evidence
from llmopt.deploy.writing import DOCUMENT, SCHEMA
from llmopt.pipeline.deploy_slos import one_each, require_sound, slos_asked_for
from llmopt.pipeline.deploy_source import Asked, evidence_of, read_source
from llmopt.pipeline.measured_row import Line, require_possible, workload_of
from llmopt.pipeline.measuring import check_url
from llmopt.pipeline.verifying import Promise


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line says of the endpoint, before what the deployment's folder says."""

    against: str | None = None
    url: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    replicas: int | None = None
    slos: tuple[str, ...] = ()
    results: Path = Path("results")


def read_promise(where: str, wanted: Wanted) -> Promise:
    """Raises UsageError for what is neither a URL nor a deployment, and for a URL that is held to nothing."""
    if where.startswith(("http://", "https://")):
        return of_url(where, wanted)
    folder = Path(where)
    if not (folder / DOCUMENT).is_file():
        raise UsageError(
            f"{where!r} is no URL and no folder of a deployment",
            hint="llmopt deploy RANKING -o DIR --target … writes one; for a URL: http://…/v1 --against RANKING",
        )
    document, told = read_document(folder / DOCUMENT)
    evidence = against(wanted) if wanted.against is not None else with_slos(told, wanted.slos)
    url = wanted.url or document.url
    check_url(url)
    return Promise(
        url=url,
        model=wanted.model or document.engine.model,
        replicas=wanted.replicas or document.capacity.replicas,
        evidence=evidence,
        tokenizer=wanted.tokenizer or tokenizer_in(document.engine.artifact),
        headers=wanted.headers,
    )


def of_url(url: str, wanted: Wanted) -> Promise:
    check_url(url)
    if wanted.url is not None:
        raise UsageError("the endpoint is named twice", hint="leave --url out: it is of a deployment's folder")
    if wanted.against is None:
        raise UsageError(
            f"{url} is held to nothing", hint="--against ranking.json, a run, or the folder of its deployment"
        )
    if (Path(wanted.against) / DOCUMENT).is_file():
        return read_promise(wanted.against, replace(wanted, url=url, against=None))
    if wanted.model is None:
        raise UsageError("a URL needs the name of the model", hint="--model NAME, as the server's /v1/models lists it")
    return Promise(
        url=url, model=wanted.model, replicas=wanted.replicas or 1, evidence=against(wanted),
        tokenizer=wanted.tokenizer, headers=wanted.headers,
    )  # fmt: skip


def against(wanted: Wanted) -> Evidence:
    asked = Asked(slos=wanted.slos, results=wanted.results)
    return evidence_of(read_source(wanted.against or "", asked), asked)


class DeployedEngine(msgspec.Struct):
    model: Annotated[Line, msgspec.Meta(min_length=1)]
    artifact: Line | None = None


class DeployedCapacity(msgspec.Struct):
    replicas: Annotated[int, msgspec.Meta(ge=1, le=MOST_REPLICAS)]


class Deployed(msgspec.Struct):
    """What is asked of a deployment's document beside its evidence."""

    url: str
    engine: DeployedEngine
    capacity: DeployedCapacity


def read_document(file: Path) -> tuple[Deployed, Evidence]:
    """Raises UsageError for one that is not whole, or of another llmopt."""
    try:
        document = msgspec.json.decode(file.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("it is no object")
        if (schema := document.get("schema")) != SCHEMA:
            raise UsageError(f"{file} has schema {schema!r}, this llmopt reads {SCHEMA}", hint="deploy it again")
        return msgspec.convert(document, Deployed), evidence_of_document(document)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no whole document of a deployment: {error}", hint="deploy it again") from error


def evidence_of_document(document: Mapping[str, Any]) -> Evidence:
    """As ``llmopt deploy`` wrote it down, beside all else; every SLO in it is one. Raises UsageError."""
    try:
        found = msgspec.convert({f.name: document[f.name] for f in fields(Evidence) if f.name in document}, Evidence)
        require_possible({name: (figure.value, figure.low, figure.high) for name, figure in found.figures.items()})
    except ValueError as error:
        raise UsageError(f"the deployment's document lacks its evidence: {error}", hint="deploy it again") from error
    workload_of(found.workload)
    for slo in found.slos:
        require_sound(slo)
    return replace(found, slos=one_each(found.slos))


def with_slos(evidence: Evidence, texts: Sequence[str]) -> Evidence:
    """With the SLOs that were asked for now, where there are any. Raises UsageError for what is no percentile of a request."""
    if not texts:
        return evidence
    known = {name: figure.value for name, figure in evidence.figures.items()}
    return replace(evidence, slos=slos_asked_for(texts, lambda metric, share: known.get(f"{metric}_p{share * 100:g}")))


def tokenizer_in(artifact: str | None) -> str | None:
    """The model's own, where its folder is here: prompts of exact lengths."""
    return artifact if artifact and (Path(artifact) / "tokenizer.json").is_file() else None
