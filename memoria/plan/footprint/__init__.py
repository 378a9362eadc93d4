"""How much memory a model takes, from its files and the settings alone: pure arithmetic, in whole bytes."""
