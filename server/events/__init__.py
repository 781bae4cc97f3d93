"""What users were shown and what they did: taken over HTTP, kept in Redis, exported as Parquet."""
