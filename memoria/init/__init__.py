"""A first memoria.yaml: from models, from vLLM's own command lines, or from a Docker compose file."""
