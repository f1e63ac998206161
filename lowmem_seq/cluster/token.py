"""The token that lets a machine into a cluster, and the keys that both ends make of it.

A token is 130 random bits. People see it as a join code: thirty letters and digits in six groups, the last four of
which tell a typing error. Whoever knows the token knows every key; nobody else can join, read, or stand in for the
hub: the hub's public key never crosses the wire in clear, and no handshake begins without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

from lowmem_seq.cluster.machine import machine_id as machine_id
from lowmem_seq.cluster.machine import new_machine_key as new_machine_key
from lowmem_seq.errors import UsageError

TOKEN_VARIABLE = "LOWMEM_SEQ_TOKEN"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's: no I, L, O or U, so that no two signs look alike and no code spells a word."""
LOOKALIKES = str.maketrans("OIL", "011")
RANDOM_SIGNS, CHECK_SIGNS, GROUP_SIGNS = 26, 4, 5
CODE_SIGNS = RANDOM_SIGNS + CHECK_SIGNS
TOKEN_BITS = 5 * RANDOM_SIGNS
SEPARATORS = re.compile(r"[\s\-_\u2010-\u2015\u2212]+")
"""What stands between groups, however an editor or a chat window wrote it."""


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair, as ZeroMQ takes it: 40 characters of Z85 each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Token:
    """A cluster's secret. Its `repr` shows nothing of it, so that no log does."""

    number: int = field(repr=False)
    """Below 2 ** TOKEN_BITS."""

    @property
    def code(self) -> str:
        """The join code: `ABCDE-…`, six groups of five."""
        random = "".join(ALPHABET[self.number >> 5 * place & 31] for place in reversed(range(RANDOM_SIGNS)))
        signs = random + _check(random)
        return "-".join(signs[start : start + GROUP_SIGNS] for start in range(0, CODE_SIGNS, GROUP_SIGNS))

    @property
    def hub_keys(self) -> Keys:
        """The key pair of the hub; clients use its public half."""
        return self._keys(b"lowmem-seq hub 1")

    @property
    def client_keys(self) -> Keys:
        """The one key pair of all clients; the hub lets in whoever proves to have it."""
        return self._keys(b"lowmem-seq peer1")

    def _keys(self, label: bytes) -> Keys:
        seed = self.number.to_bytes(TOKEN_BITS // 8 + 1, "big")
        secret = z85.encode(hashlib.blake2b(key=seed, person=label, digest_size=32).digest())
        return Keys(public=zmq.curve_public(secret), secret=secret)


def new_token() -> Token:
    """Return a token that nobody has had."""
    return Token(secrets.randbits(TOKEN_BITS))


def parse_token(text: str) -> Token:
    """Return the token of a join code; case, spaces and dashes don't matter, nor O for 0, or I and L for 1.

    Raises:
        UsageError: it is no join code. The message says what is wrong with it, without repeating more than a group.
    """
    signs = SEPARATORS.sub("", text).upper().translate(LOOKALIKES)
    hint = "type it as the host shows it: six groups of five letters and digits"
    strange = sorted({sign for sign in signs if sign not in ALPHABET})
    if strange:
        raise UsageError(f"no join code has {', '.join(map(repr, strange[:5]))} in it", hint)
    if len(signs) != CODE_SIGNS:
        raise UsageError(f"a join code has {CODE_SIGNS} letters and digits, this one has {len(signs)}", hint)
    if not _is_whole(signs):
        raise UsageError("the join code has a typing error in it" + _place_of_error(signs), hint)
    number = 0
    for sign in signs[:RANDOM_SIGNS]:
        number = number << 5 | ALPHABET.index(sign)
    return Token(number)


def token_from_environment(environment: Mapping[str, str] = os.environ) -> Token:
    """Return the token in LOWMEM_SEQ_TOKEN.

    Raises:
        UsageError: it is not set, or no join code.
    """
    text = environment.get(TOKEN_VARIABLE, "")
    if not text.strip():
        raise UsageError(f"there is no token: {TOKEN_VARIABLE} is not set", how_to_set())
    try:
        return parse_token(text)
    except UsageError as error:
        raise UsageError(f"{TOKEN_VARIABLE}: {error.message}", how_to_set()) from error


def how_to_set(platform: str = sys.platform) -> str:
    """Return the hint that says how to give a machine the token, in the words of its shell."""
    command = f'$env:{TOKEN_VARIABLE} = "CODE"' if platform == "win32" else f"export {TOKEN_VARIABLE}=CODE"
    return f"{command}, with the join code that the host shows (`lowmem-seq token` makes one for both)"


def _check(random: str) -> str:
    digest = hashlib.blake2b(random.encode("ascii"), person=b"lowmem-seq code1", digest_size=CHECK_SIGNS).digest()
    return "".join(ALPHABET[byte & 31] for byte in digest)


def _is_whole(signs: str) -> bool:
    return signs[RANDOM_SIGNS:] == _check(signs[:RANDOM_SIGNS])


def _place_of_error(signs: str) -> str:
    """Say which group to look at, where one wrong sign, or two neighbours swapped, explain the error."""
    places = {place for place, code in _one_step_away(signs) if _is_whole(code)}
    if len(places) != 1:
        return ""
    group = places.pop() // GROUP_SIGNS
    return f", most likely in group {group + 1}, {signs[group * GROUP_SIGNS :][:GROUP_SIGNS]}"


def _one_step_away(signs: str) -> Iterator[tuple[int, str]]:
    """Yield the first place that differs, and the code, of all that one slip could have made these signs of."""
    for place, sign in enumerate(signs):
        for other in ALPHABET:
            if other != sign:
                yield place, signs[:place] + other + signs[place + 1 :]
        pair = signs[place : place + 2]
        if len(set(pair)) == 2:
            yield place, signs[:place] + pair[::-1] + signs[place + 2 :]
