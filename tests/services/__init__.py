"""The RabbitMQ and the Postgres that tests run against, and where they come from.

`rabbitmq.take` and `postgres.take` try their sources in order (an environment variable, Docker, a private server on
this machine) and return the first that works. Start reading in `sources`. Nothing is started before a test asks.
"""
