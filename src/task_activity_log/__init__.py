"""task-activity-log-worker: task_activity_log upserts from RabbitMQ into PostgreSQL, answered with the stored record.

A map, from the bottom up:

aio         asyncio tools: a queue taken from in batches, a lock to share, backoff, threads, the end of tasks
http_get    what is at a URL, within a time and a size
message     an AMQP message: body, properties, attempts                          pure
record      the record as requested and as stored                                pure
problem     what can go wrong, typed by what is done about it                    pure
partitions  which of N request queues has the requests of a record               pure
hosts       the hosts of a URL, and which is tried first
tls         certificates, by files
libpq/      connection strings as psql takes them: where to connect and how
streams     standard input, output and error: what foreign text may do there, and failed writes
wire/       bytes to record and problem and back, by media type                  pure
pipeline/   the path of a message: take, decode, store, reply, settle. Start reading here
rabbitmq/   RabbitMQ: connections, deliveries, publishing, topology
postgresql/ PostgreSQL: statements, connections, migrations
telemetry/  names of all metrics and events, metrics, logs, tracing, health
variables   what is wrong with environment variables                             pure
settings    all settings
wiring      builds the parts from the settings
status      readiness, liveness, /status, gauges
service     runs a worker: start, signals, drain
client/     for publishers, subscribers and operators who handle dead letters
testing/    a worker in memory, for the tests of publishers and subscribers
cli/        the commands
console/    the web console: a process of its own, with the extra `console`
start       where the process of a command starts
"""

__version__ = "0.1.0"
