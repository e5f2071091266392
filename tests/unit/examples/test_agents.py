"""The example agents as plain functions; expected values were counted by hand."""

from uuid import UUID

import pytest
from pydantic import ValidationError

from agent_worker import AgentContext, AgentFailed
from examples.agents import (
    BranchOutcome,
    Counts,
    Document,
    DocumentRequest,
    KeywordRequest,
    PartialCount,
    Range,
    ReportRequest,
    SummaryRequest,
    add_up,
    count_primes,
    find_keywords,
    measure_readability,
    outline,
    paragraphs,
    sentences,
    summarise,
    syllables,
    words,
    write_report,
)

NOTE = """\
# A Note

The cat sat. The cat ran to the red door!

## Why

Did it "see me?" Yes.
"""


def document(text: str) -> Document:
    return Document(text=text)


class TestDocument:
    def test_a_path_is_read_below_the_examples(self) -> None:
        assert Document(path="documents/queues.txt").read().startswith("# Why Every Queue Tells the Truth\n")

    @pytest.mark.parametrize("path", ["../pyproject.toml", "/etc/hostname", "documents/../../README.md"])
    def test_no_path_leads_out_of_the_examples(self, path: str) -> None:
        with pytest.raises(AgentFailed, match="not below examples/") as caught:
            Document(path=path).read()
        assert caught.value.type == "document_outside"

    def test_a_missing_document_names_those_that_there_are(self) -> None:
        expected = "there is no document documents/nope.txt; there are documents/fork-join.txt, documents/queues.txt"
        with pytest.raises(AgentFailed, match=expected) as caught:
            Document(path="documents/nope.txt").read()
        assert caught.value.type == "document_missing"
        assert caught.value.retryable is False

    def test_a_file_that_is_not_text_is_refused(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("examples.agents.HERE", tmp_path.resolve())
        (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
        with pytest.raises(AgentFailed, match="picture is not UTF-8 text"):
            Document(path="picture").read()

    def test_a_file_that_is_too_large_is_refused_unread(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("examples.agents.HERE", tmp_path.resolve())
        (tmp_path / "large").write_bytes(b"\xff" * 1_000_001)
        with pytest.raises(AgentFailed, match="large is above 1,000,000 bytes"):
            Document(path="large").read()

    @pytest.mark.parametrize("text", ["", "  \n", "1 + 1 = 2"])
    def test_a_text_without_words_is_refused(self, text: str) -> None:
        with pytest.raises(AgentFailed, match="the text has no words") as caught:
            document(text).read()
        assert caught.value.type == "document_empty"

    @pytest.mark.parametrize("given", [{}, {"text": "a", "path": "b"}, {"txt": "a"}])
    def test_it_is_either_a_text_or_a_path(self, given: dict[str, str]) -> None:
        with pytest.raises(ValidationError):
            Document(**given)


class TestKeywords:
    def test_the_most_frequent_words_come_first_and_equals_in_alphabetical_order(self) -> None:
        found = find_keywords(
            KeywordRequest(document=document("Queue, join; QUEUE fork. The queue and a join: fork"), top=2)
        )
        assert found == {
            "result": {
                "words": 10,
                "distinct_words": 6,
                "keywords": [
                    {"word": "queue", "count": 3, "share": 0.3},
                    {"word": "fork", "count": 2, "share": 0.2},
                ],
            }
        }

    def test_stop_words_and_words_of_two_letters_are_no_keywords(self) -> None:
        found = find_keywords(KeywordRequest(document=document("The one is not of an owl")))
        assert found["result"]["keywords"] == [{"word": "owl", "count": 1, "share": 0.1429}]


class TestReadability:
    def test_it_is_the_formula_of_flesch(self) -> None:
        # 2 sentences, 6 words, 8 syllables: 206.835 - 1.015 * 3 - 84.6 * 8/6
        found = measure_readability(
            DocumentRequest(document=document("# Not counted\n\nThe table is here. Mary sings."))
        )
        assert found == {
            "result": {
                "reading_ease": 91.0,
                "verdict": "easy",
                "sentences": 2,
                "words_per_sentence": 3.0,
                "syllables_per_word": 1.33,
            }
        }

    def test_long_words_in_long_sentences_are_very_difficult(self) -> None:
        text = "Organisational interoperability necessitates unambiguous terminological standardisation everywhere."
        assert measure_readability(DocumentRequest(document=document(text)))["result"]["verdict"] == "very difficult"


class TestStructure:
    def test_title_sections_paragraphs_and_the_longest_sentence_are_found(self) -> None:
        assert outline(DocumentRequest(document=document(NOTE))) == {
            "result": {
                "title": "A Note",
                "sections": [{"heading": "Why", "paragraphs": 1, "words": 5}],
                "paragraphs": 2,
                "longest_sentence": {"words": 7, "text": "The cat ran to the red door!"},
            }
        }

    def test_a_text_without_headings_has_no_title_and_no_sections(self) -> None:
        found = outline(DocumentRequest(document=document("Only this.")))["result"]
        assert (found["title"], found["sections"]) == (None, [])


class TestText:
    def test_words_hold_apostrophes_and_hyphens_but_no_digits(self) -> None:
        assert words("Don't fork-join, it's 3rd “naïve”") == ["Don't", "fork-join", "it's", "rd", "naïve"]

    def test_sentences_end_at_a_mark_in_front_of_a_capital_letter(self) -> None:
        text = 'It took 3.5 s, i.e. long. "Why?" He asked!\nNo answer came. 2 days passed'
        assert sentences(text) == [
            "It took 3.5 s, i.e. long.",
            '"Why?"',
            "He asked!",
            "No answer came.",
            "2 days passed",
        ]

    def test_paragraphs_are_separated_by_empty_lines_and_headings(self) -> None:
        assert paragraphs("one\nstill one\n\n \n## Two\ntwo") == ["one\nstill one", "two"]

    @pytest.mark.parametrize(
        ("word", "count"),
        [
            ("cat", 1),
            ("table", 2),
            ("here", 1),
            ("Mary", 2),
            ("queue", 1),
            ("idea", 2),
            ("the", 1),
            ("hm", 1),
            ("see", 1),
        ],
    )
    def test_syllables_are_groups_of_vowels_without_a_silent_e(self, word: str, count: int) -> None:
        assert syllables(word) == count


class TestReports:
    async def test_the_report_brings_the_analyses_together_and_keeps_the_aggregated_output(self) -> None:
        request = DocumentRequest(document=document(NOTE))
        branches = {
            "step-a": find_keywords(KeywordRequest(document=document(NOTE), top=1)),
            "step-b": measure_readability(request),
            "step-c": outline(request),
        }
        asked = ReportRequest(
            title="About cats",
            keywords=branches["step-a"]["result"],
            readability=branches["step-b"]["result"],
            structure=branches["step-c"]["result"],
            all=branches,
        )
        written = await write_report(asked, AgentContext("report", UUID(int=1), "final-step"))
        lines = written["result"]["report"].splitlines()
        assert lines[0] == "# About cats"
        assert lines[2] == "*A Note* has 18 words, 15 of them distinct, in 2 paragraphs."
        assert "- Keywords: cat (2)" in lines
        assert "- Longest sentence, 7 words: The cat ran to the red door!" in lines
        assert "- Section Why: 5 words" in lines
        assert list(written["result"]["aggregated"]) == ["step-a", "step-b", "step-c"]

    def test_the_summary_tells_what_was_read_and_why_the_rest_was_not(self) -> None:
        ease = {"result": {"reading_ease": 70.0, "verdict": "plain English"}}
        branches = {
            "step-a": BranchOutcome(status="COMPLETED", output=ease),
            "step-b": BranchOutcome(status="FAILED", error="there is no document b"),
        }
        found = summarise(SummaryRequest(documents=["a", "b"], branches=branches))["result"]
        assert "- a: 70.0 (plain English)\n- b: FAILED: there is no document b\n\n1 of 2 documents" in found["report"]
        assert found["complete"] is False


class TestPrimes:
    @pytest.mark.parametrize(
        ("start", "stop", "primes"),
        [(0, 1, 0), (0, 2, 0), (0, 3, 1), (0, 10, 4), (0, 100, 25), (10, 20, 4), (24, 29, 0), (24, 30, 1), (49, 50, 0)],
    )
    def test_they_are_counted_from_start_up_to_but_not_including_stop(self, start: int, stop: int, primes: int) -> None:
        assert count_primes(Range(start=start, stop=stop)) == {
            "result": {"start": start, "stop": stop, "primes": primes}
        }

    @pytest.mark.parametrize(("start", "stop"), [(5, 5), (6, 5), (-1, 5), (0, 1_000_001)])
    def test_a_range_is_neither_empty_nor_unbearable(self, start: int, stop: int) -> None:
        with pytest.raises(ValidationError):
            Range(start=start, stop=stop)

    def test_the_counts_of_all_branches_add_up(self) -> None:
        parts = {
            "range-0": PartialCount(result={"start": 0, "stop": 10, "primes": 4}),
            "range-1": PartialCount(result={"start": 10, "stop": 20, "primes": 4}),
        }
        assert add_up(Counts(parts=parts)) == {"result": {"primes": 8, "below": 20, "branches": 2}}
