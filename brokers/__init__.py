"""The wire: RabbitMQ, and Redis while RabbitMQ is away. Knows messages and no rows; what it loses, the record publishes again."""
