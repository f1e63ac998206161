"""What the figures of benchmarks/throughput.py say: the table, and which promises they keep."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.page import describe_machine
from benchmarks.workloads import AS_IT_IS, ONEDNN_OFF, WITH_AVX2
from lowmem_seq.units import format_bytes, parse_bytes

FEWEST_PAIRS = 5
CLOCKS_WITHIN = 0.02
"""Share by which the run's own events and a look from outside may differ about its speed."""

Pair = dict[str, Any]


def key_of(workload: str, processor: str, peer: str) -> str:
    """Return the name of a comparison in docs/throughput.json."""
    return f"{workload} | {processor} | {peer}"


@dataclass(frozen=True)
class Comparison:
    """Ours beside one peer, by the medians of the pairs."""

    workload: str
    processor: str
    peer: str
    pairs: Sequence[Pair]

    def ratios(self, figure: str) -> list[float]:
        """Ours by theirs, of neighbours."""
        return [pair["ours"][figure] / pair["peer"][figure] for pair in self.pairs]

    def ratio(self, figure: str) -> float:
        """Return the median of the neighbours' ratios."""
        return statistics.median(self.ratios(figure))

    def middle(self, side: str, figure: str) -> float:
        """Return the median of one side's figure."""
        return statistics.median([float(pair[side][figure]) for pair in self.pairs])

    def share_of_limit(self, side: str) -> float:
        """Return the median share that a side reaches of what matrix products of its precision reach."""
        return statistics.median(share_of_limit(pair, side) for pair in self.pairs)

    @property
    def place(self) -> str:
        """Where it was measured."""
        return f"{self.workload}, {self.processor}"


def share_of_limit(pair: Pair, side: str) -> float:
    """Return what a side made of its images' products a second, by the most that was measured beside it."""
    one = pair[side]
    share: float = one["images_per_second"] * pair["flops_an_image"] / pair["peak_flops"][one["precision"]]
    return share


def comparisons(results: dict[str, Any]) -> list[Comparison]:
    """Return all that was measured."""
    found = []
    for key, pairs in results["pairs"].items():
        workload, processor, peer = key.split(" | ")
        if pairs:
            found.append(Comparison(workload, processor, peer, pairs))
    return found


@dataclass(frozen=True)
class Promise:
    """What the figures must show of a workload on a processor: at least, or at most, so much."""

    workload: str
    processor: str
    peers: tuple[str, ...]
    """Each of them must show it."""
    figure: str
    """`speed` and `memory`: ours by theirs; `limit`: ours, of the matrix products'; `bytes`: what ours holds."""
    least: float | None = None
    most: float | None = None

    def value(self, one: Comparison) -> float:
        """Return the figure."""
        if self.figure == "speed":
            return one.ratio("images_per_second")
        if self.figure == "memory":
            return one.ratio("peak_bytes")
        if self.figure == "limit":
            return one.share_of_limit("ours")
        return float(max(pair["ours"]["peak_bytes"] for pair in one.pairs))

    def told(self, value: float) -> str:
        """Return a value of the figure for people."""
        if self.figure == "bytes":
            return format_bytes(round(value))
        return f"{value:.1%} of the GEMM peak" if self.figure == "limit" else f"{value:.2f} times the {self.figure}"

    def is_kept(self, value: float) -> bool:
        """Whether a value keeps it."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


PROMISES = (
    Promise("small", WITH_AVX2, ("plain",), "speed", least=1.5),
    Promise("small", AS_IT_IS, ("plain",), "speed", least=3.0),
    Promise("small", AS_IT_IS, ("plain-bf16",), "speed", least=1.6),
    Promise("small", AS_IT_IS, ("lightning", "transformers"), "speed", least=2.5),
    Promise("small", AS_IT_IS, ("accelerate",), "speed", least=0.98),
    Promise("small", AS_IT_IS, ("plain",), "limit", least=0.55),
    Promise("small", ONEDNN_OFF, ("plain",), "speed", least=1.3),
    Promise("small", AS_IT_IS, ("plain",), "memory", most=0.6),
    Promise("small", WITH_AVX2, ("plain",), "memory", most=0.6),
    Promise("sequencer2d_s", AS_IT_IS, ("plain",), "speed", least=2.2),
    Promise("sequencer2d_s", AS_IT_IS, ("plain",), "memory", most=0.5),
    Promise("sequencer2d_s", AS_IT_IS, ("plain",), "bytes", most=parse_bytes("2GB")),
    Promise("sequencer2d_l", AS_IT_IS, ("plain-bf16",), "speed", least=1.5),
    Promise("sequencer2d_l", AS_IT_IS, ("plain-bf16",), "bytes", most=parse_bytes("4GB")),
)


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return in words what of the promises does not hold, or is not shown yet, and what can't be trusted."""
    found = {(one.workload, one.processor, one.peer): one for one in comparisons(results)}
    told = []
    for promise in PROMISES:
        for peer in promise.peers:
            one = found.get((promise.workload, promise.processor, peer))
            if one is None:
                continue
            value = promise.value(one)
            if not promise.is_kept(value):
                bound = f"at least {promise.told(promise.least)}" if promise.least is not None else ""
                bound = f"at most {promise.told(promise.most)}" if promise.most is not None else bound
                told.append(f"{one.place} beside {peer}: {promise.told(value)}, and {bound} is promised")
    for one in found.values():
        if len(one.pairs) < FEWEST_PAIRS:
            told.append(f"{one.place} beside {one.peer}: n = {len(one.pairs)}, and {FEWEST_PAIRS} pairs are wanted")
        told += [
            f"{one.place} beside {one.peer}, pair {number}: the run says {ours['told_images_per_second']:,.4g} "
            f"images/s, and a look from outside {ours['images_per_second']:,.4g}"
            for number, ours in enumerate((pair["ours"] for pair in one.pairs), 1)
            if abs(ours["told_images_per_second"] / ours["images_per_second"] - 1) > CLOCKS_WITHIN
        ]
    return told


def page(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| workload, processor | beside | n | images/s: ours | theirs | ratio (least, most) | peak RSS: ours "
        "| theirs (its largest process) | ratio | share of the GEMM peak: ours | theirs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    all_of_it = comparisons(results)
    for one in all_of_it:
        ratios = one.ratios("images_per_second")
        theirs, largest = (format_bytes(round(one.middle("peer", key))) for key in ("peak_bytes", "largest_bytes"))
        cells = (
            one.place,
            f"{one.peer}: {told_of_peer(one)}",
            str(len(one.pairs)),
            f"{one.middle('ours', 'images_per_second'):,.4g}",
            f"{one.middle('peer', 'images_per_second'):,.4g}",
            f"**{one.ratio('images_per_second'):.2f}** ({min(ratios):.2f}, {max(ratios):.2f})",
            format_bytes(round(one.middle("ours", "peak_bytes"))),
            f"{theirs} ({largest})",
            f"{one.ratio('peak_bytes'):.2f}",
            f"{one.share_of_limit('ours'):.0%}",
            f"{one.share_of_limit('peer'):.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    places: dict[str, list[Pair]] = {}
    for one in all_of_it:
        places.setdefault(one.place, []).extend(one.pairs)
    every = [pair for pairs in places.values() for pair in pairs]
    if every:
        lines += ["", *(told_of_place(place, pairs, results) for place, pairs in places.items())]
        commits = ", ".join(dict.fromkeys(str(pair["commit"]) for pair in every))
        machines = dict.fromkeys(describe_machine(pair["machine"]) for pair in every)
        lines += ["", f"`python -m benchmarks.throughput`, at {commits}; {'; '.join(machines)}."]
    return "\n".join(lines)


def told_of_peer(one: Comparison) -> str:
    """Return how a peer computed."""
    kinds = dict.fromkeys(
        f"{pair['peer']['precision']}, {pair['peer']['micro_batch']} x {pair['peer']['accumulation']}"
        for pair in one.pairs
    )
    return "; ".join(kinds)


def told_of_place(place: str, pairs: list[Pair], results: dict[str, Any]) -> str:
    """Return how ours computed, on what, and what the processor's limit was."""
    plans = dict.fromkeys(told_plan(pair["ours"]) for pair in pairs)
    peaks = {
        precision: statistics.median(pair["peak_flops"][precision] for pair in pairs)
        for precision in pairs[0]["peak_flops"]
    }
    limits = ", ".join(f"{precision} {flops / 1e9:,.0f} GFLOP/s" for precision, flops in peaks.items())
    data, gigaflops = results["data"][place.partition(",")[0]], pairs[0]["flops_an_image"] / 1e9
    return (
        f"- {place}: images: {data}; ours: {'; '.join(plans)}, cap {format_bytes(pairs[0]['ours']['cap_bytes'])}; "
        f"GEMM peak (median): {limits}; an image, forward and backward: {gigaflops:,.2f} GFLOP"
    )


def told_plan(ours: dict[str, Any]) -> str:
    """Return how ours computed in a run."""
    recomputed = f", {ours['recomputed_layers']} layers recomputed" if ours["recomputed_layers"] else ""
    return (
        f"{ours['precision']}, micro-batches of {ours['micro_batch']}, {ours['workers']} at once{recomputed}, "
        f"allocator {ours['allocator']}, LSTM path {ours['lstm_path']}"
    )
