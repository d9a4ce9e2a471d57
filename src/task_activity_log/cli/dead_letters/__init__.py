"""`task-activity-log dead-letters`: inspect rejected messages, replay, export and discard them.

options     what can be typed: the commands and their options
commands    what each command does
selection   which dead letters are meant, and how they are borrowed from the queue
candidates  which of them may be replayed, and why the others may not
editing     a body in the user's editor
listing     dead letters as a table, as JSON, in full, or as a file that `publish` reads
"""
