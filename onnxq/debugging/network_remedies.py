"""Figure 9, remedies for the whole network: for the part that misses the target, those first that match the causes.

A remedy is kept if the quantized model is better for it, or its part is (weights or activations alone quantized) and
the model is no worse; but not if the other part, which had reached the target, then misses it. Where the outputs are
below the noise floor and scores differ by chance only, what counts is the mean SQNR of the sensitive quantizers, each
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from glob import escape

from ..errors import OnnxqError
from ..options import Options, Override
from ..thresholds import CLEAR_DB, LEAST_GAIN_DB, NOISE_FLOOR_DB, TRIES
from .candidate import Candidate, Goal, Part, quantized_with
from .log import Log
from .remedies import NETWORK_REMEDIES, PER_CHANNEL, NetworkRemedy
from .sensitive_quantizers import SensitiveQuantizer, mean_alone, note_repairs
from .weights_or_activations import parts_to_repair, worse_first


@dataclass
class NetworkRepair:
    """candidate: the best so far."""

    candidate: Candidate
    goal: Goal
    log: Log
    without: Collection[str]
    sensitive: Sequence[SensitiveQuantizer]

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.candidate)

    @property
    def clear(self) -> bool:
        """Whether nothing is to be gained any more."""
        return self.reached and self.candidate.whole.db >= CLEAR_DB

    def run(self) -> None:
        """Try remedies until the target is reached and the outputs are at `CLEAR_DB`.

        Past the target only those are tried that cost nothing, since a target that few samples say is reached may be
        missed by others. A remedy that was refused is tried again once others were kept: the noise that hid its effect
        may be gone.
        """
        tries: Counter[NetworkRemedy] = Counter()
        waiting = set(NETWORK_REMEDIES)
        while not self.clear and (remedy := self._next(waiting)) is not None:
            waiting.discard(remedy)
            tries[remedy] += 1
            if self._try(remedy):
                waiting.update(other for other in tries if tries[other] < TRIES)
                waiting -= {other for other in waiting if other.name == remedy.name}  # one of a kind

    def take_back(self, start: Options) -> None:
        """One scale for each channel costs something: use none, or fewer, where the target still holds.

        start: the options before any remedy.
        """
        if not (self.reached and self.candidate.options.per_channel and not start.per_channel):
            return
        fewer = replace(self.candidate.options, per_channel=False)
        repaired = [each.name for each in self.sensitive if each.repaired_by == PER_CHANNEL.title]
        some = tuple(Override(escape(name), per_channel=True) for name in repaired)
        choices = {"one weight scale for each layer": fewer}
        if some:
            only = f"one weight scale for each channel only for {', '.join(repaired)}"
            choices[only] = replace(fewer, overrides=(*fewer.overrides, *some))
        for title, options in choices.items():
            tried = quantized_with(self.candidate.evaluator, options)
            holds = self.goal.accepts(tried)
            verdict = "taken back" if holds else "the target would be missed: not taken back"
            self.log.write(f"Take back: {title}", f"{self.log.change(self.candidate, tried)}: {verdict}.")
            if holds:
                self.candidate = tried
                return

    def _next(self, waiting: Collection[NetworkRemedy]) -> NetworkRemedy | None:
        """For the parts that miss the target, if one does: first for the worse part, then what matches the causes,
        then what costs nothing."""
        missed = parts_to_repair(self.candidate, self.goal)
        causes = {cause.kind for quantizer in self.sensitive for cause in quantizer.causes}
        options = self.candidate.options
        left = [r for r in NETWORK_REMEDIES if r in waiting and r.name not in self.without and r.applies(options)]
        left = [remedy for remedy in left if set(remedy.parts) & set(missed) and not (remedy.costs and self.reached)]
        left.sort(key=lambda remedy: (missed[0] not in remedy.parts, not remedy.causes & causes, remedy.costs))
        return next(iter(left), None)

    def _try(self, remedy: NetworkRemedy) -> bool:
        """Whether it was kept."""
        part = next(part for part in worse_first(self.candidate, self.goal) if part in remedy.parts)
        title, before = f"Remedy: {remedy.title}", self.candidate
        try:
            after = quantized_with(before.evaluator, remedy.apply(before.options))
        except OnnxqError as error:
            self.log.write(title, f"Not possible: {error}")
            return False
        if after.quantized == before.quantized:
            self.log.write(title, "Changes nothing here.")
            return False
        kept, reason = self._keeps(before, after, part)
        lines = [
            f"{part} alone: {self.log.score(before.parts[part])} -> {self.log.score(after.parts[part])};"
            f" quantized model: {self.log.change(before, after)}: {reason}{'kept' if kept else 'not kept'}."
        ]
        if kept:
            self.candidate = after
            lines += note_repairs(after, self.goal, self.sensitive, remedy.title)
            lines.append(self.log.objection(self.goal, after))
        self.log.write(title, *lines)
        return kept

    def _keeps(self, before: Candidate, after: Candidate, part: Part) -> tuple[bool, str]:
        """Whether to keep a remedy for a part, and why, where that needs to be said."""
        reached, better = self.goal.reached, self.goal.better
        spoilt = [
            name
            for name, was in before.parts.items()
            if reached(was) and not reached(after.parts[name]) and better(was, after.parts[name])
        ]
        if spoilt:
            return False, f"it spoils the {' and '.join(spoilt)}: "
        below_floor = max(before.whole.db, after.whole.db) < NOISE_FLOOR_DB
        if below_floor and abs(before.whole.value - after.whole.value) <= self.goal.noise:
            gain = mean_alone(after, self.sensitive) - mean_alone(before, self.sensitive)
            reason = f"that is chance, but the sensitive quantizers alone gain {gain:.1f} dB on average: "
            return gain > LEAST_GAIN_DB, reason
        if self.goal.accepts(before) and not self.goal.accepts(after):
            return False, "the target would be missed: "
        no_worse = not better(before.whole, after.whole)
        return better(after.whole, before.whole) or (better(after.parts[part], before.parts[part]) and no_worse), ""
