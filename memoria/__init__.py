"""memoria: several vLLM models on one GPU, in one command, without Docker."""

__version__ = "0.1.0"
