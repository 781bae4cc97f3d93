"""The sidecar: what keeps producing the weights that are served, from what users do."""
