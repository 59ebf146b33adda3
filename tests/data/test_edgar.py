from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.corpora import run, write_corpus
from tests.helpers.corpora import section as corpus_section
from tests.helpers.edgar_server import (
    Archive,
    Company,
    Submission,
    filing_page,
    made_up_archive,
    serve_archive,
)
from toolkit.data import edgar_archive
from toolkit.data.config import DataSection, EdgarSection, SourceSection
from toolkit.data.edgar import (
    fetch_filing,
    find_filings,
    pin_filings,
    read_filing_list,
    write_filing_list,
)
from toolkit.data.sources import read_documents
from toolkit.errors import ConfigError, DataError

CONTACT = "Test Person test@example.org"


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Archive]:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(edgar_archive, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(edgar_archive, "REQUESTS_PER_SECOND", 500.0)
    with serve_archive(made_up_archive()) as served:
        monkeypatch.setenv("TOOLKIT_EDGAR_URL", served.url)
        edgar_archive.open_archive.cache_clear()
        yield served
    edgar_archive.open_archive.cache_clear()


def section(**values: Any) -> EdgarSection:
    return EdgarSection.model_validate({"years": [2022, 2023], "contact": CONTACT} | values)


def documents(edgar: EdgarSection) -> list[tuple[str, str]]:
    source = SourceSection.model_validate({"role": "domain", "edgar": edgar})
    return [(document.id, document.group) for document in read_documents("filings", source)]


def test_a_companys_filings_in_their_order(archive: Archive):
    found = find_filings(section(companies=["AIR"]))
    assert [f.accession for f in found] == ["0000001750-22-000001", "0000001750-23-000001"]
    assert {f.company for f in found} == {"AIR"}
    assert archive.callers == {CONTACT}
    # The older list lies outside the years and is not asked for.
    assert not any("submissions-001" in path for path in archive.asked)


def test_sections_are_documents_and_companies_are_groups(archive: Archive):
    found = documents(section(companies=["AIR", "0000018230"]))
    assert [group for _, group in found] == ["AIR"] * 4 + ["ON"] * 2
    assert found[0][0] == "filings/AIR/0000001750-22-000001#0000"
    assert len({identity for identity, _ in found}) == len(found)


def test_every_filing_is_fetched_once(archive: Archive):
    edgar = section(companies=["AIR"])
    first = documents(edgar)
    asked = dict(archive.asked)
    archive.companies[0].recent.insert(
        0, Submission("0000001750-23-000007", "10-K", "2023-12-01", "new.htm", b"<p>new</p>")
    )
    # The years are over: what is kept of the list holds, also for a run that is continued.
    assert documents(edgar) == first
    assert dict(archive.asked) == asked


def test_the_list_of_a_year_that_goes_on_is_asked_for_again(archive: Archive, tmp_path: Path):
    edgar = section(companies=["AIR"], years=[2022, 2100])
    find_filings(edgar)
    asked = archive.asked["/submissions/CIK0000001750.json"]
    find_filings(edgar)
    assert archive.asked["/submissions/CIK0000001750.json"] == asked
    (kept,) = (tmp_path / "cache" / "edgar" / "lists").glob("*.jsonl")
    os.utime(kept, (kept.stat().st_mtime - 100_000,) * 2)
    find_filings(edgar)
    assert archive.asked["/submissions/CIK0000001750.json"] == asked + 1


def test_an_old_filing_is_the_document_of_its_form(archive: Archive):
    edgar = section(companies=["0000001750"], years=[1999, 1999])
    source = SourceSection.model_validate({"role": "domain", "edgar": edgar})
    (document,) = read_documents("filings", source)
    assert "exhibit" not in document.text
    assert len(document.text.split()) >= 300


def test_amendments_are_a_form_of_their_own(archive: Archive):
    found = find_filings(section(companies=["AIR"], forms=["10-K", "10-K/A"], years=[2023, 2023]))
    assert [f.form for f in found] == ["10-K", "10-K/A"]


def test_a_joint_filing_is_one_document(archive: Archive):
    found = find_filings(section(companies=["ON", "0000000777"]))
    assert [(f.company, f.accession) for f in found] == [("ON", "0000018230-23-000009")]


def test_an_industry(archive: Archive):
    found = find_filings(section(sic=5331))
    assert [f.company for f in found] == ["AIR", "AIR", "ON"]
    assert {f.company for f in find_filings(section(sic=5331, max_companies=1))} == {"AIR"}


def test_an_industrys_companies_are_those_of_any_of_the_forms(archive: Archive):
    for company in archive.companies:
        company.sic = 100
    foreign = Submission("0000000888-23-000001", "20-F", "2023-03-01", "f.htm", filing_page(5))
    archive.companies.append(Company(888, ("FOR",), [foreign], sic=100))
    found = find_filings(section(sic=100, forms=["10-K", "20-F"]))
    assert [f.company for f in found] == ["AIR", "AIR", "ON", "FOR"]


def test_a_list_pins_filings(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    edgar = section(companies=["AIR"])
    fetched = [fetch_filing(filing, edgar) for filing in find_filings(edgar)]
    path = tmp_path / "filings.jsonl"
    write_filing_list(path, fetched)
    assert read_filing_list(path) == fetched
    pinned = EdgarSection.model_validate({"filings": str(path), "contact": CONTACT})
    asked = dict(archive.asked)
    assert documents(pinned) == documents(edgar)
    assert dict(archive.asked) == asked

    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "other"))
    assert documents(pinned) == documents(edgar)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "third"))
    archive.companies[0].recent[1].body += b"<p>changed</p>"
    with pytest.raises(DataError, match="the list pins"):
        documents(pinned)


def test_what_is_damaged_in_the_cache_is_fetched_again(archive: Archive):
    edgar = section(companies=["AIR"])
    filing = fetch_filing(find_filings(edgar)[0], edgar)
    filing.path.write_bytes(filing.path.read_bytes()[:-1] + b"x")
    assert fetch_filing(filing, edgar) == filing
    assert archive.asked[f"/{filing.address}"] == 2


@pytest.mark.parametrize("faults", [[429, 429], [503], ["cut"], [500, "cut", 429]])
def test_trouble_that_passes(archive: Archive, faults: list[int | str]):
    edgar = section(companies=["AIR"])
    filing = find_filings(edgar)[0]
    archive.faults[f"/{filing.address}"] = list(faults)
    fetched = fetch_filing(filing, edgar)
    assert fetched.path.read_bytes() == archive.companies[0].recent[3].body
    assert archive.asked[f"/{filing.address}"] == len(faults) + 1


def test_trouble_that_stays_keeps_what_is_there(archive: Archive):
    edgar = section(companies=["AIR"])
    first, second = find_filings(edgar)
    archive.faults[f"/{second.address}"] = [503] * 20
    with pytest.raises(DataError, match="run the same command again"):
        documents(edgar)
    assert archive.asked[f"/{first.address}"] == 1
    archive.faults.clear()
    assert len(documents(edgar)) == 4
    assert archive.asked[f"/{first.address}"] == 1


def test_a_refusal_asks_for_a_contact(archive: Archive):
    archive.faults["/files/company_tickers.json"] = [403]
    with pytest.raises(DataError, match="contact line"):
        find_filings(section(companies=["AIR"]))
    assert archive.asked["/files/company_tickers.json"] == 1


def test_a_filing_that_the_archive_lost(archive: Archive):
    edgar = section(companies=["AIR"])
    filing = find_filings(edgar)[0]
    archive.faults[f"/{filing.address}"] = [404]
    with pytest.raises(DataError, match="lists it, and has no"):
        fetch_filing(filing, edgar)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"companies": ["AIRR"]}, "did you mean AIR"),
        ({"companies": ["0000009999"]}, "no company with number 0000009999"),
        ({"companies": ["AIR", "ON"], "years": [2022, 2022]}, "ON filed no 10-K from 2022"),
        ({"companies": ["AIR"], "forms": ["20-F"]}, "AIR filed no 20-F"),
        ({"sic": 1000}, "no company of industry 1000"),
    ],
)
def test_what_is_not_there(archive: Archive, values: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        find_filings(section(**values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"companies": [True], "years": [2020, 2021]}, "in quotes"),
        ({"companies": [1000], "years": [2020, 2021]}, "in quotes"),
        ({"companies": ["AIR"]}, "give years"),
        ({"companies": ["AIR"], "years": [2021, 2020]}, "in order"),
        ({"years": [2020, 2021]}, "exactly one of companies"),
        ({"companies": ["A"], "sic": 5331, "years": [2020, 2021]}, "exactly one of companies"),
        ({"companies": ["A"], "years": [2020, 2021], "contact": "me"}, "name and an address"),
        ({"companies": ["A"], "years": [2020, 2021], "forms": []}, "at least 1"),
    ],
)
def test_what_cannot_be_asked_for(values: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        EdgarSection.model_validate(values)


def test_who_asks_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch):
    edgar = EdgarSection.model_validate({"companies": ["AIR"], "years": [2022, 2023]})
    monkeypatch.delenv("EDGAR_IDENTITY", raising=False)
    with pytest.raises(ConfigError, match="EDGAR_IDENTITY"):
        edgar.caller()
    monkeypatch.setenv("EDGAR_IDENTITY", CONTACT)
    assert edgar.caller() == CONTACT


def test_the_contact_is_written_nowhere():
    assert CONTACT not in section(companies=["AIR"]).model_dump_json()


def test_what_is_begun_goes_on_with_its_list(archive: Archive, tmp_path: Path):
    edgar = section(companies=["AIR"], years=[2022, 2100])
    pinned = pin_filings(edgar, tmp_path / "list.jsonl")
    first = find_filings(pinned)
    (kept,) = (tmp_path / "cache" / "edgar" / "lists").glob("*.jsonl")
    os.utime(kept, (kept.stat().st_mtime - 100_000,) * 2)
    archive.companies[0].recent.insert(
        0, Submission("0000001750-23-000007", "10-K", "2023-12-01", "new.htm", b"<p>new</p>")
    )
    assert find_filings(pin_filings(edgar, tmp_path / "list.jsonl")) == first
    assert len(find_filings(edgar)) == len(first) + 1


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"0": {"ticker": "AIR"}}', b"<html>", b"[3]"])
def test_answers_of_another_form_are_one_line(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, body: bytes
):
    monkeypatch.setattr(archive, "answer", lambda *_: body)
    with pytest.raises((ConfigError, DataError), match=r"archive"):
        find_filings(section(companies=["AIR"]))
    monkeypatch.setattr(archive, "answer", lambda *_: None)
    with pytest.raises(DataError, match="the archive has no"):
        find_filings(section(companies=["AIR"]))


def test_a_damaged_list_names_its_line(tmp_path: Path):
    path = tmp_path / "filings.jsonl"
    path.write_text('{"company": "A"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"filings.jsonl:1: is no filing"):
        read_filing_list(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_filing_list(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    "strange", [{"accession": "/etc/cron.d"}, {"accession": "a/../../b"}, {"number": " 1"}]
)
def test_a_strangers_list_leads_nowhere_else(tmp_path: Path, strange: dict[str, str]):
    row = {
        "company": "A", "number": "0000000001", "accession": "0000000001-23-000001",
        "form": "10-K", "filed": "2023-01-01", "period": "", "document": "a.htm", "num_bytes": 1,
    }  # fmt: skip
    path = tmp_path / "filings.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | strange), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"filings.jsonl:2: leads out of the archive"):
        read_filing_list(path)


def test_a_run_writes_the_list_that_pins_its_filings(
    archive: Archive, tmp_path: Path, tiny_tokenizer: Any
):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_corpus(tmp_path)
    groups = {"train": ["ON"], "validation": ["AIR"], "test": ["AIR"]}
    split = {name: {"groups": patterns, "fraction": 0.5} for name, patterns in groups.items()}
    edgar = {"companies": ["AIR", "ON"], "years": [1999, 2023], "contact": CONTACT}
    data = corpus_section(tmp_path).model_dump(exclude_none=True)
    data["sources"]["docs"] = {"role": "domain", "edgar": edgar, "split": split}
    run(DataSection.model_validate(data), tmp_path / "first", tmp_path / "tokenizer")

    pinned = tmp_path / "first" / "filings" / "docs.jsonl"
    assert [f.company for f in read_filing_list(pinned)] == ["AIR", "AIR", "AIR", "ON"]
    assert all(filing.sha256 for filing in read_filing_list(pinned))
    assert CONTACT not in (tmp_path / "first" / "manifest.json").read_text(encoding="utf-8")
    asked = dict(archive.asked)
    data["sources"]["docs"]["edgar"] = {"filings": str(pinned)}
    run(DataSection.model_validate(data), tmp_path / "second", tmp_path / "tokenizer")
    assert dict(archive.asked) == asked
    for name in ("validation.jsonl", "test.jsonl", "documents.csv"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_processes_share_one_pace(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edgar_archive, "REQUESTS_PER_SECOND", 20.0)
    waits: list[float] = []
    monkeypatch.setattr(edgar_archive.time, "sleep", waits.append)
    for _ in range(3):
        edgar_archive._wait_for_turn()
    assert len(waits) >= 2
    assert all(0.0 < wait <= 0.05 for wait in waits)
