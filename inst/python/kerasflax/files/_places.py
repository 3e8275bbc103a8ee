"""Where a file holds the variables of `like`, if their paths there are not exactly the same.

Programs save variables under several names, often next to other values:

- below other names, such as `model/`, next to the state of an optimizer and a step;
- without the collection: NNX's states are `conv/kernel`, as are files that hold only `params`;
- without the name of a model's layer, or below the name of another layer;
- as a part of another module: `encoder/conv/kernel` for `backbone/conv/kernel`.

Only names are compared here. Shapes and dtypes are checked later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from .. import _host
from .._errors import VariablesError
from .._paths import SEPARATOR

# The field of a metadata box or of an NNX variable, which files name and paths do not.
_BOX = f"{SEPARATOR}value"
# An optimizer's state repeats the paths of the weights. `TrainState` and `nnx.Optimizer` have it
# under this name.
_OPTIMIZER = "opt_state"
# How many weights, and how many places that hold them, are looked at.
_MOST_PROBES, _MOST_PLACES = 4, 64


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The variables of `like`.

    Attributes:
        paths: The paths of all variables.
        needed: Those that the file must have.
        levels: How many names come before the path in the module: 1 for the collection, 2 for the
            layer and the collection.
    """

    paths: Collection[str]
    needed: Collection[str]
    levels: int

    @property
    def collections(self) -> set[str]:
        """The names of the collections."""
        names = (path.split(SEPARATOR) for path in self.paths)
        return {parts[self.levels - 1] for parts in names if len(parts) >= self.levels}

    @property
    def has_one_layer(self) -> bool:
        """Whether the name of the layer says nothing: there is only one."""
        return self.levels == 1 or len({path.split(SEPARATOR)[0] for path in self.paths}) == 1


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place in a file.

    Attributes:
        above: The names above the variables, each with a separator.
        found: From paths of `like` to paths of the file.
        groups: The first names below `above` that belong to the place; None for all names.
    """

    above: str
    found: Mapping[str, str]
    groups: Collection[str] | None = None

    @property
    def depth(self) -> int:
        return self.above.count(SEPARATOR)

    def holds(self, path: str) -> bool:
        """Whether a path of the file is inside the place."""
        if not path.startswith(self.above):
            return False
        first = path.removeprefix(self.above).partition(SEPARATOR)[0]
        return self.groups is None or first in self.groups


def located(paths: Sequence[str], wanted: Wanted, file: str) -> dict[str, str | None]:
    """Find the variables of `like` among the paths of a file.

    Args:
        paths: The paths in the file.
        wanted: The variables of `like`.
        file: What messages call the file.

    Returns:
        From each path of the file to the path of `like` that it holds; to its own path below the
        place, if `like` has no such variable; or to None if it is outside the place.

    Raises:
        VariablesError: The file has the variables in several places, or one of them twice.
    """
    place = _place_of(paths, wanted, file)
    if not place.found:
        return {path: path for path in paths}
    new = {old: path for path, old in place.found.items()}
    result = {
        old: new.get(old, old.removeprefix(place.above) if place.holds(old) else None)
        for old in paths
    }
    twice = {
        target: f"{place.found[target]} and {old}"
        for old, target in result.items()
        if target is not None and target in place.found and place.found[target] != old
    }
    if twice:
        raise VariablesError(
            f"{file} has two weights for one path.",
            problems=twice,
            advice=f"Leave one of them out with {_host.word('rename away', next(iter(twice)))}.",
        )
    return result


def _place_of(paths: Sequence[str], wanted: Wanted, file: str) -> _Place:
    stored = _without_boxes(paths)
    best = _at("", (), wanted, stored) or _Place("", {})
    if _is_complete(best, wanted):
        return best
    places = list(_places(wanted, stored))
    complete = [place for place in places if _is_complete(place, wanted)]
    if complete:
        first = min(complete, key=lambda place: place.depth)
        others = sorted({place.above for place in complete if place.depth == first.depth})
        if len(others) > 1:
            raise VariablesError(
                f"{file} has the variables of `like` in several places.",
                problems={above.removesuffix(SEPARATOR): "has them all" for above in others},
                advice="Leave out all but one with"
                f" {_host.word('rename away', f'{others[-1]}.*')}.",
            )
        return first
    shortest = {path: name for name, path in stored.items()}
    moved = _as_a_part(paths, wanted) or _as_a_part(list(shortest.values()), wanted)
    if moved:
        return _Place("", {path: stored[old] for path, old in moved.items()})
    # The place whose mismatches are the fewest.
    return max([best, *places], key=lambda place: _count(place, wanted))


def _without_boxes(paths: Sequence[str]) -> dict[str, str]:
    """The paths in a file by their own names and, then, by those without the fields of boxes."""
    stored = dict(zip(paths, paths, strict=True))
    for path in paths:
        short = path
        while short.endswith(_BOX):
            short = short.removesuffix(_BOX)
            stored.setdefault(short, path)
    return stored


def _count(place: _Place, wanted: Wanted) -> int:
    return sum(path in place.found for path in wanted.needed)


def _is_complete(place: _Place, wanted: Wanted) -> bool:
    return bool(wanted.needed) and _count(place, wanted) == len(wanted.needed)


# Below other names, and without the names of layers and collections -------------------------------


def _places(wanted: Wanted, stored: Mapping[str, str]) -> Iterator[_Place]:
    """Yield the places that hold some of the variables, the shortest names above them first."""
    collections = wanted.collections
    for dropped in _forms(wanted):
        short = _shortener(dropped)
        probes = sorted((short(path) for path in wanted.needed), key=len)[-_MOST_PROBES:]
        aboves = {
            path.removesuffix(probe)
            for probe in probes
            for path in stored
            if path == probe or path.endswith(SEPARATOR + probe)
        }
        usual = (above for above in aboves if _is_usual(above, collections))
        ordered = sorted(usual, key=lambda above: (above.count(SEPARATOR), above))
        for above in ordered[:_MOST_PLACES]:
            place = _at(above, dropped, wanted, stored)
            if place:
                yield place


def _forms(wanted: Wanted) -> list[tuple[int, ...]]:
    """The positions of the names that a file may leave out: of the layer, of the collection."""
    if wanted.levels == 1:
        return [(), (0,)]
    return [(), (0,), (1,), (0, 1)] if wanted.has_one_layer else [(), (1,)]


def _is_usual(above: str, collections: set[str]) -> bool:
    """Whether variables may be below these names, rather than a part of a module's."""
    names = above.split(SEPARATOR)[:-1]
    return _OPTIMIZER not in names and not collections & set(names[:-1])


def _shortener(dropped: Collection[int]) -> Callable[[str], str]:
    def short(path: str) -> str:
        names = path.split(SEPARATOR)
        return SEPARATOR.join(name for i, name in enumerate(names) if i not in dropped)

    return short


def _at(
    above: str, dropped: tuple[int, ...], wanted: Wanted, stored: Mapping[str, str]
) -> _Place | None:
    """The place below some names, or None if these names cannot tell the variables apart."""
    short = _shortener(dropped)
    shorts = {path: short(path) for path in wanted.paths}
    if len(set(shorts.values())) < len(shorts) or "" in shorts.values():
        return None
    found = {path: stored[above + s] for path, s in shorts.items() if above + s in stored}
    # What comes first below `above`: layers, collections, or the module's own names.
    first_level = next((i for i in range(wanted.levels) if i not in dropped), wanted.levels)
    is_collection = first_level == wanted.levels - 1
    return _Place(above, found, wanted.collections if is_collection else None)


# As a part of another module ----------------------------------------------------------------------


def _as_a_part(paths: Sequence[str], wanted: Wanted) -> dict[str, str] | None:
    """Match two parts of modules that differ only in the names above all of their weights.

    Returns:
        From each needed path to the path in the file, or None if anything else differs.
    """
    if not wanted.has_one_layer:
        return None
    collections = wanted.collections
    stored = {path: _split(path, collections) for path in paths}
    if len({(above, not collection) for above, collection, _ in stored.values()}) != 1:
        return None
    there = _below_common_names({path: names for path, (_, *names) in stored.items()})
    has_collections = any(collection for collection, _ in there)
    expected: dict[str, tuple[str, list[str]]] = {}
    for path in wanted.needed:
        *_, collection = path.split(SEPARATOR)[: wanted.levels]
        names = path.split(SEPARATOR)[wanted.levels :]
        expected[path] = (collection if has_collections else "", names)
    here = _below_common_names(expected)
    are_distinct = len(here) == len(wanted.needed) and len(there) == len(stored)
    if here.keys() != there.keys() or not are_distinct:
        return None
    return {path: there[names] for names, path in here.items()}


def _split(path: str, collections: Collection[str]) -> tuple[tuple[str, ...], str, list[str]]:
    """The names above the first collection in a path, the collection, and the names below.

    If there is no collection, all names count as below.
    """
    names = path.split(SEPARATOR)
    at = next((i for i, name in enumerate(names) if name in collections), None)
    if at is None:
        return (), "", names
    return tuple(names[:at]), names[at], names[at + 1 :]


def _below_common_names(
    paths: Mapping[str, Sequence[Any]],
) -> dict[tuple[str, tuple[str, ...]], str]:
    """The paths by collection and by the names below those that all of them have in common.

    Args:
        paths: A collection and the names below it, by path.
    """
    common = 0
    for each in zip(*(names[:-1] for _, names in paths.values()), strict=False):
        if len(set(each)) > 1:
            break
        common += 1
    return {(first, tuple(names[common:])): path for path, (first, names) in paths.items()}
