"""Whether this machine could train with a host: `lowmem-seq doctor --peer IP:PORT`, from the way to the versions.

What comes later needs what comes before, so the first fault ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lowmem_seq import __version__
from lowmem_seq.cluster.client_end import ClientEnd
from lowmem_seq.cluster.identity import HINTS
from lowmem_seq.cluster.surroundings import local_addresses
from lowmem_seq.cluster.token import TOKEN_VARIABLE, token_from_environment
from lowmem_seq.cluster.wire import PACK_BYTES_A_SECOND
from lowmem_seq.doctor.finding import Finding, Group, fault, note, well
from lowmem_seq.doctor.line import Measured, Surveyor
from lowmem_seq.doctor.way import check_way, format_milliseconds, own_networks, try_way
from lowmem_seq.errors import ClusterError, LowmemSeqError
from lowmem_seq.runs.environment import installed_version
from lowmem_seq.units import format_bytes, format_network, format_seconds

SECONDS_TO_PROVE = 10.0
ROUND_BYTES = 7_600_000
"""What Small sends each way in a round: a byte a weight."""
ROUND_SECONDS = 60.0
"""The default of cluster.round."""
PACK_BYTES = 184_560_000
"""CIFAR-10, packed."""
SLOW_TRIP_SECONDS = 0.3
LARGEST_CLOCK_GAP_SECONDS = 5.0


def peer_group(host: str, port: int, environment: Mapping[str, str]) -> Group:
    """Return the checks of the way to a host.

    Args:
        host: its name or address.
        port: the hub's.
        environment: this process's, with the token.
    """
    return Group(f"the way to {host}:{port}", [("peer", lambda: check_peer(host, port, environment))])


def check_peer(host: str, port: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Go as far towards the host's hub as one gets, and say what is in the way."""
    way = try_way(host, port)
    yield from check_way(host, port, way, own_networks(), local_addresses())
    if way.reached is None:
        return
    try:
        token = token_from_environment(environment)
    except LowmemSeqError as error:
        yield fault("token", error.message, error.hint)
        return
    with ClientEnd(token, way.reached, port) as end:
        try:
            end.connect(SECONDS_TO_PROVE)
        except ClusterError as error:
            yield fault("token", error.message, error.hint)
            return
        yield well("token", f"the host takes {TOKEN_VARIABLE}; what is said is encrypted with it")
        try:
            measured = Surveyor(end).measure()
        except ClusterError as error:
            yield fault("line", error.message, error.hint or HINTS["program"])
            return
    yield from judge(measured)


def judge(measured: Measured) -> Iterator[Finding]:
    """Say what the measured line is good for, and whether both sides fit together."""
    yield _judge_round_trip(measured)
    yield _judge_speed(measured)
    yield _judge_clock(measured)
    yield from _judge_versions(measured)


def _judge_round_trip(measured: Measured) -> Finding:
    median, longest = measured.round_trip_seconds, measured.longest_round_trip_seconds
    told = f"{format_milliseconds(median)} (median), {format_milliseconds(longest)} (longest)"
    figures = {"median_seconds": median, "longest_seconds": longest}
    if median > SLOW_TRIP_SECONDS:
        fix = "go nearer to the Wi-Fi's router, or end downloads and video calls"
        return note("round trip", f"{told}: slow, though training waits for no answer", fix, **figures)
    return well("round trip", told, **figures)


def _judge_speed(measured: Measured) -> Finding:
    """Say how long what travels takes: the changes of a round, and the images, where they are to be fetched."""
    up, down = measured.up_bytes_per_second, measured.down_bytes_per_second
    figures = {"up_bytes_per_second": up, "down_bytes_per_second": down}
    told = f"{_megabits(up)} to the host, {_megabits(down)} from it"
    known = [speed for speed in (up, down) if speed]
    if not known:
        return note("speed", "not measured: others probe the host as well", "try again in a minute", **figures)
    seconds = 2 * ROUND_BYTES / min(known)
    told += f": a round of Small ({format_bytes(ROUND_BYTES)} each way) takes {_about(seconds)}"
    is_slow = seconds > ROUND_SECONDS / 2
    told += f", and there is one every {format_seconds(ROUND_SECONDS)}" if is_slow else ""
    if down:
        fetch_seconds = PACK_BYTES / min(down, PACK_BYTES_A_SECOND)
        told += (
            f"; CIFAR-10's images ({format_bytes(PACK_BYTES)}), if they are to be fetched, {_about(fetch_seconds)}"
        )
    if is_slow:
        fix = "a cable or a nearer router; or rounds that are further apart: --set cluster.round=5min on both"
        return note("speed", told, fix, **figures)
    return well("speed", told, **figures)


def _judge_clock(measured: Measured) -> Finding:
    ahead, unsure = measured.clock_ahead_seconds, measured.round_trip_seconds / 2
    figures = {"host_ahead_seconds": ahead, "unsure_seconds": unsure}
    if abs(ahead) > LARGEST_CLOCK_GAP_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        return note(
            "clocks",
            f"the host's is {format_seconds(abs(ahead))} {side} this machine's: training does not mind, but times "
            "in the two runs' events don't compare",
            "have both systems set their clocks by the network",
            **figures,
        )
    return well("clocks", f"they agree to {max(abs(ahead), unsure):.2f} s", **figures)


def _judge_versions(measured: Measured) -> Iterator[Finding]:
    told = f"lowmem-seq {measured.program}, torch {measured.torch}, Python {measured.python}, {measured.system}"
    figures = {"host": {"lowmem_seq": measured.program, "torch": measured.torch, "python": measured.python}}
    torch = installed_version("torch") or "none"
    if measured.program != __version__:
        differs = f"the host has lowmem-seq {measured.program}, and this machine {__version__}"
        yield fault("versions", differs, HINTS["program"], **figures)
    elif _release(measured.torch) != _release(torch):
        differs = f"the host has torch {measured.torch}, and this machine {torch}: they train together, but round "
        fix = f"pip install torch=={measured.torch.partition('+')[0]}   where the same bits matter"
        yield note("versions", f"{differs}differently", fix, **figures)
    else:
        yield well("versions", f"the host has {told}", **figures)


def _release(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


def _about(seconds: float) -> str:
    return "less than a second" if seconds < 1 else format_seconds(seconds)


def _megabits(bytes_per_second: float | None) -> str:
    return "not measured" if bytes_per_second is None else format_network(bytes_per_second)
