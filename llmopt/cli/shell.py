"""What every command shares: the app, its options, and how errors become one line and an exit status."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llmopt.core.errors import LlmoptError

if TYPE_CHECKING:
    from llmopt.report.progress import Reporter

INTERRUPTED = 130
STOPPING = (signal.SIGTERM, signal.SIGHUP)
DEBUG_VARIABLE = "LLMOPT_DEBUG"

app = typer.Typer(
    name="llmopt",
    help="Which quantization, engine and settings should I run for this model on this hardware, and how sure are we?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
env_app = typer.Typer(no_args_is_help=True, help="The Python environments in which engines and quantizers live.")
app.add_typer(env_app, name="env")


class GroupedCommand(TyperCommand):
    """Plain help, options under their headings: rich's panels cost a tenth of a second of start-up."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                argument = param.param_type_name == "argument"
                title = "Arguments" if argument else getattr(param, "rich_help_panel", None) or "Options"
                groups.setdefault(title, []).append(row)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of run records.")]
PythonOption = Annotated[
    str | None, typer.Option("--env", help="Interpreter or virtual environment to run the engine in.")
]
TextOption = Annotated[Path | None, typer.Option("--text", help="Held-out text for quality; default: the bundled one.")]
TokensOption = Annotated[int, typer.Option("--tokens", min=1536, help="Tokens of the text to compare on.")]


def nobody_gave(context: typer.Context, name: str) -> bool:
    """Whether nobody gave this option."""
    source = context.get_parameter_source(name)
    return source is None or source.name != "COMMANDLINE"


def for_people(command: Callable[..., None]) -> Callable[..., None]:
    """Every error is one line with a hint and its exit status; a traceback only with ``--debug``."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        if sys.stdout is None or sys.stderr is None:
            raise SystemExit(1)
        stop_in_order()
        try:
            command(*arguments, **options)
            sys.stdout.flush()
        except LlmoptError as error:
            fail(error.message, error.hint, error.exit_status)
        except KeyboardInterrupt:
            fail("interrupted; everything finished is kept", "run the same command again to go on", INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            fail(
                f"{error.strerror or error}: {error.filename or 'standard output'}",
                "check that it can be written to",
                1,
            )
        except Exception as error:
            fail(f"{type(error).__name__}: {error}", "this is a defect of llmopt: llmopt --debug … shows where", 1)

    return run


def stop_in_order() -> None:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that what was started is stopped; not where they are ignored (nohup)."""

    def stop(number: int, _: Any) -> None:
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)  # once is enough: the unwinding is not to be interrupted
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)


def fail(message: str, hint: str | None, status: int) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exc()
    from llmopt.core.escaping import one_line

    print(f"error: {' '.join(one_line(message).split())}", file=sys.stderr)
    if hint:
        print(f"hint: {one_line(hint)}", file=sys.stderr)
    raise SystemExit(status)


def reporter(*, quiet: bool = False) -> Reporter:
    from llmopt.report.progress import Reporter

    return Reporter(quiet=quiet)


def print_json(value: Any) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n")


def show_version(asked: bool) -> None:
    if asked:
        import llmopt

        print(f"llmopt {llmopt.__version__}")
        raise typer.Exit


@app.callback()
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
