"""The web console: what a person without a shell needs to see, and to do about dead letters. A process of its own.

app        the table of contents: routes, what every answer has, and running it
settings   its settings
access     who may do what, and where a form came from                            pure
parts      what the pages share, and who asks
rendering  templates: pages, and parts that are sent again when they change
pages      the pages, to look
forms      the forms, to act
history    an hour of samples, and the figures made from them                     pure
sampling   asks the workers and the broker every few seconds
now        the present in words                                                   pure
letters    dead letters judged, filtered and grouped                              pure
looks      one look at the dead letters for all viewers, and the loans of actions
rows       the rows of records as they are now
preview    what a message would do                                                pure
actions    replay and discard, with progress, a stop, and what became of each
replies    the replies as they come
charts     charts as SVG                                                          pure
templates/ the pages
static/    the stylesheet and the script
"""
