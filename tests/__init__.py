"""The tests, in the folders of the modules they test; ``acceptance`` has what spans modules."""
