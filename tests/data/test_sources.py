"""Local files in every format, and clear words about those that cannot be read."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.config import SourceSection
from toolkit.data.files import input_hashes
from toolkit.data.formats import Faults
from toolkit.data.sources import read_documents
from toolkit.data.split import assign_split
from toolkit.errors import DataError


def source(**values: Any) -> SourceSection:
    return SourceSection.model_validate({"role": "domain", **values})


def test_each_format(tmp_path: Path):
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.md").write_text("# marked")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "row one"}) + "\n\n")
    (tmp_path / "d.csv").write_text('text,who\n"row, two",me\n')
    (tmp_path / "e.html").write_text("<html><body><p>web page</p></body></html>")
    texts = [d.text for d in read_documents("s", source(files=[f"{tmp_path}/*"]))]
    assert texts == ["plain text", "# marked", "row one", "row, two", "web page"]


def test_groups_come_from_a_field(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "x", "patient": 7}\n')
    (document,) = read_documents("s", source(files=[str(path)], group_field="patient"))
    assert document.group == "7"


def test_groups_come_from_folders(tmp_path: Path):
    for name in ("acme/2020/a.txt", "acme/b.txt", "bolt/2020/a.txt", "top.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "acme/rows.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    files = [f"{tmp_path}/**/*.*"]

    def groups(**values: Any) -> dict[str, str]:
        return {d.id: d.group for d in read_documents("s", source(files=files, **values))}

    assert groups(group_folders=1) == {
        "s/acme/2020/a": "acme",
        "s/acme/b": "acme",
        "s/acme/rows#000001": "acme",
        "s/acme/rows#000002": "acme",
        "s/bolt/2020/a": "bolt",
        "s/top": "top",
    }
    deeper = groups(group_folders=2)
    assert deeper["s/acme/2020/a"] == "acme/2020"
    assert deeper["s/acme/b"] == "acme"
    assert groups()["s/acme/2020/a"] == "acme/2020/a"
    given = source(files=files, group_folders=1, group_together=True)
    splits = {(d.group, assign_split(d, given, 0)) for d in read_documents("s", given)}
    assert len(splits) == 3  # each folder in one split, whatever the names of its files
    with pytest.raises(ValueError, match="give group_field or group_folders"):
        source(files=files, group_folders=1, group_field="x")
    with pytest.raises(ValueError, match="there are no files here"):
        source(hub={"dataset": "org/name"}, group_folders=1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{bad\n', "a.jsonl:2: is not valid JSON"),
        ("a.jsonl", b'{"texts": "x"}\n', "did you mean texts?"),
        ("a.csv", b"body\nx\n", "has no field 'text'"),
        ("a.txt", b"\xff\xfe\x00x", "is not UTF-8"),
        ("a.xyz", b"%XYZ", "format is unknown"),
        ("a.jsonl", b"", "a.jsonl: is empty, not even a blank line"),
        ("a.csv", b"", "a.csv: is empty, not even a blank line"),
        ("a.parquet", b"", "a.parquet: is damaged: reading fails after 0 documents"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_documents("s", source(files=[str(tmp_path / name)])))
    assert words in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"no/such\.txt: no such file"):
        list(read_documents("s", source(files=["no/such.txt"])))


def test_a_source_has_exactly_one_place():
    with pytest.raises(ValueError, match="exactly one of artifact, hub, edgar and files"):
        source(files=["a"], hub={"dataset": "d"})


def test_hub_datasets_are_streamed_from_a_local_copy(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "from datasets"}\n')
    (document,) = read_documents("s", source(hub={"dataset": str(tmp_path)}))
    assert document.text == "from datasets"


def test_damaged_files_of_a_hub_dataset_are_named_or_skipped_when_told(tmp_path: Path):
    rows = [f'{{"text": "row {number}"}}\n' for number in range(4)]
    for name, content in (("a", rows[0]), ("b", rows[1] + '{"text": bad\n'), ("c", rows[3])):
        (tmp_path / f"train-{name}.jsonl").write_text(content)
    here = source(hub={"dataset": str(tmp_path)})
    with pytest.raises(DataError, match=r"file 2 of 3: is damaged: reading fails after 0 rows"):
        list(read_documents("s", here))
    faults = Faults(skip=True)
    texts = [document.text for document in read_documents("s", here, faults)]
    assert texts == ["row 0", "row 3"]  # `datasets` reads the second file whole or not at all
    assert faults.counts["damaged"] == 1


def test_a_damaged_picture_beside_a_hub_dataset_s_text_does_not_matter(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"text": {"dtype": "string", "_type": "Value"}, "picture": {"_type": "Image"}}
    stored = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = pa.array([{"bytes": b"no picture", "path": None}], stored)
    table = pa.table({"text": ["kept"], "picture": pictures})
    named = {"huggingface": json.dumps({"info": {"features": kinds}})}
    pq.write_table(table.replace_schema_metadata(named), tmp_path / "train.parquet")
    (document,) = read_documents("s", source(hub={"dataset": str(tmp_path)}))
    assert document.text == "kept"


def test_compressed_files_and_more_formats(tmp_path: Path):
    import bz2
    import gzip
    import lzma

    import pyarrow as pa
    import pyarrow.parquet as pq

    row = b'{"text": "row"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row))
    zst = pa.compress(row, codec="zstd", asbytes=True)
    (tmp_path / "b.jsonl.zst").write_bytes(zst + zst)  # frames may follow each other
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(row))
    (tmp_path / "d.jsonl.xz").write_bytes(lzma.compress(row))
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "e.parquet")
    (tmp_path / "f.tsv").write_text("text\tn\ntabs\t1\n")
    documents = list(read_documents("s", source(files=[f"{tmp_path}/*"])))
    assert [d.text for d in documents] == ["row"] * 5 + ["one", "two", "tabs"]
    assert [d.id for d in documents][:6] == [
        "s/a#000001", "s/b#000001", "s/b#000002", "s/c#000001", "s/d#000001", "s/e#000001",
    ]  # fmt: skip


def test_pubmed_articles(tmp_path: Path):
    article = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>12</PMID><Article>
    <ArticleTitle>On <i>cells</i>.</ArticleTitle><Abstract>
    <AbstractText Label="AIMS">We look.</AbstractText><AbstractText>It works.</AbstractText>
    </Abstract></Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"""
    (tmp_path / "a.xml").write_text(article)
    (document,) = read_documents("s", source(files=[f"{tmp_path}/a.xml"]))
    assert document.text == "On cells.\n\nAims: We look.\nIt works."
    assert document.id == "s/a#12"


def test_front_matter_is_left_out(tmp_path: Path):
    (tmp_path / "mit.LICENSE").write_text("---\nkey: mit\n---\n\nPermission is granted\n")
    given = source(files=[f"{tmp_path}/*.LICENSE"], format="front_matter")
    (document,) = read_documents("s", given)
    assert document.text.strip() == "Permission is granted"


def test_templates_ids_and_groups(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"t": "Title", "b": "Body", "key": 9, "firm": "x"}\n')
    given = source(
        files=[f"{tmp_path}/a.jsonl"], template="{t}: {b}", id_field="key", group_field="firm"
    )
    (document,) = read_documents("s", given)
    assert (document.text, document.id, document.group) == ("Title: Body", "s/9", "x")


def test_files_of_the_same_name_in_two_folders_have_ids_of_their_own(tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("text")
    given = source(files=[f"{tmp_path}/**/*.txt"], exclude=["three/*"])
    assert [d.id for d in read_documents("s", given)] == ["s/one/a", "s/two/a"]
    only = source(files=[f"{tmp_path}/**/*.txt"], exclude=["two/*"])
    assert [d.id for d in read_documents("s", only)] == ["s/one/a"]


def test_files_that_differ_in_their_ending_or_their_pattern_have_ids_of_their_own(tmp_path: Path):
    for name in ("a.md", "a.txt", "b/a.txt", "c/a.txt", "c/only.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    given = source(files=[f"{tmp_path}/*.*", f"{tmp_path}/b/*.txt", f"{tmp_path}/c/*.txt"])
    found = {d.id: d.text for d in read_documents("s", given)}
    assert found == {
        "s/a": "a.md",
        "s/a.txt": "a.txt",
        "s/a.txt~2": "b/a.txt",
        "s/a.txt~3": "c/a.txt",
        "s/only": "c/only.txt",
    }
    before = input_hashes({"s": given})
    assert len(before) == 5
    for name in ("a.md", "a.txt", "b/a.txt", "c/a.txt"):
        (tmp_path / name).write_text("changed")
        assert input_hashes({"s": given}) != before
        (tmp_path / name).write_text(name)
    for ending in (".jsonl.gz", ".txt.gz"):
        (tmp_path / f"z{ending}").write_bytes(ending.encode())
    assert len(input_hashes({"s": source(files=[f"{tmp_path}/*.gz"])})) == 2


def test_remote_files_through_fsspec():
    import fsspec

    with fsspec.open("memory://texts/a.jsonl.gz", "wb", compression="gzip") as file:
        file.write(b'{"text": "from afar"}\n')
    given = source(files=["memory://texts/*.jsonl.gz"])
    (document,) = read_documents("s", given)
    assert (document.text, document.id) == ("from afar", "s/a#000001")
    assert input_hashes({"s": given}) == input_hashes({"s": given})


@pytest.mark.parametrize(
    ("name", "content", "good"),
    [
        ("a.jsonl", b'{"text": "x"}\n{bad\n{"text": "y"}\n[1]\n', ["x", "y"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', ["x"]),
        ("a.csv", b"text,n\nx,1\ny\nz,2,3\n", ["x"]),
        ("a.csv", b"text,n\nx,1\ncaf\xe9,2\ny,3\n", ["x", "y"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": ["y"]}\n{"text": 7}\n', ["x", "7"]),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n{"text": "z"}\n', ["x", "z"]),
        ("a.csv", b"body\ny\n", []),
        ("a.jsonl.gz", b"", []),
        ("a.txt.zst", "zst", []),
        ("a.jsonl.xz", b"not xz", []),
        ("a.xml", b"<other/>", []),
        ("a.jsonl.gz", "gzip", ["x"] * 2000),
        ("a.txt", b"\xff\xfe", []),
        ("a.parquet", b"PAR1 not", []),
        ("a.xml", b"<PubmedArticleSet><PubmedArticle>", []),
    ],
)
def test_damage_is_named_or_skipped_when_told(tmp_path: Path, name: str, content: Any, good: Any):
    import gzip
    import os

    import pyarrow as pa

    if content == "gzip":
        rows = [
            b'{"text": "x", "noise": "%s"}\n' % os.urandom(40).hex().encode() for _ in range(4000)
        ]
        whole = gzip.compress(b"".join(rows))
        content = whole[: len(whole) * 3 // 4]
    elif content == "zst":  # cut where a line ends, so that only the archive tells
        content = pa.compress(os.urandom(1000).hex().encode(), codec="zstd", asbytes=True)[:-9]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.jsonl").write_text('{"text": "after"}\n')
    files = [str(tmp_path / name), str(tmp_path / "z.jsonl")]
    with pytest.raises(DataError, match=r"skip_damaged: true") as caught:
        list(read_documents("s", source(files=files)))
    assert name in str(caught.value)
    faults = Faults(skip=True)
    texts = [d.text for d in read_documents("s", source(files=files), faults)]
    assert texts[-1] == "after"
    if content and name.endswith(".gz"):
        assert 2000 < len(texts) < 4000
    else:
        assert texts[:-1] == good
    assert faults.counts["damaged"] >= 1
    assert name in faults.shown[0]


def test_where_damage_stands_is_said(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'text,n\nx,1\n"two\nlines",2\ncaf\xe9,3\n')
    with pytest.raises(DataError, match=r"a\.csv:5: is not UTF-8"):
        list(read_documents("s", source(files=[f"{tmp_path}/a.csv"])))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=r"b\.parquet: is damaged: reading fails after 0 documents"):
        list(read_documents("s", source(files=[f"{tmp_path}/b.parquet"])))


def test_a_damaged_archive_in_an_artifact_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import gzip
    import io
    import tarfile

    from toolkit.stage import hash_file

    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        good = gzip.compress(b'{"text": "row"}\n')
        for name, data in (("x/1.jsonl.gz", good), ("x/2.jsonl.gz", good[:-8]), ("x/3.txt", b"t")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = hash_file(path)
    folder = tmp_path / "cache/artifacts" / digest
    folder.mkdir(parents=True)
    path.rename(folder / path.name)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    artifact = {"package": "p", "version": "1", "sha256": digest, "member": "x/*"}
    with pytest.raises(DataError, match=r"x/2\.jsonl\.gz: is damaged: reading fails after"):
        list(read_documents("s", source(artifact=artifact)))
    faults = Faults(skip=True)
    texts = [d.text for d in read_documents("s", source(artifact=artifact), faults)]
    assert texts == ["row", "row", "t"]
    assert faults.counts["damaged"] == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{title", "expected '}'"),
        ("{}", "must hold the name of one field"),
        ("{title.__class__}", "must hold the name of one field"),
        ("{n:03d}", "must hold the name of one field"),
        ("title", "names no field"),
    ],
)
def test_a_bad_template_is_refused_with_the_recipe(template: str, words: str):
    with pytest.raises(ValueError, match=f"template: .*{words}"):
        source(files=["a"], template=template)


def test_remote_files_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    with pytest.raises(DataError, match=r"memory://none/a\.jsonl: no such file"):
        list(read_documents("s", source(files=["memory://none/a.jsonl"])))
    with pytest.raises(DataError, match="foo://a: cannot be reached"):
        list(read_documents("s", source(files=["foo://a"])))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unable to locate credentials\nmore")  # stores have their own errors

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(DataError, match=r"\(Unable to locate credentials\); check .* login"):
        list(read_documents("s", source(files=["s3://b/a.jsonl"])))


def test_file_addresses_and_remote_parquet(tmp_path: Path):
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_text("by address")
    (document,) = read_documents("s", source(files=[f"file://{tmp_path}/*.txt"]))
    assert (document.text, document.id) == ("by address", "s/a")
    with fsspec.open("memory://parquet/a.parquet", "wb") as file:
        pq.write_table(pa.table({"body": ["one"], "firm": ["x"]}), file)
    given = source(files=["memory://parquet/a.parquet"], text_field="body", group_field="firm")
    (document,) = read_documents("s", given)
    assert (document.text, document.group) == ("one", "x")


def test_a_connection_that_breaks_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    from toolkit.data import sources

    def breaks(*_: Any) -> Any:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(sources, "read_rows", breaks)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: reading fails after 0 .*Connection reset"):
        list(read_documents("s", source(files=[f"{tmp_path}/a.txt"], skip_damaged=True)))


def test_a_conversation_needs_an_answer(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: messages must be a list"):
        list(read_documents("s", source(files=[f"{tmp_path}/*"], messages_field="messages")))


def test_endless_streams_can_be_cut(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 9)
    given = source(files=[f"{tmp_path}/*"], max_documents=4)
    assert len(list(read_documents("s", given))) == 4


def _rows(path: Path, values: list[Any], kind: Any = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array(values, kind)}), path)


def test_values_become_text_by_what_they_are(tmp_path: Path):
    import datetime
    from decimal import Decimal

    import pyarrow as pa

    given = source(files=[str(tmp_path / "a.parquet")])

    def read(values: list[Any], kind: Any = None) -> list[str]:
        _rows(tmp_path / "a.parquet", values, kind)
        return [d.text for d in read_documents("s", given)]

    accents = ["v\u00e9lve", "\u6c34"]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        assert read([text.encode() for text in accents], kind) == accents
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert read(accents, kind) == accents
    _rows(tmp_path / "a.parquet", pa.array(accents).dictionary_encode())
    assert [d.text for d in read_documents("s", given)] == accents
    assert read([7, None], pa.int64()) == ["7", ""]
    assert read([0.5, float("nan")]) == ["0.5", ""]
    assert read([datetime.date(2020, 1, 2)]) == ["2020-01-02"]
    assert read([Decimal("1.50")]) == ["1.50"]
    for values, found in (([b"\xff"], "bytes that are not UTF-8"), ([{"a": 1}], "a dict")):
        _rows(tmp_path / "a.parquet", values)
        with pytest.raises(DataError, match=rf"a\.parquet:1: field 'text' holds {found}"):
            list(read_documents("s", given))


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_rows_without_a_group_or_an_id_stand_for_themselves(tmp_path: Path, empty: Any):
    rows = [{"text": "x", "who": empty}, {"text": "y", "who": empty}, {"text": "z", "who": "a"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "a.jsonl")]
    faults = Faults(skip=False)
    found = list(read_documents("s", source(files=files, group_field="who"), faults))
    assert [d.group for d in found] == ["a#000001", "a#000002", "a"]
    assert faults.counts == {"note: rows have no 'who'; each stands for itself": 2}
    found = list(read_documents("s", source(files=files, id_field="who")))
    assert [d.id for d in found] == ["s/a#000001", "s/a#000002", "s/a"]


def _ids(*patterns: str, **values: Any) -> list[str]:
    return [d.id for d in read_documents("s", source(files=list(patterns), **values))]


def test_paths_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("data [v2]/a.txt", "data [v2]/b.txt", "data v/c.txt", "home/a.txt", "t/x/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert _ids("data [v2]/a.txt") == ["s/a"]
    assert _ids("data [v2]/*.txt") == ["s/a", "s/b"]
    assert _ids("data [vw]/*.txt") == ["s/data v/c"]  # nothing is called so: a wildcard
    assert _ids("~/a.txt") == _ids("~/*.txt") == ["s/a"]
    for folder in ("t", "t/", "./t", str(tmp_path / "t")):
        assert _ids(folder) == ["s/x/a"]
    assert _ids("data [v2]") == ["s/a", "s/b"]
    assert _ids("t/**") == _ids("t/**/*.txt") == _ids("t/**/x/*.txt") == ["s/x/a"]
    assert _ids("**/x/*.txt") == ["s/t/x/a"]
    with pytest.raises(DataError, match="no file below t matches"):
        _ids("t/*.jsonl")
    with pytest.raises(DataError, match="no such file; paths count from"):
        _ids("u/*.jsonl")


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path: Path):
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/a.txt").write_text("a")
    (tmp_path / "real/sub/b.txt").write_text("b")
    given = [f"{tmp_path}/real/**/*.txt"]
    expected = _ids(*given)
    assert expected == ["s/a", "s/sub/b"]
    for patterns in (given * 2, [*given, f"{tmp_path}/real/a.*"], [*given, f"{tmp_path}/**/*.txt"]):
        assert _ids(*patterns) == expected
        assert len(input_hashes({"s": source(files=patterns)})) == 2
    (tmp_path / "real/back").symlink_to(tmp_path / "real")
    (tmp_path / "real/sub/up").symlink_to(tmp_path)  # two links: 2**40 ways, for who follows them
    (tmp_path / "real/0.txt").symlink_to(tmp_path / "real/a.txt")
    assert _ids(*given) == expected
    assert _ids(f"{tmp_path}/real/*/b.txt") == ["s/sub/b"]
    (tmp_path / "linked").symlink_to(tmp_path / "real/sub")  # reached by a link alone
    assert _ids(f"{tmp_path}/linked/*.txt") == ["s/b"]


def test_lines_end_where_json_ends_them(tmp_path: Path):
    text = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    (tmp_path / "b.csv").write_text(f'text\n"{text}"\n', encoding="utf-8")
    found = [d.text for d in read_documents("s", source(files=[f"{tmp_path}/*"]))]
    assert found == [text, text]


def packed(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_archives_are_read_as_the_folder_in_them(tmp_path: Path):
    files = {"acme/a.txt": "one", "bolt/b.txt": "two", "__MACOSX/acme/a.txt": "x", ".h/c.txt": "x"}
    path = packed(tmp_path / "letters.zip", files)
    read = {d.id: d for d in read_documents("s", source(files=[str(path)], group_folders=1))}
    assert {name: (d.text, d.group) for name, d in read.items()} == {
        "s/acme/a": ("one", "acme"),
        "s/bolt/b": ("two", "bolt"),
    }
    with tarfile.open(tmp_path / "letters.tar.gz", "w:gz") as tar:
        tar.add(path, "in/letters.zip")
    below = source(files=[f"{tmp_path}/letters.tar.gz//in/letters.zip//acme/*"])
    assert [d.text for d in read_documents("s", below)] == ["one"]


def test_parts_of_archives_and_several(tmp_path: Path):
    packed(tmp_path / "a.zip", {"x.txt": "one", "y.md": "two"})
    packed(tmp_path / "b.zip", {"x.txt": "three"})
    parts = source(files=[f"{tmp_path}/a.zip//*.md", f"{tmp_path}/a.zip//*.*"])
    assert [d.id for d in read_documents("s", parts)] == ["s/y", "s/x"]
    several = source(files=[f"{tmp_path}/*.zip"], exclude=["*.md"])
    assert [d.id for d in read_documents("s", several)] == ["s/a/x", "s/b/x"]
    assert list(input_hashes({"s": several})) == ["s/a.zip", "s/b.zip"]
    with pytest.raises(DataError, match=r"a\.zip: holds nothing that matches '\*\.csv'"):
        list(read_documents("s", source(files=[f"{tmp_path}/a.zip//*.csv"])))


def test_damaged_archives_are_damage_like_any_other(tmp_path: Path):
    packed(tmp_path / "a.zip", {"x.txt": "one"})
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.zip: is damaged"):
        list(read_documents("s", source(files=[f"{tmp_path}/*.zip"])))
    faults = Faults(skip=True)
    kept = read_documents("s", source(files=[f"{tmp_path}/*.zip"], skip_damaged=True), faults)
    assert [d.text for d in kept] == ["one"]
    assert faults.counts["damaged"] == 1
