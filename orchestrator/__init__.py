"""The service that runs workflows: it publishes tasks, joins results and keeps the state in Postgres."""
