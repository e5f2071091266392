"""The RabbitMQ adapter of the broker port, on aio-pika."""

from messaging.rabbitmq.broker import RabbitmqBroker, broker_of, user_of

__all__ = ["RabbitmqBroker", "broker_of", "user_of"]
