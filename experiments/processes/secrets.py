"""Secrets: no password or token in a message, a tag or a parameter.

Addresses carry them as a login, `scheme://user:password@host`, or in a query,
`?password=...&sslpassword=...`. The environment has those of MLflow and PostgreSQL.
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
SHORTEST = 6  # characters of a value that is looked for: a shorter one is in many words
HIDDEN = "***"

# Up to the last @: a password that is not escaped may contain @, / and quotes. The paths of files
# and of buckets may contain an @ too.
_LOGIN = re.compile(r"(?<!\bs3)(?<!\bgs)://(?!/)[^\s<>]*@")
_QUERY = re.compile(
    r"((?:^|[?&;\s'\"(])[\w.-]*(?:passw(?:or)?d|pwd|pass|token|secret|credential|signature|sig|"
    r"(?<!ssl)key)=)('[^']*'|\"[^\"]*\"|[^\s&;<>]+)",
    re.I,
)


def without_secrets(address: str) -> str:
    """An address without the login and the tokens in it."""
    return _QUERY.sub(rf"\1{HIDDEN}", _LOGIN.sub("://", address))


def hide(text: str) -> str:
    """A text without the logins, passwords and tokens in it, and without those of `VARIABLES`."""
    text = without_secrets(text)
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def has_secret(address: str) -> bool:
    """Whether an address contains a user name, a password or a token."""
    return without_secrets(address) != address
