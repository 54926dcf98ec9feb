#!/bin/sh
# pydantic 2.14.3 (PyPI): keys that some other tool put into a plain dataclass's field metadata are obeyed as if they were
# arguments of pydantic's Field, where their names happen to be the same.
#
# The standard library says of `field(metadata=…)` that it is a mapping for third parties, each with keys of its own, and
# nothing of the class below mentions pydantic. One would guess that validating it checks the types alone. But "ge" becomes
# a limit, "max_length" cuts what is accepted, and "alias" renames the field: the name the class has is then refused.
#
# Seen:
#   plain dataclass: Tokens(count=-1, text='abc')
#   TypeAdapter, count=-1: greater_than_equal
#   TypeAdapter, text='abc': string_too_long
#   TypeAdapter, by the field's own name: missing wire_name
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check pydantic==2.14.3
cat > look.py <<'PY'
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError


@dataclass
class Tokens:
    count: int = field(metadata={"ge": 0})
    text: str = field(metadata={"max_length": 2})


@dataclass
class Renamed:
    name: str = field(metadata={"alias": "wire_name"})


def faults(kind, **values):
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        return [(fault["type"], fault["loc"]) for fault in error.errors()]


print("plain dataclass:", Tokens(-1, "abc"))
one, two, three = faults(Tokens, count=-1, text="a"), faults(Tokens, count=1, text="abc"), faults(Renamed, name="x")
print("TypeAdapter, count=-1:", one[0][0])
print("TypeAdapter, text='abc':", two[0][0])
print("TypeAdapter, by the field's own name:", *three[0][:1], three[0][1][0])
assert one == [("greater_than_equal", ("count",))], one
assert two == [("string_too_long", ("text",))], two
assert three == [("missing", ("wire_name",))], three
assert faults(Renamed, wire_name="x") == Renamed("x")
PY
env/bin/python look.py
