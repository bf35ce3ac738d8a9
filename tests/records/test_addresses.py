"""Addresses of databases as platforms give them, and a pooler between this project and PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text
from support.databases import real_pgbouncer
from support.samples import give_feedback, ids, prediction, records_settings, started

from cifar.errors import SettingsError
from cifar.records.database import TIMEOUT_SECONDS, open_engine
from cifar.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:hunter2@db/x",
        "hunter2",
        "postgresql+psycopg://cifar:hunter2@db:x/x",
        "postgresql://cifar:hunter2@db:5432,other:x/x",
        "postgresql://cifar:hunter2@db",
    ],
)
def test_an_unsupported_database_is_refused_without_showing_its_password(url):
    """At the start, with a message that says what is expected."""
    with pytest.raises(SettingsError, match="expected postgresql://") as error:
        open_engine(Settings(database_url=url))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("postgres://ann:a%40b@db/x", "db", None),
        ("postgresql://ann:a%40b@db:6543/x?sslmode=require", "db", 6543),
        ("postgresql+psycopg://ann:a%40b@db/x?pgbouncer=true&connection_limit=1", "db", None),
        ("postgres://ann:a%40b@one:1,two:2/x?target_session_attrs=read-write", "one,two", "1,2"),
        ("postgresql://ann:a%40b@one,two/x", "one,two", "5432,5432"),
        ("postgresql://ann:a%40b@[::1]:5432,[fe80::2]/x", "::1,fe80::2", "5432,5432"),
        ("POSTGRESQL+asyncpg://ann:a%40b@db/x", "db", None),
        ("postgresql+psycopg2://ann:a%40b@one:1,two:2/x", "one,two", "1,2"),
        (" postgresql:///x?host=/var/run/postgresql\n", "/var/run/postgresql", None),
    ],
)
def test_addresses_work_as_platforms_give_them(address, host, port):
    """Heroku, Neon, Supabase and operators of Kubernetes set a variable that cannot be edited."""
    engine = open_engine(Settings(database_url=address))
    _, arguments = engine.dialect.create_connect_args(engine.url)
    assert (arguments["host"], arguments.get("port"), arguments["dbname"]) == (host, port, "x")
    assert arguments.get("password") == ("a@b" if "ann" in address else None)
    assert not {"pgbouncer", "connection_limit"} & arguments.keys(), (
        "PostgreSQL's client refuses names it does not know"
    )


def test_of_several_hosts_the_one_that_answers_is_used(tmp_path, cluster):
    """After a failover the first host of the address is away."""
    name = cluster.new_database("several").rpartition("/")[2]
    url = f"postgres://cifar@127.0.0.1:1,127.0.0.1:{cluster.port}/{name}"
    recorder = started(records_settings(tmp_path, database_url=url))
    recorder.add(prediction("a"))
    recorder.stop()
    assert ids(records_settings(tmp_path, database_url=url)) == ["a"]


def test_records_work_through_a_transaction_pooler(tmp_path, cluster):
    """Neon and Supabase give an address of PgBouncer's, where each transaction may get another connection."""
    direct = cluster.new_database("pooled")
    with real_pgbouncer(cluster) as port:
        url = direct.replace(f":{cluster.port}/", f":{port}/").replace("postgresql+psycopg", "postgres")
        settings = records_settings(tmp_path, database_url=url)
        recorders = [started(settings), started(settings)]  # more clients than the pool has connections
        for i in range(20):  # a driver prepares a statement when it repeats; the next connection does not know it
            for recorder in recorders:
                recorder.add(prediction(f"{i}-{id(recorder)}"))
                recorder.flush()
                assert not recorder.dependency.failing
        give_feedback(recorders[0], f"0-{id(recorders[1])}", "circle")
        assert len(ids(settings)) == 40
        with recorders[0].engine.begin() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == f"{TIMEOUT_SECONDS}s"
        for recorder in recorders:
            recorder.stop()
        with psycopg.connect(url.replace("postgres:", "postgresql:"), autocommit=True) as other:
            assert other.execute("SHOW statement_timeout").fetchone() == ("0",), "other programs share the connections"
    engine = open_engine(records_settings(tmp_path, database_url=direct))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM feedback")).scalar() == 1
    engine.dispose()
