"""The agents of the example workflows. They call no service: the same document always gives the same report.

Start a worker with them, from the directory above this one:

    forkjoin-worker examples.agents:agents
"""

import asyncio
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_worker import AgentContext, AgentFailed, AgentRegistry, RetryLater

HERE = Path(__file__).resolve().parent
LARGEST_DOCUMENT = 1_000_000  # bytes
STOP_WORDS = frozenset((HERE / "stop_words.txt").read_text(encoding="utf-8").split())  # they stand in any document

# A full stop, perhaps in quotes, in front of white space and a capital letter or a digit.
_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\u201d]))\s+(?=["'(\u201c]?[A-Z0-9])""")

agents = AgentRegistry()


class Document(BaseModel):
    """A text, or the path of a text file below this directory."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> "Document":
        if (self.text is None) == (self.path is None):
            raise ValueError("give either `text` or `path`")
        return self

    def read(self) -> str:
        """Return the text.

        Raises:
            AgentFailed: There is no such document, or it is not a text. Another attempt would not help.
        """
        text = self.text if self.path is None else _read_file(self.path)
        if not words(text or ""):
            raise AgentFailed(f"{self._name} has no words", type="document_empty", retryable=False)
        return text or ""

    @property
    def _name(self) -> str:
        return "the text" if self.path is None else f"the document {self.path}"


def _read_file(path: str) -> str:
    file = (HERE / path).resolve()
    if not file.is_relative_to(HERE):
        raise AgentFailed(f"{path} is not below examples/", type="document_outside", retryable=False)
    if not file.is_file():
        there_are = ", ".join(sorted(f"documents/{found.name}" for found in (HERE / "documents").glob("*.txt")))
        raise AgentFailed(
            f"there is no document {path}; there are {there_are}", type="document_missing", retryable=False
        )
    if file.stat().st_size > LARGEST_DOCUMENT:
        raise AgentFailed(f"{path} is above {LARGEST_DOCUMENT:,} bytes", type="document_too_large", retryable=False)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AgentFailed(f"{path} is not UTF-8 text: {error}", type="document_not_text", retryable=False) from error


class KeywordRequest(BaseModel):
    document: Document
    top: int = Field(10, ge=1, le=100)


@agents.agent("keywords")
def find_keywords(request: KeywordRequest) -> dict[str, Any]:
    """Return the words that stand most often in the document, without those that stand often in any."""
    found = [word.lower() for word in words(request.document.read())]
    counts = Counter(word for word in found if len(word) > 2 and word not in STOP_WORDS)
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[: request.top]
    keywords = [{"word": word, "count": count, "share": round(count / len(found), 4)} for word, count in ranked]
    return {"result": {"words": len(found), "distinct_words": len(set(found)), "keywords": keywords}}


class DocumentRequest(BaseModel):
    document: Document


@agents.agent("readability")
def measure_readability(request: DocumentRequest) -> dict[str, Any]:
    """Return how easily the document reads, after Rudolf Flesch (1948): 100 is very easy, 0 very hard."""
    text = _without_headings(request.document.read())
    total_sentences, total_words = max(1, len(sentences(text))), max(1, len(words(text)))
    total_syllables = sum(syllables(word) for word in words(text))
    per_sentence, per_word = total_words / total_sentences, total_syllables / total_words
    ease = 206.835 - 1.015 * per_sentence - 84.6 * per_word
    return {
        "result": {
            "reading_ease": round(ease, 1),
            "verdict": _verdict(ease),
            "sentences": total_sentences,
            "words_per_sentence": round(per_sentence, 1),
            "syllables_per_word": round(per_word, 2),
        }
    }


@agents.agent("structure")
def outline(request: DocumentRequest) -> dict[str, Any]:
    """Return the document's title, sections and longest sentence."""
    text = request.document.read()
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    sections = [
        {"heading": heading.strip(), "paragraphs": len(paragraphs(body)), "words": len(words(body))}
        for heading, _, body in (part.partition("\n") for part in re.split(r"^##+ +", text, flags=re.MULTILINE)[1:])
    ]
    longest = max(sentences(_without_headings(text)), key=lambda sentence: len(words(sentence)), default="")
    return {
        "result": {
            "title": title.group(1).strip() if title else None,
            "sections": sections,
            "paragraphs": len(paragraphs(text)),
            "longest_sentence": {"words": len(words(longest)), "text": longest},
        }
    }


class ReportRequest(BaseModel):
    title: str
    keywords: dict[str, Any]
    readability: dict[str, Any]
    structure: dict[str, Any]
    all: dict[str, Any]  # the block's aggregated output


@agents.agent("report")
async def write_report(request: ReportRequest, context: AgentContext) -> dict[str, Any]:
    """Return a report in Markdown that brings the three analyses together, with the analyses themselves."""
    top = ", ".join(f"{entry['word']} ({entry['count']})" for entry in request.keywords["keywords"])
    ease, longest = request.readability, request.structure["longest_sentence"]
    lines = [
        f"# {request.title}",
        "",
        f"*{request.structure['title'] or 'The document'}* has {request.keywords['words']} words, "
        f"{request.keywords['distinct_words']} of them distinct, in {request.structure['paragraphs']} paragraphs.",
        "",
        f"- Keywords: {top}",
        f"- Reading ease: {ease['reading_ease']} ({ease['verdict']}), {ease['words_per_sentence']} words a sentence",
        f"- Longest sentence, {longest['words']} words: {longest['text']}",
        *(f"- Section {section['heading']}: {section['words']} words" for section in request.structure["sections"]),
    ]
    context.logger.info("The report is written", action="report_written", lines=len(lines))
    return {"result": {"report": "\n".join(lines) + "\n", "aggregated": request.all}}


class BranchOutcome(BaseModel):
    status: str
    output: dict[str, Any] | None = None
    error: str | None = None


class SummaryRequest(BaseModel):
    documents: list[str]
    branches: dict[str, BranchOutcome]  # in the order of the documents


@agents.agent("summary")
def summarise(request: SummaryRequest) -> dict[str, Any]:
    """Return a report in Markdown on the documents that could be read, and on why the others could not."""
    lines = ["# Reading ease of the documents", ""]
    complete = 0
    for document, branch in zip(request.documents, request.branches.values(), strict=True):
        if branch.output is None:
            lines.append(f"- {document}: {branch.status}: {branch.error}")
            continue
        complete += 1
        ease = branch.output["result"]
        lines.append(f"- {document}: {ease['reading_ease']} ({ease['verdict']})")
    lines += ["", f"{complete} of {len(request.documents)} documents were read."]
    return {"result": {"report": "\n".join(lines) + "\n", "complete": complete == len(request.documents)}}


class Range(BaseModel):
    start: int = Field(ge=0)
    stop: int = Field(le=10**9)  # the first number behind the range

    @model_validator(mode="after")
    def _is_of_bearable_size(self) -> "Range":
        if not 0 < self.stop - self.start <= 1_000_000:
            raise ValueError("a range holds 1 to 1,000,000 numbers")
        return self


@agents.agent("primes")
def count_primes(request: Range) -> dict[str, Any]:
    """Return how many primes the range holds, found with a segmented sieve of Eratosthenes."""
    start, stop = max(request.start, 2), request.stop
    is_prime = bytearray([1]) * max(0, stop - start)
    for factor in range(2, math.isqrt(max(stop - 1, 0)) + 1):
        first = max(factor * factor, -(-start // factor) * factor)
        is_prime[first - start :: factor] = bytes(len(range(first, stop, factor)))
    return {"result": {"start": request.start, "stop": request.stop, "primes": sum(is_prime)}}


class PartialCount(BaseModel):
    result: dict[str, int]


class Counts(BaseModel):
    parts: dict[str, PartialCount]  # a block's aggregated output


@agents.agent("add-up")
def add_up(request: Counts) -> dict[str, Any]:
    """Return the sum of all branches' counts."""
    parts = [part.result for part in request.parts.values()]
    return {
        "result": {
            "primes": sum(part["primes"] for part in parts),
            "below": max(part["stop"] for part in parts),
            "branches": len(parts),
        }
    }


class LookUpRequest(BaseModel):
    document: Document
    word: str


@agents.agent("look-up")
def look_up(request: LookUpRequest, context: AgentContext) -> dict[str, Any]:
    """Return how often a word stands in the document, like a service that throttles at first and then fails once."""
    if context.attempt == 1:
        raise RetryLater(0.2, "429 Too Many Requests")
    if context.attempt == 2:
        raise ConnectionError("503 Service Unavailable")
    found = sum(word.lower() == request.word for word in words(request.document.read()))
    return {"result": {"word": request.word, "count": found, "attempt": context.attempt}}


class WaitRequest(BaseModel):
    seconds: float


@agents.agent("wait")
async def wait(request: WaitRequest) -> dict[str, Any]:
    """Return after so many seconds, like a service that is slow to answer."""
    await asyncio.sleep(request.seconds)
    return {"result": {"seconds": request.seconds}}


class NotesRequest(BaseModel):
    branches: dict[str, dict[str, Any] | None]  # the output of a fork_join step: null where a branch failed
    failures: dict[str, str | None]


@agents.agent("notes")
def take_notes(request: NotesRequest) -> dict[str, Any]:
    """Return a line for each branch: what it found, or why it found nothing."""
    lines = {
        name: f"failed: {request.failures.get(name)}" if output is None else f"found {', '.join(output['result'])}"
        for name, output in request.branches.items()
    }
    return {"result": lines}


class Iteration(BaseModel):
    index: int
    status: str
    output: dict[str, Any] | None
    error: dict[str, Any] | None


class DigestRequest(BaseModel):
    iterations: list[Iteration]  # of a loop's output: each completed, failed or cancelled
    summary: str


@agents.agent("digest")
def digest(request: DigestRequest) -> dict[str, Any]:
    """Return a line for each iteration: what it found, or why it found nothing."""
    lines = [
        f"{iteration.index}: {iteration.status}: {iteration.error['message']}"
        if iteration.error is not None
        else f"{iteration.index}: found {', '.join((iteration.output or {}).get('result', ()))}"
        for iteration in request.iterations
    ]
    return {"result": {"completed": request.summary, "iterations": lines}}


def words(text: str) -> list[str]:
    """Return the words, without punctuation; "don't" and "fork-join" are one each."""
    return re.findall(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*", text)


def sentences(text: str) -> list[str]:
    """Return the sentences, each on one line."""
    found = []
    for paragraph in paragraphs(text):
        found += _SENTENCE_END.split(" ".join(paragraph.split()))
    return [sentence for sentence in found if words(sentence)]


def paragraphs(text: str) -> list[str]:
    """Return the blocks of text between empty lines and headings."""
    return [part.strip() for part in re.split(r"\n\s*\n", _without_headings(text)) if part.strip()]


def syllables(word: str) -> int:
    """Return about how many syllables an English word has: its groups of vowels, without a silent e at the end."""
    lower = word.lower()
    groups = len(re.findall(r"[aeiouy]+", lower))
    silent = lower.endswith("e") and not re.search(r"[^aeiouy]le$|[aeiouy]e$", lower)
    return max(1, groups - silent)


def _without_headings(text: str) -> str:
    return re.sub(r"^#+ .*$", "", text, flags=re.MULTILINE)


def _verdict(ease: float) -> str:
    limits = {80: "easy", 60: "plain English", 50: "fairly difficult", 30: "difficult"}
    return next((verdict for limit, verdict in limits.items() if ease >= limit), "very difficult")
