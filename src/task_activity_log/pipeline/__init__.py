"""The path of a message: take, decode, store, reply, settle. Imports no drivers.

worker      the control flow: start reading here
answering   its second stage: replies, dead letters, acknowledgements
ports       what the worker needs from the broker, the database and telemetry
request     delivery to request: media type, update mode, version, key           pure
reply       outcome to reply: body and properties                                pure
settling    request and outcome, or problem, to what must be settled             pure
overtaking  which deliveries are acknowledged while others wait for their reply  pure
forwarding  requests that were not sent by record go on to their partition: a stage of its own
stage       what each stage does: try until it succeeds, and show the outage
search      finds the rows at fault in a wave that does not pass
groups      which rows are tried together while slow ones are searched for       pure
batches     works on whole batches: in slices of time, and in parts of bytes
waves       splits a batch into waves, and a wave into parts                     pure
timing      how long a statement may take                                        pure
suspects    smaller batches of messages that may have crashed a worker           pure
trials      which messages were tried when a worker crashed
refusals    whether the database refuses every row                               pure
hold        waits out an outage
parking     rows that are locked, slow or fail for now wait here, and delay their own record alone
retrying    tries what is parked again, in two lanes
lines       one for each parked record, with its requests in order
"""
