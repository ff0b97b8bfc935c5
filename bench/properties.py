"""Generated graphs x targets x options: what is written is clean in `check`, or options are refused before any work.

    python bench/properties.py --cases 5000 --seed 0            counts, and every case that breaks the property
    python bench/properties.py --seed 0 --number 1234           one case again, with its traceback
    python bench/properties.py --cases 5000 --defaults          options of the default kind only: none may be refused

A case is a graph of `generated.py`, a target, and options. The property:

    written, and `onnxq check` finds nothing; or `UsageError` before the first step of the work, or nothing to quantize
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import generated
import numpy as np
from isolation import Lost, Worker

PLAIN = {"dead_channels": False, "cle": "off", "absorb": False, "bias_correction": "off", "rounding": "nearest"}
PRESETS = ("w8a8", "w8a8", "w8a8", "w8a16", "w4a8", "w4", "w8", "w4a16", "w16a8", "w6a8", "w8a4", "a8", "w4a4")


def options(rng: np.random.Generator, *, defaults: bool) -> dict[str, Any]:
    """A target and options; defaults: of the target alone, and the steps of figure 8 at times."""
    from onnxq import TARGETS, Override

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    def one(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    found: dict[str, Any] = {"target": one(*TARGETS), **({} if chance(0.1) else PLAIN)}
    if defaults:
        return found
    found["preset"] = one(*PRESETS)
    found |= {
        name: True for name in ("force_int_kernels", "symmetric_activations", "asymmetric_weights") if chance(0.1)
    }
    found |= {"per_channel": False} if chance(0.2) else {}
    found |= {"power_of_two": True} if chance(0.05) else {}
    found |= {"block_size": one(2, 4, 32)} if chance(0.15) else {}
    found |= {"store_4bit": one("int4", "int8")} if chance(0.1) else {}
    found |= {"tie": (one("Add", "Concat"),)} if chance(0.05) else {}
    if chance(0.15):
        found["exclude"] = (one("Conv", "Add", "n1", "n3", "Relu", "MatMul", "MaxPool", "Sigmoid"),)
    if chance(0.15):
        place = one({"node": one("Conv", "MatMul", "Add", "n2", "n4")}, {"tensor": one("relu*", "conv*", "in0", "w*")})
        change = one({"keep_float": True}, {"bits": 4}, {"bits": 16}, {"symmetric": True})
        found["overrides"] = (Override(**place, **change),)
    return found


def attempt(seed: int, number: int, *, defaults: bool = False) -> tuple[str, str]:
    """(outcome, detail): written, refused, nothing, or what breaks the property: late, unclean, verification, error."""
    import onnxq
    from onnxq.checking import check
    from onnxq.errors import ModelError, NothingToQuantizeError, UsageError, VerificationError
    from onnxq.pipeline import pipeline

    graph = generated.make(seed, number)
    settings = options(np.random.default_rng([seed, number, 1]), defaults=defaults)
    feeds = [graph.feed(i) for i in range(3)]
    label = f"{settings} {Counter(node.op_type for node in graph.nodes)}"
    worked: list[bool] = []
    equalize = pipeline.equalize

    def watched(*arguments: Any) -> Any:
        worked.append(True)
        return equalize(*arguments)

    pipeline.equalize = watched
    try:
        proto = graph.model()
        result = onnxq.quantize(proto, feeds, threads=1, **settings)
        found = check(result.model, onnxq.TARGETS[settings["target"]]).violations
        return ("unclean", f"{found[0]} {label}") if found else ("written", "")
    except UsageError as error:
        late = worked and "override" not in str(error)
        return ("late" if late else "refused"), f"{error} {label}"
    except NothingToQuantizeError:
        return "nothing", ""
    except VerificationError as error:
        return "verification", f"{error} {label}"
    except ModelError as error:
        return "model", f"{error} {label}"
    except Exception as error:
        return "error", f"{type(error).__name__}: {error} {label}\n{traceback.format_exc()}"
    finally:
        pipeline.equalize = equalize


GOOD = ("written", "refused", "nothing")


def survey(seed: int, numbers: Sequence[int], *, defaults: bool) -> dict[int, tuple[str, str]]:
    """number -> (outcome, detail)."""
    results = {}
    with Worker(lambda number: attempt(seed, number, defaults=defaults), 60, 4096) as worker:
        for count, number in enumerate(numbers):
            result = worker.run(number)
            results[number] = (result.kind, result.detail) if isinstance(result, Lost) else result
            if results[number][0] not in GOOD:
                print(f"{number} {results[number][0]}: {results[number][1][:1500]}", flush=True)
            if count % 500 == 499:
                print(f"{count + 1} of {len(numbers)}", file=sys.stderr, flush=True)
    return results


def summary(results: Mapping[int, tuple[str, str]]) -> str:
    """How many cases ended how."""
    counts = Counter(outcome for outcome, _ in results.values())
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="only this case, in this process")
    parser.add_argument("--defaults", action="store_true", help="no options but the target: nothing may be refused")
    given = parser.parse_args()
    if given.number is not None:
        print(*attempt(given.seed, given.number, defaults=given.defaults), sep="\n")
        return
    results = survey(given.seed, range(given.first, given.first + given.cases), defaults=given.defaults)
    print(summary(results))
    good = ("written", "nothing") if given.defaults else GOOD
    sys.exit(any(outcome not in good for outcome, _ in results.values()))


if __name__ == "__main__":
    main()
