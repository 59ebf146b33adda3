"""The SEC's archive on loopback, in the form of its documented addresses: made-up companies."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.conftest import paragraph


@dataclass
class Submission:
    """A filing as the archive lists it."""

    accession: str
    form: str
    filed: str
    document: str
    body: bytes

    @property
    def folder(self) -> str:
        return self.accession.replace("-", "")


@dataclass
class Company:
    """A registrant: its filings, newest first, and those that stand in older lists."""

    number: int
    tickers: tuple[str, ...]
    recent: list[Submission]
    older: list[Submission] = field(default_factory=list)
    sic: int = 5331


@dataclass
class Archive:
    """What is served, what was asked for, and the faults that a test puts in.

    Attributes:
        faults: by path: answers in place of the right one, one after another; a status, or `cut`.
    """

    companies: list[Company]
    asked: Counter[str] = field(default_factory=Counter)
    callers: set[str] = field(default_factory=set)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    url: str = ""

    def answer(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        if path == "/files/company_tickers.json":
            rows = [
                {"cik_str": company.number, "ticker": ticker, "title": "Made up"}
                for company in self.companies
                for ticker in company.tickers
            ]
            return json.dumps({str(n): row for n, row in enumerate(rows)}).encode()
        if path == "/cgi-bin/browse-edgar":
            return self._feed(query)
        for company in self.companies:
            prefix = f"CIK{company.number:010d}"
            older = f"{prefix}-submissions-001.json"
            if path == f"/submissions/{prefix}.json":
                files = [
                    {
                        "name": older,
                        "filingFrom": min((s.filed for s in company.older), default=""),
                        "filingTo": max((s.filed for s in company.older), default=""),
                    }
                ]
                return json.dumps(
                    {
                        "cik": str(company.number),
                        "tickers": list(company.tickers),
                        "filings": {
                            "recent": _table(company.recent),
                            "files": files if company.older else [],
                        },
                    }
                ).encode()
            if path == f"/submissions/{older}" and company.older:
                return json.dumps(_table(company.older)).encode()
            for one in company.recent + company.older:
                place = f"/Archives/edgar/data/{company.number}/{one.folder}"
                if path == f"{place}/{one.document or one.accession + '.txt'}":
                    return one.body
        return None

    def _feed(self, query: dict[str, list[str]]) -> bytes:
        numbers = [
            company.number
            for company in self.companies
            if query["SIC"][0] == f"{company.sic:04d}"
            and any(s.form.startswith(query["type"][0]) for s in company.recent + company.older)
        ]
        start, count = int(query["start"][0]), int(query["count"][0])
        entries = "".join(
            f"<entry><content type='text/xml'><company-info><cik>{number:010d}</cik>"
            "</company-info></content></entry>"
            for number in numbers[start : start + count]
        )
        return f"<feed xmlns='http://www.w3.org/2005/Atom'>{entries}</feed>".encode()


def _table(submissions: list[Submission]) -> dict[str, list[object]]:
    return {
        "accessionNumber": [s.accession for s in submissions],
        "form": [s.form for s in submissions],
        "filingDate": [s.filed for s in submissions],
        "reportDate": [s.filed[:4] + "-01-31" for s in submissions],
        "primaryDocument": [s.document for s in submissions],
        "size": [len(s.body) for s in submissions],
    }


def filing_page(seed: int) -> bytes:
    """A page in the form of an annual report, with two sections."""
    words = "".join(
        f"<div><b>Item {number}. Heading</b></div>"
        + "".join(f"<p>{paragraph(100 * seed + 10 * number + n, 120)}</p>" for n in range(3))
        for number in (1, 7)
    )
    return f"<html><body>{words}</body></html>".encode()


def made_up_archive() -> Archive:
    """Three companies of an industry: one with an amendment and an old text, one without ticker."""
    old_text = (
        "<SEC-DOCUMENT>\n<DOCUMENT>\n<TYPE>EX-99\n<TEXT>\nan exhibit\n</TEXT>\n</DOCUMENT>\n"
        f"<DOCUMENT>\n<TYPE>10-K\n<TEXT>\n{paragraph(7, 300)}\n</TEXT>\n</DOCUMENT>\n"
    ).encode()
    first = Company(
        1750,
        ("AIR", "AIR-P"),
        [
            Submission("0000001750-23-000002", "10-K/A", "2023-08-01", "a.htm", filing_page(1)),
            Submission("0000001750-23-000001", "10-K", "2023-07-01", "air3.htm", filing_page(2)),
            Submission("0000001750-22-000003", "8-K", "2022-09-01", "k.htm", b"<p>no</p>"),
            Submission("0000001750-22-000001", "10-K", "2022-07-01", "air2.htm", filing_page(3)),
        ],
        [Submission("0000001750-99-000001", "10-K", "1999-07-01", "", old_text)],
    )
    joint = Submission("0000018230-23-000009", "10-K", "2023-02-01", "joint.htm", filing_page(4))
    second = Company(18230, ("ON",), [joint])
    third = Company(777, (), [joint])
    return Archive([first, second, third])


@contextmanager
def serve_archive(archive: Archive) -> Iterator[Archive]:
    """Serve it until the block ends; `archive.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            archive.asked[parts.path] += 1
            archive.callers.add(self.headers.get("User-Agent", ""))
            fault = (archive.faults.get(parts.path) or [None]).pop(0)
            body = archive.answer(parts.path, parse_qs(parts.query))
            status = fault if isinstance(fault, int) else 200 if body is not None else 404
            if status != 200:
                body = b"Request Rate Threshold Exceeded" if fault == 429 else b"no"
            assert body is not None
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if fault == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
