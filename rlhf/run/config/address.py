"""Addresses of judges, and which environment variable may be sent as the key to which host.

A configuration may come from somebody else. It names an address and a variable; were any pair allowed, it could send any
secret of the machine anywhere.
"""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from rewards.shown import without_credentials

OWN = "CHORUS_"
HOSTS = {
    "OPENAI_API_KEY": "api.openai.com",
    "AZURE_OPENAI_API_KEY": ".openai.azure.com",
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "GROQ_API_KEY": "api.groq.com",
    "TOGETHER_API_KEY": "api.together.xyz",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "DEEPSEEK_API_KEY": "api.deepseek.com",
    "FIREWORKS_API_KEY": "api.fireworks.ai",
    "HF_TOKEN": "router.huggingface.co",
}
DEFAULT_VARIABLE = "OPENAI_API_KEY"

Parallel = Annotated[int, Field(ge=1, le=256, description="Requests to the address at a time.")]
Timeout = Annotated[
    float, Field(gt=0, le=1e6, description="Longest wait for the next bytes of the server at the address.")
]
Retries = Annotated[
    int,
    Field(ge=0, le=100, description="Further tries after a time-out, a 429 or a 5xx answer of the address."),
]


def check_address(address: str) -> None:
    """Refuse an address that is none, or that holds a user name, a password, a query or a fragment.

    Raises:
      ValueError: without the secret.
    """
    shown = without_credentials(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port  # a port that is no number is found here
    except ValueError as error:
        raise ValueError(f"address {shown!r} is none ({error}); write http://host:port/v1") from None
    del port
    if "@" in parts.netloc:
        raise ValueError(
            f"address {shown!r} holds a user name or password, which would be written to files; take it out and put "
            "the key into the environment variable named by api_key_variable"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"address {shown!r} is none; write http://host:port/v1")
    if parts.query or parts.fragment:
        plain = parts._replace(query="", fragment="").geturl()
        raise ValueError(
            f"address {plain!r} goes on with ? or #, where keys are put; take that out and put the key into the "
            "environment variable named by api_key_variable"
        )


def may_send(variable: str, address: str) -> bool:
    """Whether the value of an environment variable may be sent to the host of an address: one of Chorus' own, or the
    one that belongs to that host, and then only encrypted."""
    if variable.startswith(OWN):
        return True
    parts, host = urlsplit(address), HOSTS.get(variable)
    if host is None or parts.scheme != "https":
        return False
    return (parts.hostname or "") == host or (host.startswith(".") and (parts.hostname or "").endswith(host))


def refusal(variable: str, address: str) -> str:
    """Why a variable is not sent, and the fix."""
    right = (
        f"it belongs to https://{HOSTS[variable].lstrip('.')}"
        if variable in HOSTS
        else "nothing names it for that"
    )
    return (
        f"api_key_variable {variable!r} may not be sent to {without_credentials(address)!r} ({right}); put the key for "
        f"this host into a variable that begins with {OWN}, such as CHORUS_JUDGE_KEY, and name that"
    )
