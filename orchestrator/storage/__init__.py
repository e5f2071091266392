"""The truth: tables, the unit of work, queries and migrations on Postgres."""
