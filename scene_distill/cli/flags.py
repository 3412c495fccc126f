"""Flags that a command takes before tyro reads the others."""

from __future__ import annotations

from scene_distill.core.errors import UserError


def taken(arguments: list[str], flag: str) -> tuple[str, list[str]]:
    """The value of a flag ('' where it is not given), and the other arguments."""
    for index, word in enumerate(arguments):
        if word == flag or word.startswith(f"{flag}="):
            value = word.partition("=")[2] or (arguments[index + 1] if index + 1 < len(arguments) else "")
            if not value or (word == flag and value.startswith("-")):
                raise UserError(f"{flag} needs a value")
            return value, arguments[:index] + arguments[index + (1 if "=" in word else 2) :]
    return "", arguments
