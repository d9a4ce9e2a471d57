"""PostgreSQL: the only package that uses asyncpg, SQLAlchemy and Alembic.

store        takes waves of requests, returns outcomes and stored records
writing      the statement that writes a wave, and its parameters
copies       copies of a stored record that are not refused as copies
survey       the records as they are, for commands
marks        which messages are tried alone
trimming     what the workers delete
rehearsals   what `check` tries, and rolls back
journal      how messages were answered, for the people who look for one
messages     what may be shown of the server's messages
connection   a connection that knows its server
session      a connection that is replaced when it fails
faults       what errors mean
reading      reading records, and why they cannot be read
table        what does not fit in somebody's own table
watch        whether the tables still fit while rows are stored
connecting   opens connections: to which server
logins       why one server does not let in
statements   reads what is in sql/
sql/         the statements
migrations/  the revisions of the schema
"""
