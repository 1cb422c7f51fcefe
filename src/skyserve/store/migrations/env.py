"""What Alembic runs to get a connection: it takes the one that `upgrade` was given. Not to be imported."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
