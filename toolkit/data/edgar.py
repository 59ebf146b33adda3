"""Filings of any company, from the SEC's public archive: chosen, fetched once, and pinned.

A filing has an accession number, and what was fetched under it has a hash: both stand in the list
that a run writes (`data/filings/`), and a recipe that names such a list gets exactly its filings.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from toolkit.data.config import EdgarSection
from toolkit.data.edgar_archive import (
    REQUESTS_PER_SECOND,
    EdgarArchive,
    edgar_folder,
    open_archive,
)
from toolkit.errors import ConfigError, DataError, did_you_mean
from toolkit.file_hashes import known_hash
from toolkit.json_lines import iterate_rows
from toolkit.library_errors import first_line
from toolkit.progress import say
from toolkit.section import replace_values
from toolkit.stage import hash_bytes, write_atomically

_LISTED_PER_PAGE = 100
_MOST_COMPANIES = 10_000
_LISTS_HOLD = timedelta(days=1)
_ACCESSION = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Filing:
    """One filing of one company.

    Attributes:
        company: the company's ticker, or its ten-digit number where it has none: the group.
        number: the company's number at the SEC (CIK), ten digits.
        accession: the filing's own number, `0000320193-23-000106`.
        form: such as `10-K`.
        filed: date of filing.
        period: last day of what it reports on; empty where the archive does not say.
        document: name of the main document; empty for old filings, which are one text.
        num_bytes: of the whole submission, by the archive's own count.
        sha256: of what was fetched, or has to be; empty where that is not known yet.
    """

    company: str
    number: str
    accession: str
    form: str
    filed: str
    period: str
    document: str
    num_bytes: int
    sha256: str = ""

    @property
    def key(self) -> str:
        """Company and accession number: begins the ids of the filing's sections."""
        return f"{self.company}/{self.accession}"

    @property
    def address(self) -> str:
        """Below the archive's address."""
        archive_folder = f"Archives/edgar/data/{int(self.number)}/{self.accession.replace('-', '')}"
        return f"{archive_folder}/{self.document or self.accession + '.txt'}"

    @property
    def path(self) -> Path:
        """Where it is kept."""
        file_name = self.document.replace("/", "_") or f"{self.accession}.txt"
        return edgar_folder() / self.number / self.accession / file_name


def find_filings(source: EdgarSection) -> list[Filing]:
    """The filings that a source asks for; none is fetched yet.

    The archive's lists are kept for a day, and for good once the last year that is asked for is
    over: a run that is continued reads the same filings, also without a connection.

    Returns:
        In a stable order: by company as the recipe names them, then by date.

    Raises:
        ConfigError: a company does not exist, or filed none of the forms in these years.
        DataError: the archive refuses or does not answer.
    """
    if source.filings is not None:
        return read_filing_list(Path(source.filings))
    # Who asks changes nothing in the answer: another person's contact finds the same list.
    asked_hash = hash_bytes(source.model_dump_json(exclude={"contact", "filings"}).encode())
    kept_list = edgar_folder() / "lists" / f"{asked_hash}.jsonl"
    if kept_list.is_file():
        # A year that is over gains no filings but amendments of other forms; until then lists hold
        # a day.
        listed_at = datetime.fromtimestamp(kept_list.stat().st_mtime)
        is_final = listed_at.year > source.first_and_last_year[1]
        if is_final or datetime.now() - listed_at < _LISTS_HOLD:
            return read_filing_list(kept_list)
    archive = open_archive(source.caller())
    try:
        found_filings = _choose_filings(archive, source)
    except FileNotFoundError as error:
        raise DataError(f"edgar: the archive has no {error}; is {archive.site} one?") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"edgar: what {archive.site} sends is not in the archive's form ({first_line(error)})."
        ) from error
    write_filing_list(kept_list, found_filings)
    return found_filings


def pin_filings(source: EdgarSection, path: Path) -> EdgarSection:
    """The source by the list at a path, which is written where it is not there yet: what is begun
    with one list goes on with it, whatever the archive lists by then."""
    if not path.is_file():
        write_filing_list(path, find_filings(source))
    return replace_values(source, filings=str(path))


def say_what_is_fetched(name: str, filings: Sequence[Filing]) -> None:
    """Say what is asked for and what fetching it takes, before it is done."""
    absent_filings = [filing for filing in filings if not _kept_hash(filing)]
    total_bytes = sum(filing.num_bytes for filing in absent_filings)
    num_companies = len({filing.company for filing in filings})
    say(
        f"  {name}: {len(filings)} filings of {num_companies} companies, {len(absent_filings)} to "
        "fetch"
        + (
            f" (at most {total_bytes / 1e6:,.0f} MB, since the archive counts exhibits and "
            f"pictures too; {len(absent_filings) / REQUESTS_PER_SECOND:,.0f} s or more at the "
            "archive's pace)"
            if absent_filings
            else ""
        )
    )


def fetch_filing(filing: Filing, source: EdgarSection) -> Filing:
    """The filing with the hash of its bytes, which are on this machine afterwards.

    Raises:
        DataError: the archive does not give it, or it is not what a list pins.
    """
    fetched_filing = replace(
        filing, sha256=_kept_hash(filing) or _fetch(open_archive(source.caller()), filing)
    )
    if filing.sha256 and fetched_filing.sha256 != filing.sha256:
        raise DataError(
            f"{filing.key}: has sha256 {fetched_filing.sha256}, the list pins {filing.sha256}: the "
            "archive's document was changed since. Take the line out of the list."
        )
    return fetched_filing


def _choose_filings(archive: EdgarArchive, source: EdgarSection) -> list[Filing]:
    """All that the source asks for, by the archive's lists; nothing is fetched yet."""
    number_by_ticker = _numbers_by_ticker(archive) if source.companies else {}
    company_numbers = [_company_number(given, number_by_ticker) for given in source.companies]
    if source.sic is not None:
        company_numbers += _companies_of_industry(archive, source)
    chosen_filings: dict[str, Filing] = {}
    empty_companies: list[str] = []
    num_joint = 0
    for number in dict.fromkeys(company_numbers):
        listed_filings = list(_listed_filings(archive, number, source))
        for filing in listed_filings:
            # One filing of several registrants stands in the list of each; it is one document.
            num_joint += filing.accession in chosen_filings
            chosen_filings.setdefault(filing.accession, filing)
        if not listed_filings:
            empty_companies.append(number)
    first_year, last_year = source.first_and_last_year
    asked_text = f"{', '.join(source.forms)} from {first_year} to {last_year}"
    if empty_companies and source.companies:
        given_names = {
            number: given for given, number in zip(source.companies, company_numbers, strict=False)
        }
        company_words = ", ".join(given_names.get(number, number) for number in empty_companies)
        raise ConfigError(
            f"edgar.companies: {company_words} filed no {asked_text}; correct companies, forms or "
            "years."
        )
    if not chosen_filings:
        raise ConfigError(f"edgar.sic: no company of industry {source.sic} filed {asked_text}.")
    if num_joint:
        say(f"  edgar: {num_joint} filings of several registrants are read once")
    return list(chosen_filings.values())


def _numbers_by_ticker(archive: EdgarArchive) -> dict[str, str]:
    listed_companies = archive.read_json(f"{archive.site}/files/company_tickers.json")
    rows = listed_companies.values() if isinstance(listed_companies, dict) else listed_companies
    return {str(row["ticker"]).upper(): f"{int(row['cik_str']):010d}" for row in rows}


def _company_number(given: str, numbers: Mapping[str, str]) -> str:
    """The ten-digit number of a company given by number or ticker.

    Raises:
        ConfigError: no company has this ticker.
    """
    if given.isdecimal():
        return f"{int(given):010d}"
    # The archive writes a class of shares with a hyphen (BRK-B), many write a point.
    ticker = given.upper().replace(".", "-")
    if ticker not in numbers:
        raise ConfigError(
            f"edgar.companies: the archive knows no ticker {given!r}"
            f"{did_you_mean(ticker, numbers) or ''}; companies that are not listed any more have a "
            "number only (CIK): give that, in quotes."
        )
    return numbers[ticker]


def _companies_of_industry(archive: EdgarArchive, source: EdgarSection) -> list[str]:
    """Numbers of the companies of an industry that filed any of the forms, in the archive's order,
    form by form."""
    numbers_by_form = (_companies_of_form(archive, source, form) for form in source.forms)
    company_numbers = list(dict.fromkeys(itertools.chain.from_iterable(numbers_by_form)))
    if not company_numbers:
        raise ConfigError(f"edgar.sic: the archive lists no company of industry {source.sic}.")
    return company_numbers[: source.max_companies]


def _companies_of_form(archive: EdgarArchive, source: EdgarSection, form: str) -> list[str]:
    company_numbers: list[str] = []
    while len(company_numbers) < (source.max_companies or _MOST_COMPANIES):
        # The archive's codes have four digits: agriculture is 0100.
        feed_page = archive.read_bytes(
            f"{archive.site}/cgi-bin/browse-edgar?action=getcompany&SIC={source.sic:04d}"
            f"&type={quote(form)}&owner=include&count={_LISTED_PER_PAGE}"
            f"&start={len(company_numbers)}&output=atom"
        )
        found_numbers = _numbers_in_feed(feed_page)
        new = [number for number in dict.fromkeys(found_numbers) if number not in company_numbers]
        company_numbers += new
        # A page that brings nothing new ends the list too: some mirrors repeat their last page.
        if len(found_numbers) < _LISTED_PER_PAGE or not new:
            break
    return company_numbers


def _numbers_in_feed(page: bytes) -> list[str]:
    """Company numbers of an Atom feed; entities are refused, since they can grow without bound."""
    if b"<!DOCTYPE" in page or b"<!ENTITY" in page:
        raise DataError("edgar.sic: the archive's list is a page with definitions of its own.")
    try:
        root = ElementTree.fromstring(page)  # noqa: S314  (no definitions, see above)
    except ElementTree.ParseError as error:
        raise DataError(f"edgar.sic: the archive's list cannot be read ({error}).") from error
    number_texts = [
        (node.text or "").strip()
        for node in root.iter()
        if str(node.tag).rpartition("}")[2].lower() == "cik"
    ]
    return [f"{int(text):010d}" for text in number_texts if text.isdecimal()]


def _listed_filings(archive: EdgarArchive, number: str, source: EdgarSection) -> Iterator[Filing]:
    """A company's filings of the forms and years, oldest first.

    Raises:
        ConfigError: there is no such company.
    """
    address = f"{archive.api}/submissions/CIK{number}.json"
    try:
        company = archive.read_json(address)
    except FileNotFoundError as error:
        raise ConfigError(
            f"edgar.companies: the archive has no company with number {number}."
        ) from error
    tickers = [str(ticker).upper() for ticker in company.get("tickers") or ()]
    group = tickers[0] if tickers else number
    tables = [company["filings"]["recent"]]
    from_year, to_year = source.first_and_last_year
    for older in company["filings"].get("files") or ():
        # What lies wholly outside the years is not fetched.
        first_year, last_year = _year(older.get("filingFrom")), _year(older.get("filingTo"))
        if (first_year or from_year) <= to_year and (last_year or to_year) >= from_year:
            tables.append(archive.read_json(f"{archive.api}/submissions/{older['name']}"))
    found = [filing for table in tables for filing in _filings_of(table, group, number, source)]
    yield from sorted(found, key=lambda filing: (filing.filed, filing.accession))


def _year(text: object) -> int | None:
    try:
        return date.fromisoformat(str(text)).year
    except ValueError:
        return None


def _filings_of(
    table: Mapping[str, Sequence[Any]], company: str, number: str, source: EdgarSection
) -> Iterator[Filing]:
    """Those of the forms and years in one of the archive's tables, which hold a list per column."""
    columns = ("accessionNumber", "form", "filingDate", "reportDate", "primaryDocument", "size")
    from_year, to_year = source.first_and_last_year
    num_filings = len(table["accessionNumber"])
    rows = zip(*(table.get(column) or [""] * num_filings for column in columns), strict=False)
    for accession, form, filed, period, document, size in rows:
        filing_year = _year(filed)
        if form not in source.forms or filing_year is None:
            continue
        if not from_year <= filing_year <= to_year:
            continue
        # It becomes part of an address and of a path in the cache.
        if not re.fullmatch(r"\d{10}-\d{2}-\d{6}", str(accession)):
            raise DataError(f"CIK{number}: {accession!r} is no accession number.")
        yield Filing(
            company, number, accession, form, filed, period or "", document or "", int(size or 0)
        )


def _fetch(archive: EdgarArchive, filing: Filing) -> str:
    """Fetch and keep one filing; returns its sha256."""
    address = f"{archive.site}/{filing.address}"
    try:
        filing_bytes = archive.read_bytes(address)
    except FileNotFoundError as error:
        raise DataError(
            f"{filing.key}: the archive lists it, and has no {filing.address}."
        ) from error
    if not filing_bytes.strip():
        raise DataError(f"{filing.key}: {address} is empty.")
    filing_hash = hash_bytes(filing_bytes)
    with write_atomically(filing.path, "wb") as file:
        file.write(filing_bytes)
    # The hash after the document: a document without one, cut off by a kill, is fetched again.
    with write_atomically(filing.path.with_name(f"{filing.path.name}.sha256")) as file:
        file.write(filing_hash)
    return filing_hash


def _kept_hash(filing: Filing) -> str:
    """The hash of what is kept of a filing; empty where nothing is, or not what was fetched."""
    try:
        said = filing.path.with_name(f"{filing.path.name}.sha256").read_text("ascii").strip()
        return said if known_hash(filing.path) == said else ""
    except (OSError, ValueError):
        return ""


def read_main_document(filing: Filing) -> bytes:
    """A fetched filing's own text without exhibits: its main document, or for old filings, which
    are one file, the first document in it of the filing's form.

    >>> text = b"<DOCUMENT>\\n<TYPE>EX-1\\n<TEXT>no</TEXT></DOCUMENT>"
    >>> text += b"<DOCUMENT>\\n<TYPE>10-K\\n<TEXT>yes</TEXT></DOCUMENT>"
    >>> _document_of_form(text, "10-K")
    b'yes'
    """
    filing_bytes = filing.path.read_bytes()
    if filing.document:
        return filing_bytes
    main_document = _document_of_form(filing_bytes, filing.form)
    if main_document is None:
        raise DataError(f"{filing.key}: the submission holds no document of form {filing.form}.")
    return main_document


def is_page(data: bytes) -> bool:
    """Whether a filing is HTML, as all are since about 2001, whatever its name ends in."""
    # The head says it; old submissions in plain text run to many megabytes.
    return bool(re.search(rb"(?i)<(?:html|body|table|div|p)\b", data[:65536]))


def _document_of_form(data: bytes, form: str) -> bytes | None:
    for part in re.findall(rb"(?s)<DOCUMENT>(.*?)</DOCUMENT>", data):
        # In EDGAR's SGML this element has no end tag: its value goes to the end of the line.
        document_type = re.search(rb"<TYPE>([^\r\n<]*)", part)
        text = re.search(rb"(?s)<TEXT>(.*?)(?:</TEXT>|$)", part)
        if document_type and text and document_type[1].strip().decode("ascii", "replace") == form:
            return bytes(text[1])
    return None


def read_filing_list(path: Path) -> list[Filing]:
    """Filings as a run's list holds them, one per line.

    Raises:
        ConfigError: the list is not there, or a line of it is no filing with a hash.
    """
    if not path.is_file():
        raise ConfigError(
            f"edgar.filings: {path} cannot be read: no such file; a run writes such lists to "
            "data/filings/ in its folder."
        )
    filings = []
    for line_place, row in iterate_rows(path, ConfigError, "take the list that a run wrote"):
        try:
            filing = Filing(**row)
            int(filing.number)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{line_place}: is no filing ({first_line(error)}).") from error
        # These become a path below the cache; a list is a stranger's file.
        is_inside = _ACCESSION.fullmatch(str(filing.accession)) and str(filing.number).isdecimal()
        path_parts = (filing.accession, filing.number, filing.document, filing.company)
        if not is_inside or not all(
            isinstance(part, str) and ".." not in part and "\0" not in part for part in path_parts
        ):
            raise ConfigError(f"{line_place}: leads out of the archive ({filing.key}).")
        filings.append(filing)
    if not filings:
        raise ConfigError(f"{path}: lists no filings.")
    return filings


def write_filing_list(path: Path, filings: Iterable[Filing]) -> None:
    """Write what `edgar.filings` reads."""
    with write_atomically(path) as file:
        for filing in filings:
            file.write(json.dumps(asdict(filing)) + "\n")
