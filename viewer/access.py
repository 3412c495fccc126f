"""Who may connect: the machine itself, or whoever knows the token.

Without a token the server listens on this machine only and answers only requests that were addressed to it, so that a
web page elsewhere cannot reach it through a name that points here. A websocket must come from a page of this server. A
token comes as ``?token=`` in the first address and stays in a cookie.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from scene_distill.core.errors import UserError

COOKIE = "scene_distill_viewer"
SHORTEST_TOKEN = 8


def is_this_machine(host: str) -> bool:
    """Whether an address or name means this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def checked_token(host: str, token: str) -> str:
    """The token to ask for: '' on this machine unless one is given; elsewhere the one given, or a new one when that is
    'new'. Raises `UserError` where one is needed and missing, or too short."""
    if token == "new":
        return secrets.token_urlsafe(18)
    if not token and not is_this_machine(host):
        raise UserError(
            f"--host {host} lets other machines connect, so a token is required: add --token SECRET, or --token new "
            "to have one made; with an SSH tunnel neither is needed"
        )
    if token and len(token) < SHORTEST_TOKEN:
        raise UserError(f"--token is too short; give at least {SHORTEST_TOKEN} characters, or --token new")
    return token


@dataclass(frozen=True)
class Access:
    """The rule of one server; ``token`` is empty where none is asked for."""

    token: str

    def refusal(self, path: str, host: str, origin: str | None, cookies: str) -> str | None:
        """Why a request is refused, in a sentence; None when it may pass. ``host`` and ``origin`` are its headers."""
        name = urlsplit(f"//{host}").hostname or ""
        if not self.token and not is_this_machine(name):
            return "this viewer answers only to localhost; use an SSH tunnel, or start it with --host and --token"
        if origin is not None and urlsplit(origin).netloc != host:
            return "this connection comes from another site's page"
        if self.token and not (self.given(path) or self._known(cookies)):
            return "the token is missing or wrong; open the address that the viewer printed"
        return None

    def given(self, path: str) -> bool:
        """Whether the address carries the token."""
        values = parse_qs(urlsplit(path).query).get("token", [""])
        return bool(self.token) and hmac.compare_digest(values[0].encode(), self.token.encode())

    def _known(self, cookies: str) -> bool:
        try:
            morsel = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.token.encode())

    def cookie(self) -> str:
        """The Set-Cookie header that keeps the token."""
        return f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
