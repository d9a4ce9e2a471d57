"""PostgreSQL. The only asyncpg, SQLAlchemy and Alembic.

store        waves of requests in, outcomes and stored records out
session      a connection that is opened again when it is lost, and what errors mean
sql/         the statements
migrations/  the schema, step by step
"""
