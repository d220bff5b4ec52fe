"""The model of these examples: the provider's when OPENAI_API_KEY is set, else one that runs here.

The one that runs here answers only from the conversation it is handed, so an answer that needs
an earlier turn shows that the turn was there.
"""

import os

from agents import set_tracing_disabled
from agents.models.interface import Model

from session_middleware._demo_model import LocalModel


def model() -> Model | None:
    """What to give as ``Agent(model=...)``; None is the SDK's default."""
    if os.environ.get("OPENAI_API_KEY"):
        return None
    set_tracing_disabled(True)  # the SDK would export traces, and there is no key to do so
    return LocalModel()
