"""Dockerfiles, read as far as our tests ask."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "deploy" / "docker"


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The value in exec form, as the words of the command."""
        words: list[str] = json.loads(self.value)
        return words


@dataclass
class Stage:
    """What stands between two FROMs."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Return the instructions of one name."""
        return [instruction for instruction in self.instructions if instruction.name == name]


@dataclass
class Dockerfile:
    """A file with its stages."""

    text: str
    stages: list[Stage]

    @classmethod
    def read(cls, name: str) -> "Dockerfile":
        """Read one of deploy/docker."""
        text = (DOCKER / name).read_text(encoding="utf-8")
        without_comments = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        stages: list[Stage] = []
        for line in without_comments.replace("\\\n", " ").splitlines():
            if not (words := line.split(maxsplit=1)):
                continue
            if words[0] == "FROM":
                base, _, name = (part.strip() for part in words[1].partition(" AS "))
                stages.append(Stage(base, name or None))
            elif words[0] != "ARG":
                stages[-1].instructions.append(Instruction(words[0], re.sub(r"\s+", " ", words[1])))
        return cls(text, stages)

    def built(self, target: str | None = None) -> list[Instruction]:
        """Return all instructions of the image that is built: of the target, or the last stage, and its ancestors."""
        stage = next((one for one in self.stages if one.name == target), self.stages[-1]) if target else self.stages[-1]
        instructions = stage.instructions
        while (parent := next((one for one in self.stages if one.name == stage.base), None)) is not None:
            instructions = [*parent.instructions, *instructions]
            stage = parent
        return instructions

    def base(self, target: str | None = None) -> str:
        """Return the image that the built one begins with."""
        stage = next((one for one in self.stages if one.name == target), self.stages[-1]) if target else self.stages[-1]
        while (parent := next((one for one in self.stages if one.name == stage.base), None)) is not None:
            stage = parent
        return stage.base
