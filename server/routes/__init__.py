"""The HTTP surface, one module for each resource."""
