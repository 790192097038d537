"""From seconds, rates and memory of the training step to what the bench tells."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frame import Spread, significant
from step_sizes import Precision
from step_turns import Found, compare

BARS: dict[Precision, float] = {"fp32": 0.45, "bf16": 0.35}
"""Share of ``torch.matmul``'s rate that the reference must reach, lest it be a straw man."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found about one size in one precision."""

    found: Found
    plain: Found | None = None
    """The reference in a plain script's environment."""

    @property
    def speed(self) -> Spread:
        """Time of the reference over ours, turn by turn."""
        return self.found.seconds["reference"].over(self.found.seconds["ours"])

    def matmul_rate(self) -> Spread:
        """The best of ``torch.matmul`` over shapes, GFLOP/s."""
        return _fastest({name: rate for name, rate in self.found.rates.items() if name.startswith("matmul")})

    def fastest_rate(self) -> Spread:
        """The best of all operators and shapes: the machine's rate."""
        return _fastest(self.found.rates)

    def fractions(self, rate: Spread) -> dict[str, float]:
        """Share of a rate that each implementation reaches, by name."""
        gflop = self.found.flops / 1e9
        return {name: seconds.per(gflop).over(rate).median for name, seconds in self.found.seconds.items()}

    def judged_speed(self) -> tuple[float | None, str | None]:
        """The ratio of speeds, or None and the reason why it is void."""
        precision = self.found.plan.precision
        return judged(self.speed.median, self.fractions(self.matmul_rate())["reference"], precision)

    def memory(self) -> dict[str, dict[str, float]]:
        """GiB by implementation: peak, before anything was built, and the least that fp32 AdamW must hold."""
        memory = {name: _memory(self.found, name) for name in self.found.seconds}
        if self.plain is not None:
            memory["reference_default_allocator"] = _memory(self.plain, "reference")
        return memory

    def memory_ratio(self) -> float:
        """Peak of ours over that of the reference."""
        return self.found.ended["ours"].peak_gib / self.found.ended["reference"].peak_gib

    def images_per_s(self) -> dict[str, Spread]:
        """By implementation."""
        images = self.found.plan.size.images
        rates = {name: seconds.per(images) for name, seconds in self.found.seconds.items()}
        if self.plain is not None:
            rates["reference_default_allocator"] = self.plain.seconds["reference"].per(images)
        return rates

    def details(self) -> dict[str, Any]:
        """All of it."""
        return {
            "speed": significant(self.speed.median),
            "images_per_s": {name: significant(rate.median) for name, rate in self.images_per_s().items()},
            "gflop_per_step": significant(self.found.flops / 1e9),
            "gemm_gflops": {name: significant(rate.median) for name, rate in self.found.rates.items()},
            "gemm_fraction": _rounded(self.fractions(self.matmul_rate())),
            "fastest_gemm_fraction": _rounded(self.fractions(self.fastest_rate())),
            "memory": self.memory(),
            "memory_ratio": significant(self.memory_ratio()),
            "largest_difference": significant(compare(self.found.told, self.found.plan) or 0.0),
            "threads": self.found.started["ours"].threads,
        }

    def measured(self) -> dict[str, dict[str, Any]]:
        """Summaries by name, for the table."""
        plan = self.found.plan
        summaries = {name: rate.summary("images/s") for name, rate in self.images_per_s().items()}
        if "reference" in self.found.seconds:
            summaries["speed"] = self.speed.summary("ratio")
        summaries |= {f"peak of {name}": _once(each["peak_gib"], "GiB") for name, each in self.memory().items()}
        summaries |= {name: rate.summary("GFLOP/s") for name, rate in self.found.rates.items()}
        return {f"{plan.label}: {name}": summary for name, summary in summaries.items()}


def judged(speed: float, reference_fraction: float, precision: Precision) -> tuple[float | None, str | None]:
    """A ratio of speeds where the reference reaches its bar; else None and why."""
    if reference_fraction >= BARS[precision]:
        return speed, None
    return None, (
        f"{precision}_speed is void: the reference reaches {reference_fraction:.2f} of torch.matmul's rate, below "
        f"{BARS[precision]}; the ratio would be {speed:.3g}."
    )


def size_details(figures: Mapping[Precision, Figures]) -> dict[str, Any]:
    """Details of a size, by precision."""
    (first, *_) = figures.values()
    return {"size": asdict(first.found.plan.size), **{name: each.details() for name, each in figures.items()}}


def _fastest(rates: Mapping[str, Spread]) -> Spread:
    return max(rates.values(), key=lambda rate: rate.median)


def _memory(found: Found, name: str) -> dict[str, float]:
    started, ended = found.started[name], found.ended[name]
    return {
        "peak_gib": significant(ended.peak_gib),
        "before_gib": significant(started.before_gib),
        "floor_gib": significant(started.before_gib + started.state_gib),
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: significant(value) for name, value in values.items()}


def _once(value: float, unit: str) -> dict[str, Any]:
    return Spread((value,)).summary(unit)
