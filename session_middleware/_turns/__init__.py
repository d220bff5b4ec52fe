"""The core: a turn from acquiring its session to its end, and everybody who takes part in it."""
