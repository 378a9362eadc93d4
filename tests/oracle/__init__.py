"""Published starts of vLLM on GPUs, and the planner's figures beside them."""
