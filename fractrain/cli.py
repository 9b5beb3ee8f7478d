"""The command line ``fractrain VERB ...``.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or bad input, 130 interrupted.

The verbs are in :mod:`fractrain.commands`; here is what holds for all of them: how errors are told and with which code
the program ends.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

import fractrain
from fractrain.commands.common import NearestGroup
from fractrain.util.console import log_line
from fractrain.util.errors import FractrainError
from fractrain.util.signals import interruptible

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
VERBS: Final = {  # module of fractrain.commands and what it calls the verb
    "bench": "bench:bench_command", "check-hardware": "check:check_hardware_command",
    "check-method": "check:check_command", "claims": "evidence:claims_command", "compare": "inspect:compare_command",
    "config": "runs:config_group", "cost": "cost:cost_command", "data": "data:data_group",
    "diff": "inspect:diff_command",
    "doctor": "doctor:doctor_command", "draw": "draw:draw_command", "evidence": "evidence:evidence_group",
    "export": "export:export_command", "list": "catalog:list_command", "new-method": "new:new_method_command",
    "new-table": "new:new_table_command", "plan": "planning:plan_command",
    "publish": "publish:publish_command", "report": "report:report_command", "reproduce": "tables:reproduce_command",
    "run": "runs:run_command", "show": "inspect:show_command", "sweep": "sweep:sweep_command",
    "table": "tables:table_command", "verify-runs": "inspect:verify_runs_command",
}  # fmt: skip


class CommandLine(NearestGroup):
    """The whole command line: reports errors in one line and ends with the documented codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in alphabetical order."""
        return sorted({*VERBS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load a verb when it is asked for."""
        found = super().get_command(ctx, name)
        if found is None and name in VERBS:
            module, _, attribute = VERBS[name].partition(":")
            found = getattr(importlib.import_module(f"fractrain.commands.{module}"), attribute)
        return found

    def main(  # type: ignore[override]  # never returns in standalone mode, which is the only one used
        self, args: Sequence[str] | None = None, prog_name: str | None = "fractrain", **extra: Any
    ) -> NoReturn:
        """Run the verb in ``args`` and exit with its code."""
        # Before torch is loaded. Threads that spin while they wait make a step tens of times slower as soon as another
        # program uses a core; sleeping ones cost microseconds.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        given = list(sys.argv[1:] if args is None else args)
        debug = os.environ.get("FRACTRAIN_DEBUG", "") not in ("", "0") or "--debug" in given
        extra["standalone_mode"] = False
        sys.exit(self._guarded([a for a in given if a != "--debug"], prog_name, debug, extra))

    def _guarded(self, args: list[str], prog_name: str | None, debug: bool, extra: dict[str, Any]) -> int:
        """Run, tell any error in one line on stderr, and return the exit code."""
        try:
            with interruptible():
                result = super().main(args, prog_name, **extra)
            sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
        except (KeyboardInterrupt, click.Abort):
            log_line("fractrain: interrupted; nothing is half written, the same command may be given again")
            return INTERRUPTED
        except click.ClickException as error:
            return _tell(_usage_line(error), error, debug, USAGE)
        except FractrainError as error:
            if error.exit_code == INTERRUPTED:
                log_line(f"fractrain: {error}")
                return INTERRUPTED
            return _tell(str(error), error, debug, error.exit_code)
        except BrokenPipeError:
            # The reader has gone: nothing can be said to it, and the interpreter must not try again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED
        except OSError as error:
            code = USAGE if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else FAILED
            return _tell(_os_line(error), error, debug, code)
        return int(result or DONE)


def _tell(line: str, error: BaseException, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
    log_line(f"fractrain: error: {' '.join(line.split())}")
    return code


def _usage_line(error: click.ClickException) -> str:
    """Return click's message with the command whose help to read."""
    context = getattr(error, "ctx", None)
    where = f"; `{context.command_path} --help` explains" if context is not None else ""
    return error.format_message().rstrip(".") + where


def _os_line(error: OSError) -> str:
    """Return what the operating system refused and how to mend it."""
    mend = {
        errno.ENOSPC: "free some space and run the same command again, it goes on where it stopped",
        errno.EDQUOT: "free some space and run the same command again, it goes on where it stopped",
        errno.EACCES: "choose a folder you may write to (--results, --out, --data-dir)",
        errno.EPERM: "choose a folder you may write to (--results, --out, --data-dir)",
        errno.EROFS: "choose a folder you may write to (--results, --out, --data-dir)",
    }.get(error.errno or 0, "FRACTRAIN_DEBUG=1 shows where")
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}; {mend}"


@click.group("fractrain", cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fractrain.__version__, prog_name="fractrain")
@click.option("--debug", is_flag=True, help="Show tracebacks (also FRACTRAIN_DEBUG=1).")
def main(debug: bool) -> None:
    """Train low-precision methods in one harness and compare them with what was published.

    Start with `fractrain doctor`, then `fractrain reproduce table2`.
    """


if __name__ == "__main__":
    main()
