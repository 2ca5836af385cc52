"""What every job shares: options from types, ``--config`` files, exit codes, and the last line.

A job file declares a frozen dataclass of options (a subclass of `JobOptions`) and a function from those options to an
`Outcome`, and hands both to `run`. Its command line, help and configuration file come from the dataclass. What does the
work, and takes seconds to import, is imported by the function: a typo is told at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import shlex
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from raymed.errors import RunError, UserError
from raymed.job.command_line import Aliases, parse
from raymed.job.departure import INTERRUPTED, departing
from raymed.job.library_log import AskedAgain, OneLine, essence, keep_traceback
from raymed.job.mistakes import in_own_names
from raymed.job.submitted import lasting
from raymed.job.witness import witnessed
from raymed.language import LANGUAGES, reworded, say, speak
from raymed.storage import holder
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

SEEDS = 2**32  # as many as every library takes
_CHATTY = ("ray", "mlflow", "alembic", "optuna", "deepspeed", "DeepSpeed", "faiss", "matplotlib", "transformers", "peft")


def default_storage() -> str:
    """``RAYMED_STORAGE``, else ``RAYMED_HOME``, else ``runs`` in the current folder.

    A submitted job works in a copy of the folder that Ray deletes some day: there it is ``raymed/runs`` at home.
    """
    return os.environ.get("RAYMED_STORAGE") or os.environ.get("RAYMED_HOME") or lasting("runs")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options that every job takes.

    Attributes:
        storage: Folder or URI under which everything is written (else RAYMED_STORAGE, RAYMED_HOME, or runs).
        tracking_uri: MLflow tracking address (default: MLFLOW_TRACKING_URI, or mlflow.db inside a local storage).
        seed: Seed of splits, order, augmentation, starting weights and search.
        dry_run: Check data, resources and memory, print the plan, and do nothing else.
        json: Print the summary as one JSON object on standard output; logs go to standard error.
        group_readable: Let this user's group read what is written; otherwise nobody else can.
        language: Of what a person reads, on the terminal and in the report: en or zh (default: English, and classes by their
            short names).
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("storage", "tracking_uri", "seed", "dry_run", "json", "language")
    SAID_AS: ClassVar[Mapping[str, str]] = {}  # other names of options, by those that what is shared with other jobs says

    storage: str = field(default_factory=default_storage)
    tracking_uri: str | None = None
    seed: int = 0
    dry_run: bool = False
    json: bool = False
    group_readable: bool = False
    language: str = ""

    @property
    def folder(self) -> Folder:
        """The storage folder."""
        return Folder.at(self.storage)

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI in force.

        Raises:
            UserError: the storage is remote and no tracking address was given.
        """
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if given:
            return given
        if "://" in self.storage:
            raise UserError(
                f"the storage {self.storage} is remote, so the tracking database cannot lie in it. Give "
                "--tracking-uri http://SERVER:5000 or set MLFLOW_TRACKING_URI."
            )
        return f"sqlite:///{self.folder.path}/mlflow.db"


@dataclass(frozen=True)
class Outcome:
    """What a job leaves: lines for a person, the last of which says where the result is, and the same for ``--json``.

    Attributes:
        code: exit code; 2 where the result is that the user has something to mend.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


Options = TypeVar("Options", bound=JobOptions)


def run(
    options_type: type[Options],
    main: Callable[[Options], Outcome],
    arguments: Sequence[str] | None = None,
    positional: bool = False,
    defaults: Path | None = None,
    aliases: Aliases | None = None,
) -> None:
    """Parse the command line into `options_type`, call `main`, print its outcome, and exit.

    Args:
        positional: required options are given by place instead of by name.
        defaults: YAML file whose values hold where neither ``--config`` nor the command line says otherwise. Defaults that
            other options imply are a rule of theirs, see `Implying`.
        aliases: other names of options, with dashes.

    Exit codes: 0 done; 2 something the user can mend; 1 a failed run; 130 stopped by Ctrl-C.
    """
    _quiet_libraries()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(OneLine("%(message)s", options_type.SAID_AS))
    script = sys.modules["__main__"]  # the job, whatever module does its work
    words = sys.argv[1:] if arguments is None else arguments
    as_json, failed = "--json" in words, True
    try:
        speak(_asked_language(words))
        options = parse(options_type, words, positional, defaults, aliases, script)
        speak(options.language)
        if not 0 <= options.seed < SEEDS:
            raise UserError(f"--seed is {options.seed}: give a whole number from 0 to {SEEDS - 1}")
        as_json = options.json
        if as_json:
            holder.last_words.append(_tell)
        os.umask(0o027 if options.group_readable else 0o077)  # most of what is written is about patients
        # standard output is for the outcome: libraries print to it too
        with contextlib.redirect_stdout(sys.stderr), witnessed(ended_at_once()), departing(interrupted()):
            outcome = main(options)
        code, text, data, failed = outcome.code, outcome.text, outcome.data, False
    except (UserError, RunError) as error:
        if error.__cause__ is not None:
            keep_traceback(traceback.format_exc())  # for jobs/doctor.py --bundle: the message is for a person
        code, text, data = _failure(2 if isinstance(error, UserError) else 1, str(error))
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        code, _, data = _failure(int(stopped.code), "the options cannot be read; standard error says why")
        text = ""  # the parser has said it
    except KeyboardInterrupt:
        code, text, data = _failure(INTERRUPTED, interrupted())
    except Exception as error:
        kept = keep_traceback(traceback.format_exc())
        code, text, data = _failure(
            1, f"{type(error).__name__}: {essence(str(error))}\nThe traceback is in {kept}; send it with the command."
        )
    holder.last_words.clear()  # what ends the process from now on comes after its object
    if text and (failed or not as_json):
        shown = in_own_names(text if failed else reworded(text), options_type.SAID_AS)
        print(shown, file=sys.stderr if failed else sys.stdout)
    if as_json:
        print(in_own_names(json.dumps(data, default=str), options_type.SAID_AS))
    _leave(code)


def command() -> str:
    """The command that this process was started with; nothing else reads its words but the parser of options."""
    return shlex.join(["python", *sys.argv])


def resume_command() -> str:
    """The command that goes on with what this one began; it begins nothing anew."""
    return re.sub(r"--resume[ =]never\b", "--resume must", command())


def interrupted() -> str:
    """The last line of a job that was told to stop."""
    return say("stopped. To go on from the last checkpoint: {command}", command=resume_command())


def ended_at_once() -> str:
    """What is said of a job that cannot say it any more."""
    return say(
        "error: the job was ended at once, by the system (for want of memory?) or by Ray, one of whose own processes was "
        "lost. What was saved is there, and the same command goes on: {command}",
        command=resume_command(),
    )


def _failure(code: int, message: str) -> tuple[int, str, dict[str, Any]]:
    return code, say("error: {message}", message=reworded(message)), {"error": message, "exit_code": code}


def _asked_language(words: Sequence[str]) -> str:
    """The language that is asked for, for what is wrong with other words; empty where none of ours is named."""
    named = re.findall(r"(?<!\S)--language[= ](\S+)", " ".join(words))
    return named[-1] if named and named[-1] in LANGUAGES else ""


def _tell(code: int, reason: str) -> None:
    """The object of a job that ends in the middle: on standard output, which libraries do not have meanwhile."""
    print(json.dumps({"error": reason.removeprefix("error: "), "exit_code": code}), file=sys.__stdout__, flush=True)


def _leave(code: int) -> typing.NoReturn:
    """Exit with `code` whatever the libraries' threads do: in a normal exit, Arrow's and DeepSpeed's now and then abort."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _quiet_libraries() -> None:
    """Keep third parties' start-up chatter off the terminal; their warnings and errors still show."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # when it is imported, MLflow sets the level of its loggers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers draws one for every file it writes
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")  # a few shards are few tasks
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(AskedAgain())
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
