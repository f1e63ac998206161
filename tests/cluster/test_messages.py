from __future__ import annotations

import json
import struct
import zlib
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.frames import (
    CLIENT_CODEC,
    HUB_CODEC,
    MOST_HEADER_BYTES,
    MOST_PAYLOAD_BYTES,
    FrameError,
    Received,
)
from lowmem_seq.cluster.messages import MOST_MACHINES, Beat, FromClient, FromHub, Peer, Peers, Progress, Want
from tests.cluster.wires import FROM_CLIENT, FROM_HUB, MACHINE, hello, weights

# What other systems' programs must write and read, byte by byte. A change here is a new format, with a new number.
CLIENT_HEADERS = [
    b'{"format":1,"message":{"kind":"hello","machine":"eae917f85b3de86f",'
    b'"machine_key":"00112233445566778899aabbccddeeff","name":"MacBook B\xc3\xbcro","program":"0.1.0",'
    b'"torch":"2.13.0","python":"3.12.1","system":"Darwin arm64","experiment":"e0e0e0e0e0e0e0e0",'
    b'"data":"d0d0d0d0d0d0d0d0","layout":"10a70a70a70a70a7","device":"mps","precision":"fp32",'
    b'"effective_batch":128,"samples_per_second":812.5,"base":{"cluster":"00c1a5be","branch":"b4a2c400",'
    b'"round":7,"accepted":4480}},"payloads":[]}',
    b'{"format":1,"message":{"kind":"beat","round":7,"state":"training","samples_per_second":812.5,'
    b'"leases":[{"lease":3,"done":640}]},"payloads":[]}',
    b'{"format":1,"message":{"kind":"want","request":12,"seconds":30.0},"payloads":[]}',
    b'{"format":1,"message":{"kind":"delta","encoding":"int8","index":1,"count":2,"total_bytes":7,'
    b'"delta":5,"round":7,"samples":1280,"ranges":[[4480,5120],[6400,7040]]},"payloads":[{"bytes":3,'
    b'"crc32":3126738699}]}',
    b'{"format":1,"message":{"kind":"weights_wanted","base":{"cluster":"00c1a5be","branch":"b4a2c400",'
    b'"round":7,"accepted":4480},"part":"weights","index":0},"payloads":[]}',
    b'{"format":1,"message":{"kind":"weights_wanted","base":null,"part":"average","index":29},"payloads":[]}',
    b'{"format":1,"message":{"kind":"ledger","base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,'
    b'"accepted":4480},"ledger":"{\\"format_version\\":1}"},"payloads":[]}',
    b'{"format":1,"message":{"kind":"upload","encoding":"fp32","index":0,"count":1,"total_bytes":4,'
    b'"base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,"accepted":4480}},'
    b'"payloads":[{"bytes":4,"crc32":2896259690}]}',
    b'{"format":1,"message":{"kind":"pack_wanted","data":null,"part":"description","index":0},"payloads":[]}',
    b'{"format":1,"message":{"kind":"pack_wanted","data":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f'
    b'0f0f0f0f0f0f","part":"train.images","index":701},"payloads":[]}',
    b'{"format":1,"message":{"kind":"bye","reason":"stopped","text":"Ctrl+C"},"payloads":[]}',
    b'{"format":1,"message":{"kind":"probe","request":3,"want_bytes":262144},"payloads":[]}',
    b'{"format":1,"message":{"kind":"probe","request":4,"want_bytes":0},"payloads":[{"bytes":4,'
    b'"crc32":2896259690}]}',
]
HUB_HEADERS = [
    b'{"format":1,"message":{"kind":"welcome","base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,'
    b'"accepted":4480},"total":1800000,"settings":{"round_seconds":30.0,"beat_seconds":1.0,'
    b'"lost_after_seconds":5.0,"encoding":"int8","dense_rounds":4,"outer":"momentum","outer_rate":0.5,'
    b'"outer_momentum":0.9},"peers":[{"machine":"eae917f85b3de86f","name":"MacBook B\xc3\xbcro",'
    b'"device":"mps","precision":"fp32","effective_batch":128,"samples_per_second":812.5,"accepted":2560,'
    b'"state":"training"}]},"payloads":[]}',
    b'{"format":1,"message":{"kind":"refused","field":"data","ours":"d0d0d0d0","theirs":"d1d1d1d1",'
    b'"hint":"lowmem-seq data list"},"payloads":[]}',
    b'{"format":1,"message":{"kind":"leased","request":12,"leases":[{"lease":3,"range":[5120,6400],'
    b'"seconds":60.0}],"wait_seconds":null},"payloads":[]}',
    b'{"format":1,"message":{"kind":"leased","request":13,"leases":[],"wait_seconds":2.5},"payloads":[]}',
    b'{"format":1,"message":{"kind":"weights","encoding":"fp32","index":0,"count":2,"total_bytes":8,'
    b'"part":"weights","base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,"accepted":4480}},'
    b'"payloads":[{"bytes":4,"crc32":2896259690}]}',
    b'{"format":1,"message":{"kind":"update","encoding":"bf16","index":0,"count":1,"total_bytes":2,'
    b'"from_round":6,"base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,"accepted":4480},'
    b'"merged":[{"machine":"eae917f85b3de86f","delta":5,"samples":1280}]},"payloads":[{"bytes":2,'
    b'"crc32":3426527113}]}',
    b'{"format":1,"message":{"kind":"ledger","base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,'
    b'"accepted":4480},"ledger":"{\\"format_version\\":1}"},"payloads":[]}',
    b'{"format":1,"message":{"kind":"pack","data":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"'
    b',"part":"test.labels","index":0,"total_bytes":4},"payloads":[{"bytes":4,"crc32":871461106}]}',
    b'{"format":1,"message":{"kind":"upload_wanted","base":{"cluster":"00c1a5be","branch":"b4a2c400",'
    b'"round":7,"accepted":4480}},"payloads":[]}',
    b'{"format":1,"message":{"kind":"peers","round":7,"accepted":4480,'
    b'"peers":[{"machine":"eae917f85b3de86f","name":"MacBook B\xc3\xbcro","device":"mps",'
    b'"precision":"fp32","effective_batch":128,"samples_per_second":812.5,"accepted":2560,'
    b'"state":"training"}]},"payloads":[]}',
    b'{"format":1,"message":{"kind":"finished","base":{"cluster":"00c1a5be","branch":"b4a2c400","round":7,'
    b'"accepted":4480}},"payloads":[]}',
    b'{"format":1,"message":{"kind":"probed","request":3,"unix_seconds":1795000000.5,"program":"0.1.0",'
    b'"torch":"2.13.0","python":"3.12.1","system":"Darwin arm64"},"payloads":[{"bytes":4,"crc32":2896259690}]}',
    b'{"format":1,"message":{"kind":"go_away","reason":"stopping","text":"the host ends"},"payloads":[]}',
]


@pytest.mark.parametrize(("said", "header"), list(zip(FROM_CLIENT, CLIENT_HEADERS, strict=True)))
def test_what_a_client_says_is_these_bytes(said: tuple[FromClient, tuple[bytes, ...]], header: bytes) -> None:
    message, payloads = said
    assert CLIENT_CODEC.encode(message, payloads) == [header, *payloads]
    assert CLIENT_CODEC.decode([header, *payloads]) == Received(message, payloads)


@pytest.mark.parametrize(("said", "header"), list(zip(FROM_HUB, HUB_HEADERS, strict=True)))
def test_what_the_hub_says_is_these_bytes(said: tuple[FromHub, tuple[bytes, ...]], header: bytes) -> None:
    message, payloads = said
    assert HUB_CODEC.encode(message, payloads) == [header, *payloads]
    assert HUB_CODEC.decode([header, *payloads]) == Received(message, payloads)


def test_every_kind_has_its_bytes() -> None:
    assert {type(message) for message, _ in FROM_CLIENT} == set(get_args(FromClient))
    assert {type(message) for message, _ in FROM_HUB} == set(get_args(FromHub))


def test_a_payload_is_described_by_its_length_and_crc_32() -> None:
    header, payload = HUB_CODEC.encode(weights(0, 1, 8), [memoryview(struct.pack("<2f", 1.5, -2.0))])
    assert bytes(payload) == b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"
    assert json.loads(bytes(header))["payloads"] == [{"bytes": 8, "crc32": zlib.crc32(bytes(payload))}]


def changed(header: bytes, **changes: Any) -> bytes:
    """The header with other values in its message, or (`format`, `payloads`) beside it."""
    fields = json.loads(header)
    for name, value in changes.items():
        (fields if name in fields else fields["message"])[name] = value
    return json.dumps(fields).encode()


HELLO, BEAT, WANT, DELTA = CLIENT_HEADERS[:4]
PACK_WANTED, PROBE = CLIENT_HEADERS[9], CLIENT_HEADERS[11]
FAULTS: list[tuple[bytes, str]] = [
    (b"", "the header can't be read: "),
    (b"GET / HTTP/1.1", "the header can't be read: "),
    (b"\xff" * 100, "the header can't be read: "),
    (b"[" * 60_000, "the header can't be read: "),
    (b'{"a":' * 10_000, "the header can't be read: "),
    (b"null", "the header can't be read: "),
    (WANT[:-1], "the header can't be read: "),
    (WANT + b"{}", "the header can't be read: "),
    (WANT.replace(b'"request":12', b'"request":12,"also":1'), "the header can't be read: "),
    (WANT.replace(b'"request":12,', b""), "the header can't be read: "),
    (changed(WANT, kind="obey"), "the header can't be read: Invalid value 'obey'"),
    (changed(WANT, kind="welcome"), "the header can't be read: Invalid value 'welcome'"),
    (changed(WANT, kind=None), "the header can't be read: "),
    (changed(WANT, request=-1), "the header can't be read: "),
    (changed(WANT, request=2**31), "the header can't be read: "),
    (changed(WANT, request=10**400), "the header can't be read: "),
    (changed(WANT, request=True), "the header can't be read: "),
    (changed(WANT, seconds=1e300), "the header can't be read: "),
    (changed(WANT, seconds=float("nan")), "the header can't be read: "),
    (WANT.replace(b"30.0", b"1e999"), "the header can't be read: "),
    (changed(WANT, format=2), "the other side speaks format 2 of the wire, this one format 1"),
    (b'{"message":[],"format":9}', "the other side speaks format 9 of the wire, this one format 1"),
    (changed(WANT, format="1"), "the header can't be read: "),
    (changed(BEAT, state="asleep"), "the header can't be read: Invalid enum value 'asleep'"),
    (changed(BEAT, leases=[{"lease": 1, "done": 1}] * 65), "the header can't be read: "),
    (changed(HELLO, machine=MACHINE + "\n"), "the header can't be read: "),
    (changed(HELLO, machine=MACHINE.upper()), "the header can't be read: "),
    (changed(HELLO, name="x" * 65), "the header can't be read: "),
    (changed(HELLO, effective_batch=0), "the header can't be read: "),
    (changed(DELTA, ranges=[[5, 5]]), "the header can't be read: the range [5, 5) is empty"),
    (changed(DELTA, ranges=[[5, 6, 7]]), "the header can't be read: "),
    (changed(DELTA, ranges=[[5]]), "the header can't be read: "),
    (changed(DELTA, ranges=[]), "the header can't be read: "),
    (changed(DELTA, ranges=[[0, 2**53]]), "the header can't be read: "),
    (changed(DELTA, index=2), "the header can't be read: there is no piece 2 of 2"),
    (changed(DELTA, count=8), "the header can't be read: 7 bytes can't be in 8 pieces"),
    (changed(DELTA, total_bytes=2**33 + 1), "the header can't be read: "),
    (changed(DELTA, encoding="zip"), "the header can't be read: Invalid enum value 'zip'"),
    (changed(PACK_WANTED, part="../../home"), "the header can't be read: Invalid enum value '../../home'"),
    (changed(PACK_WANTED, part="pack.json"), "the header can't be read: Invalid enum value 'pack.json'"),
    (changed(PACK_WANTED, data="../0f0f0f0f0f0f"), "the header can't be read: "),
    (changed(PACK_WANTED, index=-1), "the header can't be read: "),
    (changed(PACK_WANTED, index=2**31), "the header can't be read: "),
    (changed(PROBE, want_bytes=MOST_PAYLOAD_BYTES + 1), "the header can't be read: Expected `int` <= 262144"),
    (WANT + b" " * MOST_HEADER_BYTES, "a header has at most 65,536 bytes, this one "),
]


@pytest.mark.parametrize(("header", "words"), FAULTS)
def test_a_header_with_a_fault_is_refused_and_the_fault_is_named(header: bytes, words: str) -> None:
    with pytest.raises(FrameError) as caught:
        CLIENT_CODEC.decode([header])
    assert caught.value.message.startswith(words)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_another_format_says_what_helps() -> None:
    with pytest.raises(FrameError) as caught:
        HUB_CODEC.decode([changed(HUB_HEADERS[0], format=2)])
    assert caught.value.hint == "install the same version of lowmem-seq on every machine"


def test_payloads_must_be_what_the_header_says() -> None:
    frames = [bytes(frame) for frame in HUB_CODEC.encode(weights(0, 2, 4), [b"abcd"])]
    for bad, words in [
        (frames[:1], "the header describes 1 payloads, 0 came"),
        ([*frames, b""], "the header describes 1 payloads, 2 came"),
        ([frames[0], b"abc"], "payload 0 has 3 bytes, the header says 4"),
        ([frames[0], b"abce"], "payload 0 was damaged on its way: its CRC-32 is another"),
        ([], "a message has 1 to 5 frames, not 0"),
        ([frames[0]] * 6, "a message has 1 to 5 frames, not 6"),
        ([changed(frames[0], total_bytes=3), b"abcd"], "a piece comes as one payload, "),
        ([changed(frames[0], payloads=[]), b""][:1], "a piece comes as one payload, "),
        ([changed(frames[0], payloads=[{"bytes": 0, "crc32": 0}]), b""], "a piece comes as one payload, "),
        (
            [changed(HUB_HEADERS[2], payloads=[{"bytes": 1, "crc32": zlib.crc32(b"a")}]), b"a"],
            "a message of the kind Leased comes without payloads",
        ),
        (
            [changed(HUB_HEADERS[11], payloads=[{"bytes": 0, "crc32": 0}] * 2), b"", b""],
            "a message of the kind Probed comes with one payload at the most",
        ),
        ([changed(frames[0], payloads=[{"bytes": 2**40, "crc32": 0}]), b""], "the header can't be read: "),
        ([changed(frames[0], payloads=[{"bytes": 1, "crc32": 0}] * 5)], "the header can't be read: "),
    ]:
        with pytest.raises(FrameError) as caught:
            HUB_CODEC.decode(bad)
        assert caught.value.message.startswith(words)


def test_the_hub_does_not_hear_what_only_it_may_say() -> None:
    for header in HUB_HEADERS:
        if b'"kind":"ledger"' not in header:  # both say that
            with pytest.raises(FrameError, match="Invalid value '"):
                CLIENT_CODEC.decode([header])


def test_the_longest_piece_and_the_fullest_header_have_room() -> None:
    data = bytes(MOST_PAYLOAD_BYTES)
    assert HUB_CODEC.decode([bytes(f) for f in HUB_CODEC.encode(weights(0, 1, len(data)), [data])]).payloads == (
        data,
    )
    name = "\x01" * 64  # six bytes each in JSON
    peer = Peer(MACHINE, name, name, name, 2**31 - 1, 1 / 3, 2**53 - 1, "evaluating")
    header, *_ = HUB_CODEC.encode(Peers(2**31 - 1, 2**53 - 1, (peer,) * MOST_MACHINES))
    assert 40_000 < len(header) <= MOST_HEADER_BYTES


def test_what_the_other_side_would_refuse_is_not_sent() -> None:
    with pytest.raises(FrameError, match=">= 0"):
        CLIENT_CODEC.encode(Want(-1, 30.0))
    with pytest.raises(FrameError, match="got `null`"):
        CLIENT_CODEC.encode(Want(1, float("nan")))
    with pytest.raises(FrameError, match="length <= 64"):
        CLIENT_CODEC.encode(Beat(7, "training", 1.0, (Progress(1, 1),) * 65))
    with pytest.raises(FrameError, match="<= 262144"):
        HUB_CODEC.encode(weights(0, 1, MOST_PAYLOAD_BYTES + 1), [bytes(MOST_PAYLOAD_BYTES + 1)])
    with pytest.raises(FrameError, match="comes without payloads"):
        CLIENT_CODEC.encode(Want(1, 1.0), [b"a"])
    with pytest.raises(FrameError, match="a piece comes as one payload"):
        HUB_CODEC.encode(weights(0, 1, 4))


@given(st.lists(st.binary(max_size=200), max_size=7))
def test_random_frames_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(FrameError):
        CLIENT_CODEC.decode(frames)


@given(st.sampled_from(CLIENT_HEADERS[:3]), st.data())
def test_a_damaged_header_is_refused_or_means_something_within_the_limits(
    header: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = CLIENT_CODEC.decode([bytes(damaged)])
    except FrameError:
        return
    assert CLIENT_CODEC.decode([bytes(CLIENT_CODEC.encode(received.message)[0])]) == received


def test_messages_are_values() -> None:
    assert hello() == msgspec.structs.replace(hello())
    with pytest.raises(AttributeError):
        hello().name = "other"  # type: ignore[misc]
