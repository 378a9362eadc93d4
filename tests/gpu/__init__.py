"""What only a GPU can show. One command: `pytest tests/gpu -m gpu`, after `memoria setup`.

Without a GPU every test is skipped. The report is printed and kept in `results/`, whose README says how to
measure, part by part. `MEMORIA_GPU_DRY_RUN=stub` runs all of it against stub engines and a stub driver,
`=cpu` half of it against vLLM's CPU build: that shows that the kit works; its figures mean nothing, and
nothing is kept.
"""
