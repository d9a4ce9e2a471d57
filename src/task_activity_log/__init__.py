"""task-activity-log-worker: task_activity_log upserts from RabbitMQ into PostgreSQL, answered with the stored record.

The house, from the ground up:

record      the record as asked for and as stored                                pure
problem     what can go wrong, named by what is done about it                    pure
tls         certificates, by files
wire/       bytes to record and back, by media type                              pure
request     delivery to request: media type, update mode, version, key           pure
reply       outcome to reply: body and properties                                pure
batch       take what is waiting; split into waves; halve
suspects    messages that may have killed a worker
hold        wait out an outage
ports       what the worker needs of the world
worker      the pipeline: take, decode, store, reply, settle. Start reading here
store       PostgreSQL: waves in, outcomes out; with sql/ and migrations/
database    PostgreSQL's connections, and what its errors mean
broker/     RabbitMQ
telemetry/  names (all that is shown), metrics, logs, watch, tracing, health
service     puts it together; signals, drain
settings    all that can be set
client/     for publishers, subscribers and the person with the dead letters
cli/        the commands
"""

__version__ = "0.1.0"
