"""What tests share: scripted models, histories, a provider on this machine, faults. No tests."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder that holds ``tests``, ``docs`` and ``examples``."""
