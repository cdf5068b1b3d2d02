"""What the compiler made of a function: instructions of the optimised program, and those that run inside loops."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call")
"""Instructions that write nothing of their own."""
HOST = ("infeed", "outfeed", "send", "recv")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


class Instruction(NamedTuple):
    """shapes: of its results, elements only."""

    name: str
    kind: str
    shapes: list[tuple[int, ...]]
    rest: str

    @property
    def size(self) -> int:
        return max((math.prod(shape) for shape in self.shapes), default=0)


class Program:
    """The optimised program of a lowered function, compiled as users' programs are and not as tests' are."""

    def __init__(self, lowered: jax.stages.Lowered):
        self.text = lowered.compile(compiler_options={"xla_cpu_use_fusion_emitters": True}).as_text()
        self.parts: dict[str, list[Instruction]] = {}
        for line in self.text.splitlines():
            if head := _HEAD.match(line):
                own = self.parts.setdefault(head[1], [])
            elif found := _LINE.match(line):
                name, shape, kind, rest = found.groups()
                shapes = [
                    tuple(map(int, s.split(","))) if s else () for s in re.findall(r"\[([\d,]*)\]", shape)
                ]
                own.append(Instruction(name, kind, shapes, rest))

    def written(self) -> Iterator[Instruction]:
        """Instructions outside fusions that write a buffer."""
        fused = set(re.findall(r"calls=%?([\w.\-]+)", self.text))
        for name, own in self.parts.items():
            if name not in fused:
                yield from (one for one in own if one.kind not in FREE)

    def looped(self) -> Iterator[Instruction]:
        """Instructions that write a buffer in the body of a loop, or in a loop, call or branch within."""
        bodies, seen = set(re.findall(r"body=%?([\w.\-]+)", self.text)), set()
        while bodies:
            name = bodies.pop()
            if name in seen:
                continue
            seen.add(name)
            for one in self.parts[name]:
                if one.kind in FREE:
                    inner = re.findall(r"(?:to_apply|body|calls|_computation)=%?([\w.\-]+)", one.rest)
                    bodies.update(part for part in inner if part in self.parts)
                else:
                    yield one

    def host_transfers(self) -> list[str]:
        """Names of instructions that go to the host in the middle of the program."""
        return [
            one.name
            for own in self.parts.values()
            for one in own
            if one.kind.startswith(HOST) or "callback" in one.rest.split("metadata=")[0]
        ]
