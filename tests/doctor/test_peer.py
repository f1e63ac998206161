"""`doctor --peer` against the real end of a hub, on loopback; and what is said of lines of all kinds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq import __version__
from lowmem_seq.cluster import probes
from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.knock import knock
from lowmem_seq.cluster.membership import take_part
from lowmem_seq.cluster.messages import GoAway
from lowmem_seq.cluster.token import TOKEN_VARIABLE, new_token
from lowmem_seq.data.pack import Pack
from lowmem_seq.doctor import line
from lowmem_seq.doctor.finding import Finding
from lowmem_seq.doctor.line import Measured, Surveyor
from lowmem_seq.doctor.peer import check_peer, judge
from lowmem_seq.errors import ClusterError
from tests.builders import free_port, make_run, tiny_config
from tests.cluster.processes import fresh_hub
from tests.cluster.wires import TOKEN
from tests.doctor.builders import verdicts

KNOWN = {TOKEN_VARIABLE: TOKEN.code}
GOOD = Measured(0.004, 0.02, 0.01, 3e6, 4e6, __version__, "2.13.0", "3.12.1", "Darwin arm64")
FIRST = [("address", "pass"), ("port", "pass")]


class ServedHub:
    """A hub's end with a thread that listens, as a hub does; what it hands on is kept."""

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.end = HubEnd(TOKEN, 0, "127.0.0.1")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            arrived = self.end.receive(0.1)
            if arrived is not None:
                self.arrived.append(arrived)

    def stop(self) -> None:
        self._over.set()
        self.end.wake()
        self._thread.join()
        self.end.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedHub]:
    monkeypatch.setattr(line, "SPEED_BYTES", 2**20)
    served = ServedHub()
    yield served
    served.stop()


def found(port: int, environment: Mapping[str, str] = KNOWN) -> list[Finding]:
    return list(check_peer("127.0.0.1", port, environment))


def test_a_host_that_can_be_trained_with_passes_and_its_run_hears_nothing(hub: ServedHub) -> None:
    findings = found(hub.end.port)
    checks = ("address", "port", "token", "round trip", "speed", "clocks", "versions")
    assert verdicts(findings) == [(check, "pass") for check in checks]
    figures = {one.check: one.figures for one in findings}
    assert 0 < figures["round trip"]["median_seconds"] <= figures["round trip"]["longest_seconds"]
    assert figures["speed"]["up_bytes_per_second"] > 1e6
    assert figures["speed"]["down_bytes_per_second"] > 1e6
    assert abs(figures["clocks"]["host_ahead_seconds"]) < 1.0
    assert (hub.arrived, hub.end.machines) == ([], ())


def test_a_real_hub_s_process_answers_and_counts_nobody(
    tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN.code)
    monkeypatch.setattr(line, "SPEED_BYTES", 2**20)
    with fresh_hub(tmp_path / "host", tiny_pack) as port:
        assert [one.verdict for one in found(port)] == ["pass"] * 7
        run = make_run(tmp_path / "run", tiny_pack, tiny_config("steps=5"))
        take_part(run, "member", "127.0.0.1", port)
        assert knock(run, 10.0).peers == ()


def test_another_token_is_told(hub: ServedHub) -> None:
    *first, token = found(hub.end.port, {TOKEN_VARIABLE: new_token().code})
    assert (verdicts(first), token.verdict) == (FIRST, "fail")
    assert "its token is another one" in token.told
    assert TOKEN_VARIABLE in token.fix


@pytest.mark.parametrize(("text", "words"), [("", "is not set"), ("ABCDE-FGH", "a join code has 30 letters")])
def test_no_token_and_one_with_a_typing_error_are_told(hub: ServedHub, text: str, words: str) -> None:
    *first, token = found(hub.end.port, {TOKEN_VARIABLE: text})
    assert (verdicts(first), token.check, token.verdict) == (FIRST, "token", "fail")
    assert words in token.told


def test_where_nothing_listens_the_token_is_not_asked_for() -> None:
    assert verdicts(found(free_port(), {})) == [("address", "pass"), ("port", "fail")]


def test_a_hub_of_an_older_release_is_told(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_probe: object, _came: object) -> tuple[GoAway, tuple[()]]:
        return GoAway("format", "the header can't be read: Invalid value 'probe'"), ()

    monkeypatch.setattr(hub.end._probe_answers, "answer", unknown)
    *_, last = found(hub.end.port)
    assert (last.check, last.verdict) == ("line", "fail")
    assert "an older release" in last.told
    assert "same version" in last.fix


def test_a_hub_that_has_no_share_of_its_line_left_still_tells_the_rest(
    hub: ServedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MOST_BYTES", 0)
    findings = {one.check: one for one in found(hub.end.port)}
    assert findings["speed"].figures["down_bytes_per_second"] is None
    assert findings["speed"].figures["up_bytes_per_second"] > 0
    assert findings["versions"].verdict == "pass"


class SilentEnd:
    """An end that is let in, and hears what it is given."""

    def __init__(self, heard: Any) -> None:
        self._heard = heard

    def send(self, _message: object, _payloads: object = ()) -> None:
        pass

    def receive(self, _seconds: float) -> Any:
        return self._heard


@pytest.mark.parametrize(("heard", "words"), [(None, "answered nothing"), (Line.DOWN, "was lost")])
def test_a_hub_that_says_nothing_and_a_line_that_breaks_are_told(
    monkeypatch: pytest.MonkeyPatch, heard: Any, words: str
) -> None:
    monkeypatch.setattr(line, "ANSWER_SECONDS", 0.05)
    with pytest.raises(ClusterError, match=words):
        Surveyor(SilentEnd(heard)).measure()  # type: ignore[arg-type]


def test_the_fastest_answer_tells_the_host_s_clock(hub: ServedHub) -> None:
    hub.end._probe_answers = probes.ProbeAnswers(now=lambda: 5000.0)
    with ClientEnd(TOKEN, "127.0.0.1", hub.end.port) as end:
        end.connect(10.0)
        assert Surveyor(end, now=lambda: 4400.0).measure().clock_ahead_seconds == pytest.approx(600, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "words"),
    [
        ({}, "round trip", "pass", "4.0 ms (median), 20 ms (longest)"),
        ({"round_trip_seconds": 0.4}, "round trip", "note", "400 ms (median)"),
        ({}, "speed", "pass", "24 Mbit/s to the host, 32 Mbit/s from it: a round of Small"),
        ({"up_bytes_per_second": 3e7, "down_bytes_per_second": 3e7}, "speed", "pass", "takes less than a second"),
        ({}, "speed", "pass", "; CIFAR-10's images (185 MB), if they are to be fetched, 46 s"),
        ({"down_bytes_per_second": 1e8}, "speed", "pass", "if they are to be fetched, 7 s"),
        ({"up_bytes_per_second": 2e5}, "speed", "note", "takes 1 min 16 s, and there is one every 1 min 00 s"),
        ({"up_bytes_per_second": None, "down_bytes_per_second": None}, "speed", "note", "not measured"),
        ({}, "clocks", "pass", "they agree to 0.01 s"),
        ({"clock_ahead_seconds": 600.0}, "clocks", "note", "10 min 00 s ahead of this machine's"),
        ({"clock_ahead_seconds": -600.0}, "clocks", "note", "10 min 00 s behind this machine's"),
        (
            {"program": "0.0.9"},
            "versions",
            "fail",
            f"the host has lowmem-seq 0.0.9, and this machine {__version__}",
        ),
        ({"torch": "2.6.0+cu124"}, "versions", "note", "the host has torch 2.6.0+cu124"),
    ],
)
def test_what_is_said_of_a_line(changes: dict[str, Any], check: str, verdict: str, words: str) -> None:
    findings = {one.check: one for one in judge(replace(GOOD, **changes))}
    assert findings[check].verdict == verdict
    assert words in findings[check].told
    assert bool(findings[check].fix) == (verdict != "pass")
