"""The memory that a model needs, from its files and settings alone: pure arithmetic, in whole bytes."""
