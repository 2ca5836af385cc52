"""Imports libraries, and then becomes each command that comes in, in a fork of itself; the answer is its exit code."""

import importlib
import json
import os
import runpy
import sys
import traceback

LIBRARIES = ("torch", "ray.data", "ray.tune", "ray.train.torch", "mlflow", "optuna", "transformers", "pandas", "scipy.stats")


def become(command: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """What the process that ``python COMMAND`` begins would do."""
    streams = [os.devnull, *outputs]
    for descriptor, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = command, os.path.dirname(command[0])  # noqa: PTH120
    code: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        if not (child := os.fork()):
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
