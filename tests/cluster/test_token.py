from __future__ import annotations

import re

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.token import (
    ALPHABET,
    TOKEN_BITS,
    TOKEN_VARIABLE,
    Token,
    how_to_set,
    machine_id,
    new_machine_key,
    new_token,
    parse_token,
    token_from_environment,
)
from lowmem_seq.errors import UsageError
from tests.cluster.wires import KEY, TOKEN

CODE = "G14D2-PF2DB-SQQG2-8T5CY-4TQKF-FVAG7"
TOKENS = st.integers(0, 2**TOKEN_BITS - 1).map(Token)


def test_code_and_keys_are_the_same_on_every_system() -> None:
    assert TOKEN.code == CODE
    assert TOKEN.hub_keys.public == b"bL>-$jhB)v(c<D[seknq1BAHJm?eHdl2bXOmCezP"
    assert TOKEN.hub_keys.secret == b"eH2.&&Icx6>yciW=4<0g%fZZTx4uk<s9eNc>v40-"
    assert TOKEN.client_keys.public == b"I*b?lAx<idLo3:a{ZU&3w%<b[d={%{IspLRT7/14"
    assert TOKEN.client_keys.secret == b"@feGTg>seqWDp<%Xuu5+M#=([6YPTfVNaCY66j0r"
    assert machine_id(KEY) == "eae917f85b3de86f"


@given(TOKENS)
def test_a_code_is_read_back_however_it_is_typed(token: Token) -> None:
    code = token.code
    assert re.fullmatch(rf"([{ALPHABET}]{{5}}-){{5}}[{ALPHABET}]{{5}}", code)
    assert parse_token(code) == token
    assert parse_token(code.lower().replace("-", " ")) == token
    assert parse_token(f"  {code.replace('-', '')}\n") == token
    assert parse_token(code.replace("-", "\u2013").replace("0", "o").replace("1", "l")) == token


@given(TOKENS, st.integers(0, 29), st.integers(1, 31))
def test_one_wrong_sign_is_told_and_its_group_named(token: Token, place: int, step: int) -> None:
    signs = token.code.replace("-", "")
    other = ALPHABET[(ALPHABET.index(signs[place]) + step) % 32]
    with pytest.raises(UsageError) as caught:
        parse_token(signs[:place] + other + signs[place + 1 :])
    message = caught.value.message
    assert message.startswith("the join code has a typing error in it")
    if "group" in message:  # where the checksum fits one explanation only: nearly always
        assert f"group {place // 5 + 1}, " in message


def test_what_was_typed_wrong_is_said() -> None:
    assert refusal("G14D2-PF2DB-SQQG2-8T5CY-4TQKF-FVAG7".replace("SQQ", "SPQ")) == (
        "the join code has a typing error in it, most likely in group 3, SPQG2"
    )
    assert refusal(CODE.replace("8T5CY", "T85CY")) == (
        "the join code has a typing error in it, most likely in group 4, T85CY"
    )
    groups = CODE.split("-")
    assert refusal("-".join([groups[1], groups[0], *groups[2:]])) == "the join code has a typing error in it"
    assert refusal(CODE[:-1]) == "a join code has 30 letters and digits, this one has 29"
    assert refusal("") == "a join code has 30 letters and digits, this one has 0"
    assert refusal(CODE.replace("G", "U").replace("-", ".")) == "no join code has '.', 'U' in it"
    assert "\x1b" not in refusal(CODE + "\x1b[2J")


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_token(text)
    assert caught.value.hint == "type it as the host shows it: six groups of five letters and digits"
    return caught.value.message


def test_tokens_are_random_and_no_two_keys_are_alike() -> None:
    tokens = [new_token() for _ in range(200)]
    assert len({token.code for token in tokens}) == 200
    every = 0
    for token in tokens:
        every |= token.number
    assert every == 2**TOKEN_BITS - 1
    assert TOKEN_BITS >= 128
    keys = [key for token in tokens[:20] for key in (token.hub_keys, token.client_keys)]
    assert len({key.secret for key in keys}) == len({key.public for key in keys}) == 40
    assert all(zmq.curve_public(key.secret) == key.public for key in keys)


def test_what_is_shown_of_a_token_holds_no_secret() -> None:
    shown = f"{TOKEN!r} {TOKEN.hub_keys!r}"
    assert str(TOKEN.number) not in shown
    assert CODE not in shown
    assert TOKEN.hub_keys.secret.decode() not in shown


def test_the_token_comes_from_the_environment() -> None:
    assert token_from_environment({TOKEN_VARIABLE: f" {CODE.lower()}"}) == TOKEN
    for environment in ({}, {TOKEN_VARIABLE: " "}):
        with pytest.raises(UsageError, match=r"^there is no token: LOWMEM_SEQ_TOKEN is not set$") as caught:
            token_from_environment(environment)
        assert caught.value.hint == how_to_set()
    with pytest.raises(UsageError, match=r"^LOWMEM_SEQ_TOKEN: a join code has 30 .* 5$") as caught:
        token_from_environment({TOKEN_VARIABLE: "ABCDE"})
    assert caught.value.hint == how_to_set()


def test_the_hint_is_in_the_words_of_the_shell() -> None:
    assert how_to_set("linux").startswith("export LOWMEM_SEQ_TOKEN=CODE, ")
    assert how_to_set("win32").startswith('$env:LOWMEM_SEQ_TOKEN = "CODE", ')


def test_a_machines_id_tells_nothing_of_its_key() -> None:
    keys = [new_machine_key() for _ in range(100)]
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    assert len({machine_id(key) for key in keys}) == 100
    assert all(machine_id(key) not in key for key in keys)
