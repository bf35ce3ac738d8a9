"""Alembic's migrations: how the tables changed from release to release."""
