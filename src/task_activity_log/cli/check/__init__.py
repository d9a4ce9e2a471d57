"""`task-activity-log check`: is everything in place that a worker needs, and is it safe? It changes nothing.

command      asks for the findings, prints them, and decides the exit code
finding      one line of the table
broker       RabbitMQ, as AMQP and the management API show it
limits       the limits of its queues, by arguments and policies
permissions  what the worker's user may do there
management   the management API, read only
database     PostgreSQL: server, schema, privileges
"""
