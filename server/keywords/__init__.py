"""Keywords: what a query means, worked out beside the request path and read by it."""
