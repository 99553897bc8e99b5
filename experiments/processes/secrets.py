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

# Up to the last @: a password that is not escaped may contain @ and /.
_LOGIN = re.compile(r"://[^\s'\"<>]*@")
_QUERY = re.compile(
    r"([?&;\s][\w.-]*(?:password|passwd|pwd|token|secret|credential|key)=)[^\s&;'\"<>)]+", re.I
)


def hide(text: str) -> str:
    """A text without the logins, passwords and tokens in it."""
    text = _QUERY.sub(rf"\1{HIDDEN}", _LOGIN.sub("://", text))
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def has_secret(address: str) -> bool:
    """Whether an address contains a user name, a password or a token."""
    return hide(address) != address
