"""Environments for other tools: one each, made once, with this project's checkout in it.

They are kept in the folder that ``INTEROP_ENVIRONMENTS`` names, else in the machine's folder for
temporary files. Delete a folder to have it made anew, with the tool's newest release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent

LIBRARIES = {
    "openinference": "openinference-instrumentation-openai-agents",
    "genai": "opentelemetry-instrumentation-genai-openai-agents",
    "traceloop": "opentelemetry-instrumentation-openai-agents",
    "logfire": "logfire",
}
"""Libraries that trace the Agents SDK: the distribution, by the name of its environment."""


def folder() -> Path:
    """Where the environments are."""
    named = os.environ.get("INTEROP_ENVIRONMENTS")
    return Path(named) if named else Path(tempfile.gettempdir()) / "session-middleware-interop"


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of the environment ``name``, made with these requirements if need be.

    Raises:
        subprocess.CalledProcessError: it cannot be made; what pip said is on stderr.
    """
    environment = folder() / name
    python = environment / "bin" / "python"
    ready = environment / "ready"  # written last: an interrupted installation is done again
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        quiet = ["-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([python, *quiet, "-e", f"{CHECKOUT}[otel]", *requirements], check=True)
        ready.touch()
    return python


def output_of(python: Path, script: Path, *arguments: str) -> str:
    """What a script prints in that environment.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on stderr.
    """
    # In the environments' folder, because some libraries leave files where they are.
    done = subprocess.run(
        [python, script, *arguments], cwd=folder(), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
