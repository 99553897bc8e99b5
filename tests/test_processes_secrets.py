"""Secrets: nobody's password is printed or stored."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments.__main__ import run_command
from experiments.processes.secrets import has_secret, redact, redact_url
from experiments.processes.terminal import describe_error, printable
from experiments.tracking import ui
from experiments.tuning.storage import parse_url

SECRET = "secret-42"
ADDRESSES = [
    f"http://me:{SECRET}@host:5000",
    f"http://{SECRET}@host:5000",  # a token
    f"http://me:a/{SECRET}@host",
    f"http://me:a@{SECRET}@host",
    f"http://me:{SECRET}@@host/x@y",
    f"postgresql://me:{SECRET}@host/x",
    f"postgresql://host/x?password={SECRET}&user=me",
    f"postgresql://host/x?user=me&sslpassword={SECRET}",
    f"postgressql://me:{SECRET}@host/x",
    f"mysql+nix://me:{SECRET}@host/x",
    f"https://host/?access_token={SECRET}",
    f"https://host/?X-Api-Key={SECRET}",
    f"postgresql://me:it's{SECRET}@host/x",
    f"https://bucket.host/x?X-Amz-Signature={SECRET}&sig={SECRET}",
    f"password={SECRET} host=db",
    f"host=db password='{SECRET} x'",
    f"postgresql://host/x?password=a){SECRET}",
    f"http://me:a<{SECRET}@host:5000",
    f"http://me:a/{SECRET}@host:5000/x",
    f"http://me:12/{SECRET}@host:5000/x",
    f"postgresql://me:12/{SECRET}@host/x",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_secret_in_an_address_is_hidden(address):
    for text in (address, f"cannot reach '{address}': refused", f"({address}) and me@there"):
        assert SECRET not in redact(text)
        assert SECRET not in describe_error(ValueError(text))
    assert has_secret(address)
    assert redact(redact(address)) == redact(address)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/#/experiments/0/runs/1f4a?workflowType=machine_learning",
        "storage must be a URL such as postgresql+psycopg://<user>@<host>/optuna",
        "sqlite:////home/me/mlflow.db",
        "sqlite:////home/me@work/mlflow.db",
        "file:///home/me@work/mlruns",
        "s3://bucket/me@work",
        "postgresql://host/x?sslkey=key.pem",
        "https://host/x/me@work",
        "me@example.com wrote data/me@home/1.png",
        "prune_rate=0.2 keeps the key= of nothing",
    ],
)
def test_a_text_without_a_secret_stays_as_it_is(text):
    assert redact(text) == text


def test_the_address_in_the_environment_is_hidden_whatever_is_in_its_password(monkeypatch):
    address = f"postgre://me:a b {SECRET}@127.0.0.1/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert redact(f"unsupported URI '{address}'") == "unsupported URI 'postgre://127.0.0.1/db'"


def test_a_login_with_spaces_is_hidden_where_the_address_is_known():
    assert redact_url(f"http://me:a {SECRET}@host:5000") == "http://host:5000"


def test_a_long_hostile_message_takes_no_time():
    began = time.monotonic()
    describe_error(ValueError("://a" * 1_000_000))
    assert time.monotonic() < began + 2


def test_secrets_of_the_environment_are_hidden_wherever_they_are(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")  # too short to look for
    assert redact(f'password authentication failed for "{SECRET}"') == (
        'password authentication failed for "***"'
    )
    assert redact("abc") == "abc"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{SECRET}@127.0.0.1:9",
        f"http://me:a/{SECRET}@127.0.0.1:9",
        f"http://127.0.0.1:9/?token={SECRET}",
        f"postgressql://me:{SECRET}@127.0.0.1:9/x",
        f"mysql+nix://me:{SECRET}@127.0.0.1:9/x",
    ],
)
def test_a_tracking_server_that_does_not_answer_is_named_without_its_login(
    store, monkeypatch, capsys, uri
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as stop:
        run_command("run", ["--dataset=digits", "--epochs=1", "--rounds=1"])
    assert stop.value.code == 2
    printed = "".join(capsys.readouterr())
    assert "does not answer" in printed
    assert SECRET not in printed


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (
            401,
            "requires a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN",
        ),
        (403, "refuses access ("),
    ],
)
def test_a_tracking_server_that_refuses_access_says_why(store, monkeypatch, capsys, status, line):
    class Guard(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(status)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", f"//me:{SECRET}@"))
        with pytest.raises(SystemExit):
            run_command("run", ["--dataset=digits", "--epochs=1", "--rounds=1"])
        server.shutdown()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: the tracking server {address} {line}")
    assert SECRET not in last


def test_the_command_that_opens_the_ui_shows_no_login(monkeypatch):
    for uri in (f"postgresql://host/x?password={SECRET}", f"postgresql://me:{SECRET}@host/x"):
        monkeypatch.setattr(ui.mlflow, "get_tracking_uri", lambda uri=uri: uri)
        assert ui.command().endswith("$MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@host/x",
        f"postgresql://host/x?password={SECRET}",
        f"sqlite:///x.db?password={SECRET}",
        f"postgressql://me:{SECRET}@host/x",
        f"postgresql://me:{SECRET}@host:port/x",
    ],
)
def test_a_storage_with_a_password_is_rejected_since_parameters_are_logged(url):
    with pytest.raises(ValueError, match=r"^storage must ") as error:
        parse_url(url)
    assert SECRET not in describe_error(error.value)


def test_a_storage_without_a_password_may_name_its_user():
    assert parse_url("postgresql://me@host/x").username == "me"


def test_control_characters_are_escaped():
    assert printable("a\x1b[2Jb\rc\u202ed") == "a\\x1b[2Jb\\rc\\u202ed"
    assert describe_error(ValueError("no \x1b]0;x\x07 such")) == "no \\x1b]0;x\\x07 such"
    assert describe_error(OSError(2, "No such file", "a\nb")) == "No such file: a\\nb"
