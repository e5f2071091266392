"""The contract: workflow documents, messages, statuses and their schemas. Pydantic only, no I/O."""
