"""The path of a message: taken, decoded, stored, answered, settled. No drivers.

worker      the control flow: start reading here
ports       what the worker needs of the broker, the database and the telemetry
request     delivery to request: media type, update mode, version, key           pure
reply       outcome to reply: body and properties                                pure
waves       split a batch into waves; halve                                      pure
suspects    messages that may have crashed a worker                              pure
hold        wait out an outage
"""
