"""The RabbitMQ adapter of the broker port, on aio-pika."""

from messaging.rabbitmq.broker import RabbitmqBroker

__all__ = ["RabbitmqBroker"]
