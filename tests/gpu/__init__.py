"""What only a GPU can show. One command: `pytest tests/gpu -m gpu`, after `memoria setup`.

It prints one JSON report, which is also written to `results/`. Without a GPU every test is skipped.
`MEMORIA_GPU_DRY_RUN=1` runs all of it against stub engines and a stub driver: that shows that the kit works;
its figures mean nothing, and nothing is written.
"""
