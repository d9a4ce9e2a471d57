"""The path of a message: take, decode, store, reply, settle. Imports no drivers.

worker      the control flow: start reading here
ports       what the worker needs from the broker, the database and telemetry
request     delivery to request: media type, update mode, version, key           pure
reply       outcome to reply: body and properties                                pure
batches     works on whole batches: in slices of time, and in parts of bytes
waves       splits a batch into waves; halves a wave                             pure
suspects    messages that may have crashed a worker                              pure
hold        waits out an outage
"""
