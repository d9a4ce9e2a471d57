"""`task-activity-log dead-letters`: inspect rejected messages, replay, export and discard them.

commands    the commands and their options
completing  message ids for the Tab key
selection   which dead letters are meant, and how they are borrowed from the queue
listing     dead letters as a table, as JSON, in full, or as a file that `publish` reads
replaying   which of them may be replayed, why the others may not, and sending them again
editing     a body in the user's editor
"""
