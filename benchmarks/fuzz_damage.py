"""Damage done to files, for the fuzz campaign (`fuzz_readers.py`): bytes, text, JSON, and what lies beneath gzip, zip,
glTF and base64. Everything is decided by the ``draw`` it is given, so that a case can be made again."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import zipfile
from typing import Any

NUMBERS = (0, 1, 2, 3, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
WORDS = ("NaN", "Infinity", "-1", "1e999", "99999999999999999999", "null", "[]", "{}", '""', "true", '"../../x"', "0.5",
         '"data:,"', "[[[[[[[[]]]]]]]]", "-9223372036854775808")  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four accidents, or a hostile number or two."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        # Headers are short and matter most.
        place = draw.randrange(min(len(changed), draw.choice((16, 64, 400, 1 << 30))))
        kind = draw.randrange(8)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            changed[place] = draw.randrange(256)
        elif kind == 3:
            width = draw.choice((1, 2, 4, 8))
            changed[place : place + width] = (draw.choice(NUMBERS) % 256**width).to_bytes(width, "little")
        elif kind == 4:
            changed[place : place + draw.randrange(64)] = b""
        elif kind == 5:
            changed[place:place] = changed[place : place + draw.randrange(1, 200)] * draw.choice((1, 2, 50))
        elif kind == 6:
            changed[place : place + 4] = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"))
        else:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(40)))
    return bytes(changed)


def damaged_text(data: bytes, draw: random.Random) -> bytes:
    """Text with a number or a value replaced, or with brackets that never close."""
    text = data.decode("latin-1")
    marks = [i for i, letter in enumerate(text) if letter.isdigit()]
    if not marks or draw.random() < 0.3:
        return damaged(data, draw)
    start = end = draw.choice(marks)
    while end < len(text) and (text[end].isalnum() or text[end] in "+-."):
        end += 1
    return (text[:start] + draw.choice((*WORDS, *map(str, NUMBERS), "[" * 20_000)) + text[end:]).encode("latin-1")


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with a random value replaced, or a key gone."""
    if draw.random() < 0.3:
        return damaged_text(data, draw)
    value = json.loads(data)
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return damaged_text(data, draw)
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and draw.random() < 0.8:
            place = place[key]
            continue
        if draw.random() < 0.3:
            del place[key]
        else:
            place[key] = draw.choice((*NUMBERS, -1, 1e308, "x" * 50, None, [], {}, True, "../../etc", 0.5, [[1]] * 9))
        return json.dumps(value).encode()


def damaged_gzip(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged(data, draw)
    if draw.random() < 0.1:  # a bomb
        return gzip.compress(gzip.decompress(data)[:16] + bytes(1 << draw.randint(20, 27)), 1)
    return gzip.compress(damaged(gzip.decompress(data), draw), 1)


def damaged_zip(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return damaged(data, draw)
    victim = None
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(result, "w") as after:
        victim = draw.choice([*before.namelist(), "meta.json"])
        for name in before.namelist():
            content = before.read(name)
            if name == victim and draw.random() < 0.15:
                content = bytes(1 << draw.randint(20, 26))  # a bomb
            elif name == victim:
                content = (damaged_json if name.endswith(".json") else damaged)(content, draw)
            if name != victim or draw.random() < 0.95:
                kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
                after.writestr(name, content, zipfile.ZIP_STORED if name != victim else kind)
    return result.getvalue()


def damaged_glb(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged(data, draw)
    length = int.from_bytes(data[12:16], "little")
    text = damaged_json(data[20 : 20 + length], draw)
    return data[:12] + len(text).to_bytes(4, "little") + data[16:20] + text + data[20 + length :]


def damaged_html(data: bytes, draw: random.Random) -> bytes:
    start = data.index(b'octet-stream">') + 14
    end = data.index(b"<", start)
    if draw.random() < 0.4:
        short = data[:start][-400:] + data[start:end] + data[end:][:200]
        return damaged(short, draw)
    inner = damaged_gzip(base64.b64decode(data[start:end]), draw)
    return data[:start] + base64.b64encode(inner) + data[end:]
