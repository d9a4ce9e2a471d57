"""The web console: what a person without a shell needs to see, and to do about dead letters. A process of its own.

app        routes, and what every answer has
parts      what the pages share
pages      the pages, to look
forms      the forms, to act
rendering  templates: pages, and parts that are sent again when they change
words      times, numbers and the runbook's advice, for people                     pure
access     who asks, and where a form came from
users      users, their roles, and the password file
settings   its settings
sampling   asks workers and broker every few seconds
actions    replay and discard, with progress, a stop, and what became of each
templates/ the pages
static/    the stylesheet and the script
"""
