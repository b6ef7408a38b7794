"""A variant's three parts share one shape: a frozen dataclass with a short name, kept in a registry, JSON-able."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeVar


class Part:
    """A named, frozen value; `kind` is set by `register`."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """{"kind": ..., parameter: value}, tuples as lists."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


P = TypeVar("P", bound=Part)


class Registry(dict[str, type[P]]):
    """The parts of one axis of a variant by name."""

    def __init__(self, axis: str) -> None:
        super().__init__()
        self.axis = axis

    def register(self, kind: str) -> Callable[[type[P]], type[P]]:
        def add(part: type[P]) -> type[P]:
            part.kind = kind
            self[kind] = part
            return part

        return add

    def check(self, part: P) -> P:
        """The part itself; ValueError if it is none of this axis."""
        if self.get(getattr(part, "kind", "")) is not type(part):
            raise ValueError(f"{self.axis}: {part!r} is no {self.axis} part; known: {', '.join(self)}")
        return part

    def build(self, value: str | Mapping[str, Any] | P) -> P:
        """A part from its name, from {"kind": name, parameter: value}, or a part as it is.

        Raises ValueError for what is none of these, and for an unknown kind or parameter, with the known ones.
        """
        if isinstance(value, Part):
            return self.check(value)
        if not isinstance(value, str | Mapping):
            raise ValueError(f"{self.axis}: {value!r} is no part; give a name, or {{kind: NAME, PARAMETER: VALUE}}")
        parameters: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
        kind = str(parameters.pop("kind", None))
        if kind not in self:
            raise ValueError(f"{self.axis}: unknown kind {kind!r}; known: {', '.join(self)}")
        part = self[kind]
        known = {field.name: field.default is MISSING for field in fields(part)}  # type: ignore[arg-type]
        if unknown := sorted(parameters.keys() - known.keys()):
            raise ValueError(
                f"{self.axis} {kind}: unknown parameter {', '.join(unknown)}; known: {', '.join(known) or 'none'}"
            )
        if missing := [name for name, needed in known.items() if needed and name not in parameters]:
            raise ValueError(f"{self.axis} {kind}: give {{kind: {kind}, {missing[0]}: ...}}; it has no default")
        return part(**{k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()})


def positive(axis: str, name: str, *values: float) -> None:
    """Raise ValueError unless every value is a finite number above zero."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{axis}: {name} is {value!r}; it must be a finite number above zero")
