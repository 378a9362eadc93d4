"""memoria's relay against other proxies: `python -m tests.bench.relay`.

`load/` is a C program, compiled when it is needed: the upstream and the client in one thread. `targets.py`
starts memoria (the whole daemon, as users run it) and its peers in front of that upstream, `measures.py` says
what is measured, `table.py` makes ratios of it.
"""
