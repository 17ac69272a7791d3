"""What ``llmopt deploy`` tries before it hands a folder over: the engine's start here, and the files by the real programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmopt.core.domain import Case, Workload
from llmopt.core.errors import LlmoptError, MissingEnvironment, ServerError, UsageError
from llmopt.deploy.writing import Former
from llmopt.pipeline.deploy_engine import Subject
from llmopt.pipeline.hosting import Place, hosted
from llmopt.pipeline.measured_row import NotNegative
from llmopt.pipeline.measuring import without_secret_arguments
from llmopt.pipeline.reporter import Reporter
from llmopt.serve.process import require_device


class Booted(msgspec.Struct, tag_field="status", tag="booted"):
    """Of ``deployment.json``: what ``smoke_boot`` gives."""

    seconds: NotNegative
    argv: list[str]


class NotBooted(msgspec.Struct, tag_field="status", tag="skipped"):
    why: str


class Checked(msgspec.Struct):
    name: str
    status: Literal["passed", "failed", "skipped"]
    why: str = ""


def proof_of(former: Former | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the folder's deployment booted and what its checks said; nothing where that is damaged, and both are done anew."""
    told = former.document if former else {}
    try:
        boot = msgspec.convert(told.get("boot"), Booted | NotBooted)
        checks = msgspec.convert(told.get("checks"), list[Checked])
        msgspec.json.encode((boot, checks))  # half a surrogate pair is text in JSON, and in no file
    except (msgspec.ValidationError, UnicodeEncodeError):
        return {}, []
    return msgspec.to_builtins(boot), msgspec.to_builtins(checks)


def checked(staged: Path, target: str, *, force: bool) -> list[dict[str, Any]]:
    """What the programs that are here say of the files. Raises LlmoptError where one refuses them."""
    from llmopt.deploy.checks import check

    found = [asdict(one) for one in check(staged, target)]
    failed = [f"{one['name']}: {one['why']}" for one in found if one["status"] == "failed"]
    if failed and not force:
        raise LlmoptError(
            f"what would be written does not pass: {'; '.join(failed)}",
            hint="this is a defect of llmopt, or a program that is too old; --force writes it all the same",
        )
    return found


def smoke_boot(subject: Subject, report: Reporter) -> dict[str, Any]:
    """Start the measured command here, have one completion answered, stop it; or why not. Raises ServerError."""
    name = subject.backend.name
    if subject.environment is None:
        return {"status": "skipped", "why": f"{name} is not installed here"}
    case = Case(artifact=subject.artifact, serve=subject.options, workload=Workload())
    try:
        require_device(subject.backend)
    except ServerError as error:
        return {"status": "skipped", "why": error.message}
    try:
        with hosted(case, Place(), report) as server:
            return {
                "status": "booted",
                "seconds": round(server.load_s, 1),
                "argv": without_secret_arguments(server.command.argv),
            }
    except (UsageError, MissingEnvironment) as error:
        return {"status": "skipped", "why": error.message}
    except ServerError as error:
        raise ServerError(
            f"the engine does not boot, so nothing was written: {error.message}",
            hint=f"{error.hint}; or --no-boot writes it untried" if error.hint else "--no-boot writes it untried",
        ) from error
