"""Which networks are tried in which modes, and the three copies of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

from own_checkpoint import EVERYTHING, Mode

Builder = Callable[[], object]
# Read natively, and refused: each for a reason that docs/dev/known_gaps.md has.
KNOWN_GAPS = {
    **{
        f"hub-Moonshine-{mode}": "a normalization with gamma and no beta, which the file numbers: it might be beta"
        for mode in ("weights_h5", "keras", "nested_weights_h5", "compiled_weights_h5", "compiled_keras")
    },
}
COPIES = 3


@functools.lru_cache(maxsize=1)
def copies(build: Builder) -> tuple[object, ...]:
    """Three networks of one kind, built in one process; the tests of one network follow each other."""
    return tuple(build() for _ in range(COPIES))


def cases(library: str, networks: Mapping[str, Builder], modes: Iterable[Mode]) -> Iterator[object]:
    """Every network in every mode; one process of pytest-xdist takes all modes of a network."""
    for name, build in networks.items():
        for mode in modes:
            label = f"{library}-{name}-{mode.name}"
            marks = [pytest.mark.xdist_group(f"{library}-{name}")]
            marks += [pytest.mark.xfail(reason=KNOWN_GAPS[label], strict=False)] if label in KNOWN_GAPS else []
            yield pytest.param(build, mode, id=label, marks=marks)


def spread(library: str, networks: Mapping[str, Builder], modes: Iterable[Mode], few: int) -> Iterator[object]:
    """Every network in `few` of the modes, each mode for some network; all of them when everything is asked for."""
    modes = tuple(modes)
    for index, (name, build) in enumerate(networks.items()):
        chosen = {(index * few + k) % len(modes) for k in range(len(modes) if EVERYTHING else few)}
        yield from cases(library, {name: build}, [m for i, m in enumerate(modes) if i in chosen])
