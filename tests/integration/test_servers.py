"""The private servers themselves: each starts, answers, survives what is done to it, and stops leaving no process."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import ssl
import time

import pika
import psycopg2
import pytest
import redis

from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import FIRST_PORT, LAST_PORT, Server, ServerFactory, free_port, is_alive, talk
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis, Valkey
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.integration


def stop_leaves_nothing(server: Server) -> bool:
    pids = server.pids()
    server.stop()
    return len(pids) > 0 and not any(is_alive(pid) for pid in pids)


def connect(url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    return connection


def test_ports_stay_below_the_ephemeral_range() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)


def test_rabbitmq_keeps_a_durable_message_over_a_kill_and_loses_it_when_wiped(own_server: ServerFactory) -> None:
    server = own_server(RabbitMq)
    server.start()
    parameters = pika.URLParameters(server.url)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("letters", durable=True)
        channel.basic_publish("", "letters", b"hello", pika.BasicProperties(delivery_mode=2))

    server.kill()
    with pytest.raises(OSError):
        talk(server.port)
    server.start()
    assert "letters\t1" in server.ctl("list_queues", "name", "messages", "--no-table-headers")

    pids = server.pids()
    server.stop()
    assert not any(is_alive(pid) for pid in pids)
    server.wipe()
    server.start()
    assert "letters" not in server.ctl("list_queues", "name", "--no-table-headers")
    assert stop_leaves_nothing(server)


def test_rabbitmq_closes_all_connections_and_stays_up(rabbitmq: RabbitMq) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
    rabbitmq.close_all_connections()
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        connection.sleep(10)
    assert rabbitmq.running


@pytest.mark.parametrize("kind", [Redis, Valkey])
def test_redis_keeps_what_it_had_over_a_kill(own_server: ServerFactory, kind: type[Redis]) -> None:
    server = own_server(kind)
    server.start()
    client = redis.Redis.from_url(server.url, socket_timeout=5)
    client.set("letter", "hello")
    server.kill()
    server.start()
    assert client.get("letter") == b"hello"
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.close()
    assert stop_leaves_nothing(server)


def test_a_frozen_server_answers_again_after_the_thaw(own_server: ServerFactory) -> None:
    server = own_server(Valkey)
    server.start()
    server.freeze()
    with pytest.raises(TimeoutError):
        talk(server.port, b"PING\r\n", timeout=0.2)
    server.thaw()
    assert talk(server.port, b"PING\r\n") == b"+PONG\r\n"
    server.freeze()
    assert stop_leaves_nothing(server)


def test_postgres_role_is_bound_by_row_level_security(own_server: ServerFactory) -> None:
    server = own_server(Postgres)
    server.start()
    with connect(server.url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False, False)
        cursor.execute("CREATE TABLE letters AS SELECT 1 AS id")
    server.kill()
    server.start()
    with connect(server.superuser_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM letters")
        assert cursor.fetchone() == (1,)
    url = server.create_database("another")
    still_connected = connect(url)
    server.drop_database("another")
    assert still_connected.closed == 0
    with pytest.raises(psycopg2.OperationalError):
        connect(url)
    assert stop_leaves_nothing(server)


def test_dovecot_shows_delivered_mail_over_imap_and_pop3(own_server: ServerFactory) -> None:
    server = own_server(Dovecot)
    server.start()
    server.add_user("ann", "secret: pass wörd")
    for number in range(3):
        server.deliver("ann", f"Subject: {number}\r\n\r\nhello\r\n".encode(), flags="S" if number else "", received_at=1_700_000_000)
    server.deliver("ann", b"Subject: kept\r\n\r\nhello\r\n", folder="Archiv/Größe")

    with server.imap_client("ann", "secret: pass wörd") as client:
        assert {"CONDSTORE", "QRESYNC", "COMPRESS=DEFLATE", "MOVE", "SPECIAL-USE"} <= set(client.capabilities) | after_login(client)
        assert client.select("INBOX") == ("OK", [b"3"])
        assert client.search(None, "SUBJECT", "1") == ("OK", [b"2"])
        assert client.search(None, "UNSEEN") == ("OK", [b"1"])
        assert "14-Nov-2023" in str(client.fetch("1", "(INTERNALDATE)"))
        assert "Archiv/Gr&APYA3w-e" in str(client.list())
        server.deliver("ann", b"Subject: kept\r\n\r\nhello\r\n", folder="Later")
        assert "Later" in str(client.list())
        assert client.select('"Archiv/Gr&APYA3w-e"') == ("OK", [b"1"])

    pop3 = poplib.POP3(server.host, server.pop3_port, timeout=10)
    pop3.user("ann")
    pop3.pass_("secret: pass wörd")
    assert pop3.stat()[0] == 3
    pop3.quit()

    server.doveadm("mailbox", "update", "-u", "ann", "--uid-validity", "777", "INBOX")
    with server.imap_client("ann", "secret: pass wörd") as client:
        assert client.status("INBOX", "(UIDVALIDITY)")[1] == [b"INBOX (UIDVALIDITY 777)"]
    assert stop_leaves_nothing(server)


def after_login(client: imaplib.IMAP4) -> set[str]:
    return set(client.capability()[1][0].decode().split())


def test_dovecot_speaks_tls_with_its_own_certificate(dovecot: Dovecot) -> None:
    dovecot.add_user("tls", "pw")
    trusting = ssl.create_default_context(cafile=dovecot.certificate)
    with imaplib.IMAP4_SSL("localhost", dovecot.imaps_port, ssl_context=trusting, timeout=10) as client:
        client.login("tls", "pw")
    with imaplib.IMAP4(dovecot.host, dovecot.imap_port, timeout=10) as client:
        client.starttls(trusting)
        client.login("tls", "pw")
    with pytest.raises(ssl.SSLCertVerificationError):
        imaplib.IMAP4_SSL("localhost", dovecot.imaps_port, ssl_context=ssl.create_default_context(), timeout=10)


def test_a_dovecot_user_can_get_a_new_password(dovecot: Dovecot) -> None:
    dovecot.add_user("eve", "old")
    dovecot.imap_client("eve", "old").logout()
    dovecot.add_user("eve", "new")
    dovecot.imap_client("eve", "new").logout()
    with pytest.raises(imaplib.IMAP4.error):
        dovecot.imap_client("eve", "old")


def test_dovecot_comes_back_after_a_kill(own_server: ServerFactory) -> None:
    server = own_server(Dovecot)
    server.start()
    server.add_user("ann", "pw")
    client = server.imap_client("ann", "pw")
    pids = server.pids()
    server.kill()
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises((imaplib.IMAP4.abort, OSError)):
        client.noop()
    server.start()
    server.imap_client("ann", "pw").logout()


def test_smtp_sink_keeps_what_it_accepts(smtp_sink: SmtpSink) -> None:
    smtp_sink.refuse["gone@site.example"] = "550 5.1.1 no such user"
    with smtplib.SMTP(smtp_sink.host, smtp_sink.port, timeout=10) as client:
        refused = client.sendmail("me@site.example", ["gone@site.example", "here@site.example"], b"Subject: x\r\n\r\nhello\r\n")
    assert refused == {"gone@site.example": (550, b"5.1.1 no such user")}
    [received] = smtp_sink.wait_for(1)
    assert (received.sender, received.recipients) == ("me@site.example", ["here@site.example"])
    assert received.raw == b"Subject: x\r\n\r\nhello\r\n"


def test_smtp_sink_drops_the_connection_after_the_dot_and_keeps_the_message(smtp_sink: SmtpSink) -> None:
    smtp_sink.drop_after_dot = True
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp_sink)
    assert len(smtp_sink.received) == 1


def test_smtp_sink_drops_the_connection_before_the_message(smtp_sink: SmtpSink) -> None:
    smtp_sink.drop_before_dot = True
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp_sink)
    assert smtp_sink.received == []
    assert smtp_sink.attempts == 1


def test_smtp_sink_refuses_the_sender_or_the_data(smtp_sink: SmtpSink) -> None:
    smtp_sink.refuse_sender["me@site.example"] = "553 5.7.1 not yours"
    with pytest.raises(smtplib.SMTPSenderRefused):
        send(smtp_sink)
    smtp_sink.reset()
    smtp_sink.refuse_data = "451 4.7.1 Greylisted"
    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(smtp_sink)
    assert refused.value.smtp_code == 451


def test_smtp_sink_closes_its_connections_when_it_stops(smtp_sink: SmtpSink) -> None:
    client = smtplib.SMTP(smtp_sink.host, smtp_sink.port, timeout=5)
    smtp_sink.stop()
    with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
        client.noop()
    smtp_sink.start()
    send(smtp_sink)
    assert len(smtp_sink.received) == 1


def test_smtp_sink_asks_for_a_password_when_it_has_accounts() -> None:
    with SmtpSink(accounts={"me": "pw"}) as sink:
        with pytest.raises(smtplib.SMTPSenderRefused):
            send(sink)
        with smtplib.SMTP(sink.host, sink.port, timeout=10) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("me", "wrong")
            client.login("me", "pw")
            client.sendmail("me@site.example", ["you@site.example"], b"hello")
        assert len(sink.received) == 1


def send(sink: SmtpSink) -> None:
    with smtplib.SMTP(sink.host, sink.port, timeout=10) as client:
        client.sendmail("me@site.example", ["you@site.example"], b"Subject: x\r\n\r\nhello\r\n")


def test_a_long_line_delays_and_keeps_the_order() -> None:
    words = b"".join(b"%07d " % number for number in range(60_000))  # more pieces than one
    with socket.create_server(("127.0.0.1", 0)) as listener, FaultProxy(listener.getsockname()[1]) as line:
        line.delay, line.jitter = 0.1, 0.01
        with socket.create_connection((line.host, line.port), timeout=30) as near:
            far, _ = listener.accept()
            with far:
                started = time.monotonic()
                near.sendall(words)
                near.shutdown(socket.SHUT_WR)
                far.settimeout(30)
                heard = b""
                while piece := far.recv(65536):
                    heard += piece
                assert time.monotonic() - started >= 0.1
                assert heard == words
                assert line.open_connections == 1
