"""The matrix of 40 faults: what must happen, the tests that inject each one, and the figures they measure.

    python -m tests.faults          # every row
    python -m tests.faults 5 23     # these rows

matrix.py is the table; tests of a row may be anywhere under tests/. Those here that are too long for every
run of the suite have the marker `faults`.
"""
