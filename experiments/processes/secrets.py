"""Secrets: remove passwords and tokens from messages, tags and parameters.

They are in URLs, as a login (`scheme://user:password@host`) or in the query
(`?password=...&sslpassword=...`), and in the environment (`VARIABLES`).
"""

import os
import re

VARIABLES = (  # of the environment, whose values are never shown
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "POSTGRES_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
URLS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")  # of the environment; may have a login
MIN_LENGTH = 6  # characters of a value; shorter ones occur in ordinary words
REDACTED = "***"

# Up to the last @: a password that is not escaped may contain @, / and quotes. What is left as it
# is: an @ in the paths of files, buckets and hosts without a port, and our own examples.
_LOGIN_STARTS = r"(?<!\bs3)(?<!\bgs)://(?!/)(?![\w.-]+/)(?!<user>@)"
_LOGIN_IN_TEXT = re.compile(rf"{_LOGIN_STARTS}\S*@")
_LOGIN = re.compile(rf"{_LOGIN_STARTS}.*@", re.S)
_QUERY = re.compile(
    r"((?:^|[?&;\s'\"(])[\w.-]*(?:passw(?:or)?d|pwd|pass|token|secret|credential|signature|sig|"
    r"(?<!ssl)key)=)('[^']*'|\"[^\"]*\"|[^\s&;<>]+)",
    re.I,
)


def redact_url(url: str) -> str:
    """A URL without the login and the tokens in it."""
    return _redact_query(_LOGIN.sub("://", url))


def _redact_query(text: str) -> str:
    return _QUERY.sub(rf"\1{REDACTED}", text)


def redact(text: str) -> str:
    """The text without logins, passwords, tokens and the values of `VARIABLES`."""
    for name in URLS:
        url = os.environ.get(name, "")
        if has_secret(url):  # a password in it may contain spaces
            text = text.replace(url, redact_url(url))
    text = _redact_query(_LOGIN_IN_TEXT.sub("://", text))
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= MIN_LENGTH:
            text = text.replace(value, REDACTED)
    return text


def has_secret(url: str) -> bool:
    """Whether a URL contains a user name, a password or a token."""
    return redact_url(url) != url
