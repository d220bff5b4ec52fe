"""What runs with a memory cost, beside the SDK's own sessions: ``python -m tests.benchmarks``."""
