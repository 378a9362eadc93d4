"""vLLM's own environment: which vLLM there is (`find`), and how `memoria setup` makes one (`setup`)."""
