"""Write down what a finished environment holds, as the lock file that the next one is made with.

python tools/lock_environments.py NAME…

For newer versions: delete the lock file, ``llmopt env remove NAME``, ``llmopt env create NAME``, ``make test``, this.
"""

from __future__ import annotations

import sys

from llmopt.core import environments
from llmopt.core.blueprints import LOCKS, blueprint, platform_tag
from llmopt.core.errors import LlmoptError
from llmopt.core.files import write_atomic
from llmopt.core.journal import journal_of
from llmopt.core.machine import gpu_names

# Not the environment's own: llmopt itself, what builds the others, and what pip and venv bring.
LEFT_OUT = {"llmopt", "llama-cpp-python", "pip", "setuptools", "wheel", "uv"}


def main() -> None:
    for name in sys.argv[1:] or sys.exit(__doc__):
        environment = environments.named(name)
        journal = journal_of(environment.prefix)
        if journal is None:
            sys.exit(f"error: {environment.prefix} was not made by llmopt env create")
        if journal.left_out:
            sys.exit(f"error: {name} is not whole: {journal.left_out}")
        # "+cpu" and the like name a build, which every machine chooses for itself.
        pins = [line.partition("+")[0] for line in environments.requirement_lines(environment)]
        pins = [pin for pin in pins if pin.partition("==")[0].lower() not in LEFT_OUT]
        path = LOCKS / f"{blueprint(name, gpu=bool(gpu_names())).lock}-{platform_tag(journal.python)}.txt"
        write_atomic(path, ("\n".join(pins) + "\n").encode())
        print(f"{path}: {len(pins)} packages")


if __name__ == "__main__":
    try:
        main()
    except LlmoptError as error:
        sys.exit(f"error: {error.message}")
