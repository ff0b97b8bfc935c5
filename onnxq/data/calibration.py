"""Calibration data as the rest of onnxq sees it: an object that can be iterated over and over, feed by feed.

    record (a file)  --split-->  samples of one row, checked  --group-->  feeds of the model's batch size

Stored batches are always split into samples: ONNX Runtime's matrix products differ in the last bits between batch
sizes, and a quantized model must not depend on how its calibration data happened to be cut into files.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from typing import Any, TypeAlias

import numpy as np

from ..errors import DataError, UsageError
from .images import Preprocess
from .in_memory import MAX_MEMORY, Transform, transformed
from .inputs import Array, InputSpec, batch_size, shape_text, shown
from .records import Record, is_whole
from .sources import open_source

LENGTHS = 8
"""Feeds that are read to see how long sequences are."""

Arrays: TypeAlias = Mapping[str, Array]
Source: TypeAlias = str | os.PathLike[str] | Array | Arrays | Iterable[Any] | Callable[[], Iterable[Any]] | Any
"""What `data/in_memory.py` lists, or a path."""


@dataclass(frozen=True)
class Feed:
    """What one run of the model is fed.

    arrays: input name -> array of the input's dtype and rank, C-contiguous, owned by the feed.
    rows: how many rows along the batch axis are real; the others repeat the last one to fill a fixed batch.
        None where the feed is run as stored, its arrays sharing no batch axis.
        `output[: feed.rows]` is right in either case.
    origin: where it came from, e.g. `calib/0004.npz[3]`.
    """

    arrays: dict[str, Array]
    rows: int | None
    origin: str

    @property
    def batch(self) -> int:
        """Length of the batch axis, rows that fill it up included."""
        return max((array.shape[0] for array in self.arrays.values() if array.ndim), default=1)

    def digest(self) -> str:
        """SHA-256, in hex, of names, dtypes, shapes and bytes."""
        sha = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            sha.update(f"{name!r} {array.dtype.name} {array.shape}\n".encode())
            sha.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
        return sha.hexdigest()


class CalibrationData:
    """Feeds for a model, read afresh from `source` in each iteration, always in the same order.

    source: a file, a folder, or data in memory.
        A folder holds images, .npy, .npz or .pb files, in subfolders too, taken in natural order (2 before
        10); or test_data_set_* folders; or it is one of these.
        .npy, .pb: the array of a model with one input. .npz: keys are input names (see `keys`).
        In memory: an array, a mapping name -> array, a list or any other iterable of samples, a function that makes
        one, a dataset, an iterator, or ONNX Runtime's CalibrationDataReader; see `data/in_memory.py`.
        Arrays hold one sample, or a batch of them along axis 0. uint8 arrays for a float input of rank 4 are
        images, N x H x W x C or H x W x C (for gray inputs N x H x W or H x W, too), and preprocessed as
        image files are; all other arrays have the input's dtype and are taken as they are.
    inputs: the model's inputs, in order.
    preprocess: how images become inputs.
    samples: use only so many, one from each of that many equal stretches of all there are, so that data sorted
        by class stays representative. Files without one are not read.
    keys: input name -> key in .npz files and mappings, where these differ.
    seed: of the draw from each stretch; None: always the first.
    accepts_infinity: called with a feed that holds infinity, once for each; raises DataError where it is not sound.
        Without it every infinity is refused.
    may_be_empty: whether no samples at all are no error.
    transform: called with each item of the source, the pixels of an image (uint8, H x W x C, red first), the array or
        mapping of a file, or what the caller's iterable gives; returns an item: an array, mapping, or tuple of arrays.
    max_memory: bytes of an iterator's items that stay in memory; more go to a scratch folder.

    A feed has one sample where the model's batch dimension is dynamic or 1. Where all inputs fix it to B > 1, B
    successive samples make a feed, the last one is filled by repeating its last sample, and `samples` chooses
    whole feeds, rounded up: a fixed axis 0 may also be time or a set of cameras, whose rows stay together. Where
    inputs share no batch axis (a scalar, different dim_param, arrays of different lengths), a feed is what is
    stored together.

    Text is an array of strings, of dtype object, bytes or str, for an input of strings.

    Iterating raises DataError where a file is missing, unreadable or damaged, or where an array is empty, holds
    not-a-number, or is of the wrong dtype or shape. The constructor raises DataError where there is no data, and
    UsageError for arguments that make no sense. An iterator is read once, by the constructor.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[InputSpec],
        *,
        preprocess: Preprocess | None = None,
        samples: int | None = None,
        keys: Mapping[str, str] | None = None,
        seed: int | None = None,
        accepts_infinity: Callable[[Feed], None] | None = None,
        transform: Transform | None = None,
        max_memory: int = MAX_MEMORY,
        may_be_empty: bool = False,
    ) -> None:
        if not inputs:
            raise UsageError("the model has no inputs, so it cannot be calibrated")
        if samples is not None and (isinstance(samples, bool) or samples < 1):
            raise UsageError(f"`samples` must be at least 1, got {samples}")
        self.inputs = tuple(inputs)
        self.preprocess = preprocess or Preprocess()
        self.samples = samples
        self.seed = seed
        self._accepts_infinity, self._may_be_empty = accepts_infinity, may_be_empty
        self._digests: dict[str, str] | None = None  # by origin; parts of the data share them
        self._sound: set[str] = set()  # origins of the feeds with infinity that were accepted
        records = open_source(source, _complete(keys or {}, self.inputs), max_memory)
        self._records = records if transform is None else transformed(records, transform)
        self._batch = batch_size(self.inputs)

        first = self.inputs[0]
        rank = len(first.shape or ())
        images = isinstance(self._records, list) and any(record.is_image for record in self._records[:1])
        if images or (len(self.inputs) == 1 and first.dtype == np.uint8 and rank == 4):
            self.preprocess.check(first)
        if images and rank == 3:
            self._batch = None  # C x H x W: an image is a feed, and axis 0 is not its batch axis

    def __iter__(self) -> Iterator[Feed]:
        samples, size = self._samples(), self._batch or 1
        while group := list(islice(samples, size)):
            feed = group[0] if size == 1 else _stack(group, size)
            self._check_infinity(feed)
            yield feed

    def _check_infinity(self, feed: Feed) -> None:
        """A mask may hold -inf, and the outputs be finite all the same."""
        if self._accepts_infinity is None or feed.origin in self._sound:
            return
        if any(array.dtype.kind == "f" and np.isinf(array).any() for array in feed.arrays.values()):
            self._accepts_infinity(feed)
            self._sound.add(feed.origin)

    def __len__(self) -> int:
        """How many feeds an iteration gives; counted once, from file headers where these say it."""
        return len(self._chosen)

    def part(self, places: Iterable[int]) -> CalibrationData:
        """Some of its feeds alone, given by their places in an iteration."""
        chosen, some = self._chosen, copy(self)
        some.__dict__["_chosen"] = [chosen[place] for place in sorted(set(places))]
        return some

    def few(self, count: int) -> CalibrationData:
        """At most `count` of its feeds, one from each of that many equal stretches."""
        return self.part(spread(len(self), min(count, len(self)), self.seed))

    def take(self, count: int) -> list[Feed]:
        """The feeds of `few`, read."""
        return list(self.few(count))

    def draw(self, samples: int) -> list[Feed]:
        """The feeds of so many samples, drawn likewise: the same ones as those of `CalibrationData(samples=...)`."""
        return list(self.drawn(samples))

    def drawn(self, samples: int) -> CalibrationData:
        """The data of `draw`, to be read."""
        fewer = copy(self)
        fewer.samples = min(samples, self.samples or samples)
        fewer.__dict__.pop("_chosen", None)
        return fewer

    @property
    def holds_images(self) -> bool:
        """Whether inputs are made from pixels, so that `preprocess` says what they look like."""
        first = self.inputs[0]
        for record in self._records:
            if record.is_image:
                return True
            array = record.read(headers_only=True)[first.name]
            return array.dtype == np.uint8 and self.preprocess.accepts_pixels(first)
        return False

    def pixels(self, count: int) -> Iterator[Array]:
        """Images as they are stored, uint8 H x W x C: one of each of the first `count` records that hold some."""
        for record in islice(self._records, count) if self.holds_images else ():
            array = record.read()[self.inputs[0].name]
            yield self.preprocess.batch(array, self.inputs[0], record.origin)[0]

    def rows(self) -> int:
        """How many rows layers see: of sequences, whose length is free, each position; of all else each sample.

        Sequences are ids (N, L) and vectors (N, L, F), L dynamic. Their length is that of the first few drawn.
        """
        samples = len(self.numbers())
        sequences = [
            spec.name
            for spec in self.inputs
            if spec.shape is not None
            and len(spec.shape) == (3 if spec.dtype.kind == "f" else 2)
            and not isinstance(spec.shape[1], int)
        ]
        if not sequences or not samples:
            return samples
        lengths = [feed.arrays[sequences[0]].shape[1] for feed in self.few(LENGTHS)]
        return int(samples * np.mean(lengths))

    def origins(self) -> list[str]:
        """`Feed.origin` of every sample that the source holds, used or not, in order."""
        pairs = zip(self._records, self._counts, strict=True)
        return [_origin(record, row, count) for record, count in pairs for row in range(count)]

    def numbers(self) -> list[int]:
        """Of the samples used, in the order of their feeds: the place of each in `origins`."""
        size, total = self._batch or 1, sum(self._counts)
        return [n for feed in self._chosen for n in range(feed * size, min(feed * size + size, total))]

    def digest(self) -> str:
        """SHA-256, in hex, of the set of samples used: names, dtypes, shapes and bytes after preprocessing.

        It depends neither on their order nor on how they are cut into files or feeds.
        """
        return hashlib.sha256(b"".join(bytes.fromhex(h) for h in self.sample_hashes())).hexdigest()

    def sample_hashes(self) -> list[str]:
        """SHA-256, in hex, of each sample used, sorted."""
        if self._digests is None:
            return sorted(sample.digest() for sample in self._samples())
        origins, size, known = self.origins(), self._batch or 1, self._digests
        parts = [[origins[n] for n in range(f * size, min(f * size + size, len(origins)))] for f in self._chosen]
        unread = [place for place, names in enumerate(parts) if not all(name in known for name in names)]
        if unread:
            for _ in self.part(unread):
                pass
        return sorted(known[name] for names in parts for name in names)

    def remember_digests(self) -> None:
        """Take the digest of each sample when it is read first, in this and in its parts, so that `digest` reads none
        again. Called before parts are made."""
        self._digests = {}

    @cached_property
    def _counts(self) -> list[int]:
        """Samples per record. An image is one without being opened."""
        counts = []
        for record in self._records:
            length = 1 if record.is_single else self._split(record, record.read(headers_only=True))[1]
            counts.append(1 if length is None else length)
        if not counts and not self._may_be_empty:
            raise DataError("the calibration data is empty: no samples; give at least one")
        return counts

    @cached_property
    def _chosen(self) -> Sequence[int]:
        """The numbers of the feeds to use, out of those that all samples make, ascending."""
        size = self._batch or 1
        total = -(-sum(self._counts) // size)
        wanted = total if self.samples is None else -(-self.samples // size)
        if wanted >= total:
            return range(total)
        return spread(total, wanted, self.seed)

    def _samples(self) -> Iterator[Feed]:
        """The chosen samples, each a feed of one row (or, where `rows` is None, a whole record)."""
        size = self._batch or 1
        first = 0
        for record, count in zip_longest(self._records, self._counts):
            if record is None or count is None:
                raise DataError(f"the calibration data changed: it had {len(self._counts)} parts at first; start again")
            # The feeds that have a sample of this record; by bisection, for there may be millions to skip.
            last, chosen = first + count, self._chosen
            feeds = chosen[bisect_left(chosen, first // size) : bisect_left(chosen, -(-last // size))]
            if feeds:
                numbers = (n for feed in feeds for n in range(feed * size, feed * size + size) if first <= n < last)
                yield from self._read(record, count, (n - first for n in numbers))
            first = last

    def _read(self, record: Record, count: int, rows: Iterable[int]) -> Iterator[Feed]:
        arrays, length = self._split(record, record.read())
        if (length or 1) != count:
            raise DataError(f"{record.origin} changed: it had {count} samples at first, now {length or 1}; start again")
        for row in rows:
            origin = _origin(record, row, count)
            feed = {}
            for spec in self.inputs:
                array = arrays[spec.name]
                part = array if length is None else array[row : row + 1]
                if not is_whole(part):  # touching a page that is gone would end the process
                    raise DataError(f"{origin} is gone: the file has become shorter while it was read; start again")
                feed[spec.name] = self._sample(record, spec, part, length is not None, origin)
            sample = Feed(feed, None if length is None else 1, origin)
            if self._digests is not None and origin not in self._digests:
                self._digests[origin] = sample.digest()
            yield sample

    def _split(self, record: Record, arrays: dict[str, Array]) -> tuple[dict[str, Array], int | None]:
        """The arrays with the batch in front and its length; or as stored, and None, where they share no batch.

        Works on headers, too. Raises DataError where an array cannot be what the model takes.
        """
        stored, batches = {}, {}
        nothing = all(arrays[spec.name].size == 0 for spec in self.inputs)  # some may be: a decoder's past at first
        for spec in self.inputs:
            array = arrays[spec.name]
            if nothing or (array.dtype.hasobject and not spec.is_text):
                trouble = f"is empty, {shape_text(array.shape)}" if nothing else "holds Python objects"
                raise DataError(f"{record.origin}: the array for {spec} {trouble}; leave it out")
            if self._has_pixels(record, spec, array):
                stored[spec.name] = batches[spec.name] = self.preprocess.batch(array, spec, record.origin)
                continue
            if not spec.takes(array.dtype):
                remedy = "save an array of strings" if spec.is_text else f"save it with .astype(np.{spec.dtype})"
                raise DataError(
                    f"{record.origin}: input {shown(spec.name)} expected {spec.type_name}, got {array.dtype}; {remedy}"
                )
            missing = 0 if spec.shape is None else len(spec.shape) - array.ndim
            if missing not in (0, 1):
                raise _misshapen(record.origin, spec, array, "save it in that shape")
            stored[spec.name], batches[spec.name] = array, array[np.newaxis] if missing else array
        lengths = {batch.shape[:1] for batch in batches.values()}
        if self._batch is None or len(lengths) > 1 or lengths == {()}:
            return stored, None
        return batches, lengths.pop()[0]

    def _has_pixels(self, record: Record, spec: InputSpec, array: Array) -> bool:
        return record.is_image or (array.dtype == np.uint8 and self.preprocess.accepts_pixels(spec))

    def _sample(self, record: Record, spec: InputSpec, part: Array, is_row: bool, origin: str) -> Array:
        """Part of a stored array as the model takes it, preprocessed and checked."""
        hint = "save it in that shape"
        if self._has_pixels(record, spec, part):
            hint = "set `resize` or `crop` so that images get the model's height and width"
            part = np.stack([self.preprocess.apply(image, spec, origin) for image in part])
            if len(spec.shape or part.shape) == 3:
                part = part[0]
        # A copy: rows of memory-mapped files and of the caller's arrays must not be changed or kept alive.
        array = _texts(part, spec, origin) if spec.is_text else np.array(part, dtype=spec.dtype, order="C")
        expected = spec.shape
        if expected is not None:
            expected = (1, *expected[1:]) if is_row else expected
            if len(expected) != array.ndim or any(
                dim != size for dim, size in zip(expected, array.shape, strict=True) if isinstance(dim, int)
            ):
                raise _misshapen(origin, spec, array, hint)
        refused = np.isnan if self._accepts_infinity is not None else _not_finite
        if array.dtype.kind == "f" and refused(array).any():
            place = tuple(int(i) for i in np.argwhere(refused(array))[0])
            raise DataError(f"{origin}: input {shown(spec.name)} has {array[place]} at {place}; leave it out")
        return array


def _not_finite(array: Array) -> Array:
    return np.asarray(~np.isfinite(array))


def _texts(part: Array, spec: InputSpec, origin: str) -> Array:
    """Strings as ONNX Runtime takes them: Python's, in an array of objects. Bytes are UTF-8."""
    array = np.empty(part.shape, object)
    for place, value in np.ndenumerate(part):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise DataError(f"{origin}: input {shown(spec.name)} has bytes at {place} that are no UTF-8") from None
        if not isinstance(value, str):
            kind = type(value).__name__
            raise DataError(f"{origin}: input {shown(spec.name)} has a {kind} at {place}; expected text")
        array[place] = str(value)
    return array


def spread(total: int, wanted: int, seed: int | None = None) -> list[int]:
    """`wanted` of the numbers below `total`, ascending, one from each of that many equal stretches: data is often
    sorted by class. seed: of the draw from each stretch; None: always the first."""
    if not wanted:
        return []
    edges = [i * total // wanted for i in range(wanted + 1)]
    if seed is None:
        return edges[:-1]
    return [int(n) for n in np.random.default_rng(seed).integers(edges[:-1], edges[1:])]


def _origin(record: Record, row: int, count: int) -> str:
    return record.origin if count == 1 else f"{record.origin}[{row}]"


def _misshapen(origin: str, spec: InputSpec, array: Array, hint: str) -> DataError:
    return DataError(
        f"{origin}: input {shown(spec.name)} expected {shape_text(spec.shape)}, got {shape_text(array.shape)}; {hint}"
    )


def _stack(samples: list[Feed], size: int) -> Feed:
    """One feed of `size` rows; the last sample is repeated where there are fewer."""
    filled = samples + samples[-1:] * (size - len(samples))
    origin = samples[0].origin if len(samples) == 1 else f"{samples[0].origin} to {samples[-1].origin}"
    arrays = {}
    for name in samples[0].arrays:
        rows = [sample.arrays[name] for sample in filled]
        if len({row.shape for row in rows}) > 1:
            raise DataError(
                f"{origin}: input {shown(name)} has samples of different shapes in a batch of"
                f" {size}; give all of them one shape, or export the model with a dynamic batch"
            )
        arrays[name] = np.concatenate(rows)
    return Feed(arrays, len(samples), origin)


def _complete(keys: Mapping[str, str], inputs: Sequence[InputSpec]) -> dict[str, str]:
    """`keys` for every input, in the model's order; raises UsageError for a name that is no input."""
    names = [spec.name for spec in inputs]
    for name in keys:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1) or names
            raise UsageError(f"the model has no input {shown(name)}; did you mean {shown(close[0])}?")
    return {name: keys.get(name, name) for name in names}
