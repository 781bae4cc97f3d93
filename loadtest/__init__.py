"""Load tests over HTTP, and benchmarks of parts (`bench/`). Nothing else imports this."""
